"""Every departure of the released code equals a plain computation of it, or is rejected where it cannot apply."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_bert
from pydantic import ValidationError
from support.calls import Calls
from support.distill_lab import CPU, Lab, arguments, losses, weights
from torch.nn import functional as F
from transformers import BertTokenizerFast, set_seed

from hskd.compat import COMPAT, ONLINE_ONLY, STUDENT_COMPAT, Compat
from hskd.distill.losses import hsk_loss
from hskd.distill.source import OnlineSource
from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import HskdError
from hskd.fast import fast_training
from hskd.hashing import fingerprint
from hskd.heads import SequenceClassification
from hskd.io import read_json
from hskd.paper.bert_adam import BertAdam
from hskd.paper.departures import (
    CompatSource,
    Departures,
    LooseNoSep,
    MeanClassesTrainer,
    ZeroedSource,
    relu_pooled,
)
from hskd.progress import Progress
from hskd.results import ResultsFolder
from hskd.selectors import LayerView, Tokens
from hskd.spec import HSKSpec
from hskd.students import load_student, taylor_importance
from hskd.students.base import STUDENT_FILE
from hskd.students.rosita.create import create_rosita
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks import BatchDataset, model_inputs
from hskd.training import HeadModule, Predictor, StageRecipe, StageTrainer
from hskd.trials.config import TrialConfig
from hskd.trials.prepare import Distillation, Student, from_teacher
from hskd.trials.settings import DistillSettings
from hskd.trials.stages import RunOptions, TrialInputs
from hskd.trials.trial import About, run_prepared

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 32
ROWS = [0, 3, 17, 40, 63]
"""Examples of several lengths."""


def settings(*compat: Compat, **fields: Any) -> DistillSettings:
    return DistillSettings(compat=compat, **fields)


def online(lab: Lab, spec: str | None, *compat: Compat) -> CompatSource:
    parsed = HSKSpec.parse(f"{spec},precision=fp32") if spec else None
    return CompatSource(compat, lab.teacher, lab.train.sep_id, parsed, 2)


@torch.no_grad()
def teacher_states(lab: Lab, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return all hidden states of the teacher, in eval mode, ``(B, T, d)`` each."""
    return list(lab.teacher.model.eval()(**model_inputs(batch), output_hidden_states=True).hidden_states)


@torch.no_grad()
def student_states(module: HSKModule, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(module.student(**model_inputs(batch), output_hidden_states=True).hidden_states)


# Names


def test_names_are_sorted_and_each_once() -> None:
    assert settings("zero_dropped", "best_epoch", "zero_dropped").compat == ("best_epoch", "zero_dropped")
    assert settings("zero_dropped", "best_epoch") == settings("best_epoch", "zero_dropped")
    with pytest.raises(ValidationError, match="teacher_dropout"):
        DistillSettings.model_validate({"compat": ["no_such"]})


def test_off_they_leave_no_trace_in_what_identifies_a_trial() -> None:
    for made in (DistillSettings(), RositaSettings()):
        assert "compat" not in made.model_dump(mode="json")
        assert type(made).model_validate(made.model_dump()) == made
    changed = settings("drop_last", seed=3)
    assert changed.model_dump(mode="json")["compat"] == ["drop_last"]
    assert DistillSettings.model_validate(changed.model_dump(mode="json")) == changed
    assert fingerprint(changed.model_dump(mode="json")) != fingerprint(DistillSettings(seed=3).model_dump(mode="json"))


def test_ids_of_committed_results_stand() -> None:
    results = ResultsFolder(ROOT / "results" / "demo-3-seeds").results()
    assert len(results) == 24
    for trial, result in results.items():
        config = TrialConfig.model_validate(result.config)
        assert config.id == trial
        with_one = config.model_copy(update={"settings": config.settings.model_copy(update={"compat": ("drop_last",)})})
        assert with_one.id != config.id


def test_the_page_tells_of_every_switch() -> None:
    page = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (offline too|online only|student) \| `(\w+)` \|$", page, re.MULTILINE)
    expected = {name: "online only" if name in ONLINE_ONLY else "offline too" for name in COMPAT}
    assert {name: where for name, where, _ in rows} == {**expected, **dict.fromkeys(STUDENT_COMPAT, "student")}
    for _, _, test in rows:
        assert callable(globals()[test]), test
    assert "tests/paper/test_departures.py" in page
    help_text = str(DistillSettings.model_fields["compat"].description)
    offline, after = help_text.split("online only:")
    assert [name for name in COMPAT if name in after] == sorted(ONLINE_ONLY)
    assert [name for name in COMPAT if name in offline] == [name for name in COMPAT if name not in ONLINE_ONLY]


def test_no_other_file_names_a_switch() -> None:
    """A trial calls the hooks of :class:`Departures`, so a new switch belongs there."""
    names = re.compile(rf"\b({'|'.join([*COMPAT, *STUDENT_COMPAT])})\b")
    inside = [ROOT / "hskd" / "paper", ROOT / "hskd" / "compat.py"]
    files = [file for folder in ("hskd", "analysis", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    others = [file for file in files if not any(file == place or place in file.parents for place in inside)]
    found = {str(file.relative_to(ROOT)): names.findall(file.read_text(encoding="utf-8")) for file in others}
    assert {file: hits for file, hits in found.items() if hits} == {}


def test_with_no_switch_every_hook_does_the_default_thing(lab: Lab, tmp_path: Path) -> None:
    plain, student = Departures(), lab.student()
    source = lab.offline(HSKSpec.parse("2l_3t_0.5w"))
    recipe = StageRecipe(
        epochs=1, learning_rate=1e-3, schedule="linear", batch_size=16, seed=0, dtype="fp32", device=CPU
    )
    plain.require_task(lab.task)
    plain.require_splits({"train": lab.train}, batch_size=1000)
    plain.require_whole_batches(accumulate=2, processes=2)
    assert type(plain.online_source(lab.teacher, lab.train.sep_id, None, 2, "fp32")) is OnlineSource
    assert plain.hsk_source(source, WIDTH, resumed=False) is source
    assert plain.hsk_split(lab.train, student) is lab.train
    args = plain.arguments(tmp_path, recipe)
    assert (args.max_grad_norm, args.dataloader_drop_last) == (1.0, False)
    assert plain.trainer_options(recipe) == {}
    assert type(plain.prediction_trainer(lab.classifier(), args, lab.train, source, 1.0)) is PredictionTrainer
    assert not plain.keeps([0.1, 0.9]) and plain.reported_epoch([0.1, 0.9]) is None
    before = student.dropout
    with plain.student(student):
        assert student.dropout is before


# The teacher's knowledge


def test_teacher_dropout(lab: Lab) -> None:
    batch = lab.train.collate(ROWS)
    model = lab.teacher.model
    torch.manual_seed(5)
    with torch.no_grad():
        output = model.train()(**model_inputs(batch), output_hidden_states=True)
    real = batch["attention_mask"].bool()
    expected = torch.stack([output.hidden_states[layer][real] for layer in (0, 2, 4)], dim=1)
    source = online(lab, "all_all_all", "teacher_dropout")
    torch.manual_seed(5)
    torch.testing.assert_close(source.kept(batch).values, expected)
    torch.manual_seed(5)
    torch.testing.assert_close(source.targets(batch), output.logits)
    assert float((source.kept(batch).values - expected).abs().max()) > 0.1  # another draw
    quiet = lab.online(HSKSpec.parse("all_all_all,precision=fp32")).kept(batch)  # the previous draws must not matter
    torch.testing.assert_close(quiet.values, torch.stack([teacher_states(lab, batch)[i][real] for i in (0, 2, 4)], 1))


def test_relu_pooled(lab: Lab, tmp_path: Path) -> None:
    batch = lab.train.collate(ROWS)
    model = lab.teacher.model
    with torch.no_grad():
        pooled = model.eval().bert(**model_inputs(batch)).pooler_output
        expected = model.classifier(pooled.clamp(min=0))
        plain = model.classifier(pooled)
    torch.testing.assert_close(online(lab, None, "relu_pooled").targets(batch), expected)
    torch.testing.assert_close(lab.online(None).targets(batch), plain)
    assert float((expected - plain).abs().max()) > 0.1

    # The student's classifier is also trained and scored on relu(pooled).
    online_trial(lab, tmp_path, "relu_pooled", hsk_epochs=1, prediction_epochs=2, prediction_lr=1e-3)
    found = np.load(tmp_path / "predictions.npz")["dev"]
    student = load_student(tmp_path / "student")
    dev = lab.splits["dev"]
    with torch.no_grad():
        pooled = student.eval().bert(**model_inputs(dev.collate(range(len(dev))))).pooler_output
        logits = student.classifier(pooled.clamp(min=0))
    np.testing.assert_allclose(found, logits, atol=5e-3)
    assert np.abs(found - Predictor(HeadModule(student, lab.task.head), "fp32").rows(dev)).max() > 0.05
    before = student.dropout
    with relu_pooled(student):
        assert isinstance(student.dropout, torch.nn.ReLU)
    assert student.dropout is before


@pytest.mark.parametrize("text", ["all_all_all", "2l_30t_all,length=left"])
def test_pads_in_loss(lab: Lab, text: str) -> None:
    split = replace(lab.train, max_length=20)
    padded = Departures(["pads_in_loss"]).hsk_split(split, lab.student())
    batch = padded.collate(ROWS)
    assert batch["input_ids"].shape[1] == 20 > max(split.lengths[ROWS])
    assert Departures().hsk_split(split, lab.student()) is split
    assert (
        Departures(["pads_in_loss"]).hsk_split(lab.train, lab.student()).pad_to == 64
    )  # positions within the student's limit

    kept = online(lab, text, "pads_in_loss").kept(batch)
    assert kept.counts.tolist() == [20] * len(ROWS)
    module = HSKModule(lab.student(), WIDTH)
    teacher, student = teacher_states(lab, batch), student_states(module, batch)
    pairs = [(0, 0), (1, 2), (2, 4)][-len(kept.layers) :]
    expected = sum(F.mse_loss(student[mine], teacher[theirs]) for mine, theirs in pairs)
    assert module(kept, **model_inputs(batch)).item() == pytest.approx(float(expected), rel=1e-5)
    without = module(lab.online(HSKSpec.parse(f"{text},precision=fp32")).kept(batch), **model_inputs(batch))
    assert without.item() != pytest.approx(float(expected), rel=1e-2)


def test_pads_are_the_last_that_attention_keeps(lab: Lab) -> None:
    batch = replace(lab.train, pad_to=24).collate(ROWS)
    kept = online(lab, "1l_18t_all", "pads_in_loss").kept(batch)
    assert kept.counts.tolist() == [18] * len(ROWS)
    for row, positions in enumerate(kept.positions[:, 0].split(18)):
        length = int(batch["attention_mask"][row].sum())
        words = [i for i in range(length) if batch["input_ids"][row, i] != lab.train.sep_id]
        assert len(words) < 18
        assert positions.tolist() == [*words, *range(length, length + 18 - len(words))]


def test_batch_threshold(lab: Lab) -> None:
    batch = lab.train.collate(ROWS)
    kept = online(lab, "2l_3t_0.1w", "batch_threshold").kept(batch)
    whole = lab.online(HSKSpec.parse("2l_3t_all,precision=fp32")).kept(batch)
    module = HSKModule(lab.student(), WIDTH)
    student = student_states(module, batch)
    expected, per_token = 0.0, set()
    for i, layer in enumerate(whole.layers):
        values = whole.values[:, i]
        threshold = sorted(values.abs().flatten().tolist(), reverse=True)[int(0.1 * values.numel()) - 1]
        errors: list[list[float]] = [[] for _ in ROWS]
        for token, row in enumerate(whole.example.tolist()):
            own = student[layer][row, whole.positions[token, i]]
            above = [j for j in range(WIDTH) if abs(float(values[token, j])) >= threshold]
            per_token.add(len(above))
            errors[row] += [float(own[j] - values[token, j]) ** 2 for j in above]
        expected += sum(sum(row) / len(row) for row in errors if row) / len(ROWS)
    assert len(per_token) > 1  # the number of neurons differs between tokens
    assert module(kept, **model_inputs(batch)).item() == pytest.approx(expected, rel=1e-5)

    # With the switch, the kept tokens of an example depend on the batch. Without it, they do not.
    weights = [
        online(lab, "2l_3t_0.1w", "batch_threshold").kept(lab.train.collate(rows)).weights for rows in ((0,), ROWS)
    ]
    assert all(found is not None for found in weights)
    assert not torch.equal(weights[0] > 0, weights[1][: len(weights[0])] > 0)  # type: ignore[operator, index, arg-type]

    # Together with zero_dropped, the loss is the mean squared error of the whole tensor.
    zeroed = ZeroedSource(online(lab, "2l_3t_0.1w", "batch_threshold"), WIDTH).kept(batch)
    errors = torch.zeros(())
    for i, layer in enumerate(whole.layers):
        values = whole.values[:, i]
        threshold = values.abs().flatten().topk(int(0.1 * values.numel())).values[-1]
        own = student[layer][whole.example, whole.positions[:, i]]
        errors += F.mse_loss(own, values * (values.abs() >= threshold))
    assert module(zeroed, **model_inputs(batch)).item() == pytest.approx(float(errors), rel=1e-5)


def test_attention_scores(lab: Lab) -> None:
    batch = lab.train.collate(ROWS)
    states = teacher_states(lab, batch)
    kept = online(lab, "2l_3t_all", "attention_scores").kept(batch)
    after = lab.online(HSKSpec.parse("2l_3t_all,precision=fp32")).kept(batch)
    for i, teacher_layer in enumerate((2, 4)):
        attention = lab.teacher.model.bert.encoder.layer[teacher_layer - 1].attention.self
        for row in range(len(ROWS)):
            tokens = states[teacher_layer - 1][row, : int(batch["attention_mask"][row].sum())]
            scores = torch.zeros(len(tokens))
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                with torch.no_grad():
                    query, keys = attention.query(tokens[0])[part], attention.key(tokens)[:, part]
                scores += keys @ query / math.sqrt(8) / 4
            scores[batch["input_ids"][row, : len(tokens)] == lab.train.sep_id] = -math.inf
            expected = sorted(scores.topk(3).indices.tolist())
            assert kept.positions[kept.example == row, i].tolist() == expected
    assert not torch.equal(kept.positions, after.positions)  # the mean over heads of a softmax gives another ranking


def test_loose_masks(lab: Lab) -> None:
    drawn = np.flatnonzero(np.random.default_rng(4).random(WIDTH) < 0.25).tolist()
    assert len(drawn) != 8
    batch = lab.train.collate(ROWS)
    whole = lab.online(HSKSpec.parse("2l_3t_all,precision=fp32")).kept(batch)
    source = online(lab, "2l_3t_0.25w,width=random,width.seed=4", "loose_masks")
    first, second, third = (source.kept(batch) for _ in range(3))
    assert first.neurons is None and torch.equal(first.values, whole.values)
    for kept in (second, third):
        assert kept.neurons is not None and kept.neurons.tolist() == drawn
        assert torch.equal(kept.values, whole.values[:, :, drawn])
    exact = online(lab, "2l_3t_0.25w,width=random,width.seed=4").kept(batch).neurons
    assert exact is not None and len(exact) == 8

    # A uniform mask is exact except for the first step. A mask that is not fixed always applies.
    source = online(lab, "2l_3t_0.25w,width=uniform", "loose_masks")
    assert [source.kept(batch).values.shape[2] for _ in range(2)] == [WIDTH, 8]
    source = online(lab, "2l_3t_0.25w", "loose_masks")
    assert [source.kept(batch).values.shape[2] for _ in range(2)] == [8, 8]

    # A stage that resumes from a checkpoint has already had its first step.
    source = online(lab, "2l_3t_0.25w,width=uniform", "loose_masks")
    assert Departures(["loose_masks"]).hsk_source(source, WIDTH, resumed=True).kept(batch).values.shape[2] == 8
    assert Departures(["loose_masks"]).hsk_source(source, WIDTH, resumed=False).kept(batch).values.shape[2] == WIDTH


@pytest.mark.parametrize("first", [1, 2, 3])
def test_loose_masks_count_sep_in_the_first_example(lab: Lab, first: int) -> None:
    cls, sep, word = 2, lab.train.sep_id, 7
    rows = [[cls, *[word] * 3, *[sep] * first], [cls, word, sep, word, word, sep], [cls, word, sep]]
    offsets = np.cumsum([0, *map(len, rows)])
    tokens = Tokens(np.arange(3), offsets, np.array([token for row in rows for token in row]), sep)
    attention = np.linspace(1, 0, offsets[-1], dtype=np.float32)
    chosen = LooseNoSep(k=9).select(LayerView(tokens, 1, torch.empty(len(attention), 0), attention))
    found = [(chosen[(chosen >= a) & (chosen < b)] - a).tolist() for a, b in pairwise(offsets)]
    # [SEP]s from the left, then other tokens from the left. A second [SEP] beyond that number may be kept.
    assert found[0] == [0, 1, 2, 3]
    assert found[1] == {1: [0, 1, 3, 4, 5], 2: [0, 1, 3, 4], 3: [1, 3, 4]}[first]
    assert found[2] == {1: [0, 1], 2: [1], 3: []}[first]


# The student's targets


@pytest.mark.parametrize("text", ["2l_3t_0.25w", "2l_3t_0.25w,width=uniform", "all_all_0.5w", "1l_3t_all"])
@pytest.mark.parametrize("where", ["offline", "online"])
def test_zero_dropped(lab: Lab, text: str, where: str) -> None:
    spec = HSKSpec.parse(f"{text},precision=fp32")
    source = lab.offline(spec) if where == "offline" else lab.online(spec)
    batch = lab.train.collate(ROWS)
    kept = source.kept(batch)
    module = HSKModule(lab.student(), WIDTH)
    student = student_states(module, batch)
    expected = 0.0
    for i, layer in enumerate(kept.layers):
        errors: list[list[float]] = [[] for _ in ROWS]
        for token, row in enumerate(kept.example.tolist()):
            target = [0.0] * WIDTH
            neurons = range(WIDTH) if kept.neurons is None else kept.neurons
            if kept.neurons is not None and kept.neurons.dim() == 3:
                neurons = kept.neurons[token, i]
            for j, value in zip(neurons, kept.values[token, i], strict=True):
                target[int(j)] = float(value)
            own = student[layer][row, kept.positions[token, i]]
            errors[row] += [float(own[j] - target[j]) ** 2 for j in range(WIDTH)]
        expected += sum(sum(row) / len(row) for row in errors) / len(ROWS)
    zeroed = Departures(["zero_dropped"]).hsk_source(source, WIDTH, resumed=False)
    assert module(zeroed.kept(batch), **model_inputs(batch)).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(zeroed.targets(batch), source.targets(batch))
    if spec.width.count(WIDTH) < WIDTH:
        assert module(kept, **model_inputs(batch)).item() != pytest.approx(expected, rel=1e-2)
    # The gradient pulls dropped neurons to 0.
    states = [state.clone().requires_grad_() for state in student]
    hsk_loss(states, zeroed.kept(batch)).backward()
    pulled = states[kept.layers[-1]].grad
    assert pulled is not None
    assert int((pulled != 0).sum()) == len(kept.example) * WIDTH


def test_a_trial_zeroes_what_is_dropped(lab: Lab, tmp_path: Path) -> None:
    fields = {"hsk_epochs": 1, "batch_size": 64, "hsk_lr": 1e-3}
    found = lab.trial(tmp_path / "zeroed", compat=("zero_dropped",), **fields)
    plain = lab.trial(tmp_path / "plain", **fields)
    assert found["settings"]["compat"] == ["zero_dropped"] and "compat" not in plain["settings"]
    # The first loss computed by hand, with the same student, dropout and batch.
    student = Student.load(lab.root / "rosita", lab.task).model
    source = ZeroedSource(lab.offline(HSKSpec.parse("2l_3t_0.5w")), WIDTH)
    with fast_training(student, [lab.train.input_ids]):
        trainer = HSKTrainer(HSKModule(student, WIDTH), arguments(tmp_path, epochs=1, batch_size=64), lab.train, source)
        set_seed(0)
        (expected,) = losses(trainer)
    assert found["stages"]["hsk"]["first_loss"] == pytest.approx(expected, rel=1e-5)
    assert plain["stages"]["hsk"]["first_loss"] != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_mean_classes(lab: Lab, tau: float, tmp_path: Path) -> None:
    batch = lab.train.collate(ROWS)
    student = lab.student().eval()
    classifier, found = HeadModule(student, lab.task.head), []
    for trainer_class in (MeanClassesTrainer, PredictionTrainer):
        trainer = trainer_class(classifier, arguments(tmp_path), lab.train, lab.online(None), tau)
        found.append(trainer.batch_loss(classifier, trainer.dataset.__getitems__(ROWS)).item())
    with torch.no_grad():
        own, target = (model(**model_inputs(batch)).logits / tau for model in (student, lab.teacher.model.eval()))
    expected = float((-target.softmax(1) * own.log_softmax(1)).mean())
    assert found == pytest.approx([expected, 2 * expected], rel=1e-5)


def test_a_trial_means_over_classes(lab: Lab, tmp_path: Path) -> None:
    results = [
        lab.trial(
            tmp_path / str(len(compat)), arm="none", compat=compat, hsk_epochs=1, prediction_epochs=0, batch_size=64
        )
        for compat in ((), ("mean_classes",))
    ]
    plain, mean = (result["stages"]["prediction"]["first_loss"] for result in results)
    assert mean == pytest.approx(plain / 2, rel=1e-6)


# Regression


@pytest.fixture(scope="module")
def ratings(lab: Lab, tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A regression task: the same sentences with numeric targets, a teacher and a student."""
    root = tmp_path_factory.mktemp("ratings")
    for name, count in (("train", 24), ("dev", 8)):
        words = ("film", "story", "the", "acting")
        rows = [f"a {words[i % 4]} and {words[i // 4 % 4]} {i} {name[0]},{(i % 5) + 0.5}" for i in range(count)]
        (root / f"{name}.csv").write_text("\n".join(["sentence,mood", *rows]) + "\n", encoding="utf-8")
    names = {"num_labels": 1, "id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    for folder, seed in (("teacher", 0), ("rosita", 1)):
        make_bert(seed, num_hidden_layers=4 if folder == "teacher" else 2, **names).save_pretrained(root / folder)
        tokenizer.save_pretrained(root / folder)
    return Lab.open(root, root)


def test_gold_regression(ratings: Lab, tmp_path: Path) -> None:
    def run(name: str, *compat: Compat) -> dict[str, Any]:
        fields = {"hsk_epochs": 0, "prediction_epochs": 1, "batch_size": 24, "prediction_lr": 1e-3}
        return online_trial(ratings, tmp_path / name, *compat, **fields)

    gold, soft = run("gold", "gold_regression"), run("soft")
    student = Student.load(ratings.root / "rosita", ratings.task).model
    found = {name: result["stages"]["prediction"]["first_loss"] for name, result in (("gold", gold), ("soft", soft))}
    # By hand, with the trial's dropout: the loss of one batch, which is the whole training set.
    dataset = BatchDataset(ratings.train)
    order = next(iter(StageTrainer(student, arguments(tmp_path, batch_size=24), dataset, "x").get_train_dataloader()))
    with torch.no_grad():
        target = ratings.teacher.model.eval()(**model_inputs(order)).logits.squeeze(1)

    class Fit(StageTrainer):
        goal = target

        def batch_loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return ((model(**model_inputs(batch)).squeeze(1) - self.goal) ** 2).mean()

    for name, goal in (("gold", order["labels"]), ("soft", target)):
        fresh = Student.load(ratings.root / "rosita", ratings.task).model
        with fast_training(fresh, [ratings.train.input_ids]) as encoder:
            module = HeadModule(fresh, ratings.task.head, encoder)
            trainer = Fit(module, arguments(tmp_path, epochs=1, batch_size=24), dataset, "x")
            trainer.goal = goal
            set_seed(0)
            assert losses(trainer) == pytest.approx([found[name]], rel=1e-4), name
    assert found["gold"] != pytest.approx(found["soft"], rel=1e-2)


def test_gold_regression_needs_a_regression(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=r"compat gold_regression: .* task custom is a classification; leave it out"):
        lab.trial(tmp_path, compat=("gold_regression",))
    assert not list(tmp_path.glob("*.json"))


# Optimisation


LIVELY = {"arm": "none", "hsk_epochs": 3, "prediction_epochs": 3, "prediction_lr": 3e-3}
"""A trial whose best epoch is in the middle: 6 epochs of 4 steps."""


def test_best_epoch(lab: Lab, tmp_path: Path) -> None:
    last = lab.trial(tmp_path / "last", **LIVELY)
    scores = last["dev_scores"]
    best = scores.index(max(scores))
    assert scores[best] > scores[-1] and best > 0  # otherwise the test would prove nothing
    for checkpoints in (True, False):
        folder = tmp_path / str(checkpoints)
        found = lab.trial(folder, compat=("best_epoch",), run=RunOptions("fp32", checkpoints=checkpoints), **LIVELY)
        assert found["dev_scores"] == scores
        assert found["stages"]["prediction"]["reported_epoch"] == best + 1
        predictor = Predictor(HeadModule(load_student(folder / "student"), lab.task.head), "fp32")
        for name in ("dev", "test"):
            assert found["metrics"][name] == predictor.score(lab.splits[name])
        assert found["metrics"]["dev"]["score"] == scores[best]
        assert not (folder / "best-epoch.safetensors").exists()
    assert weights(tmp_path / "True") == weights(tmp_path / "False") != weights(tmp_path / "last")


class Stop(Exception):
    """Ends a run at a step."""


@pytest.mark.parametrize("after", [15, 23])
def test_best_epoch_survives_a_stop(lab: Lab, after: int, tmp_path: Path) -> None:
    whole = lab.trial(tmp_path / "whole", compat=("best_epoch",), **LIVELY)
    # The best epoch is at step 16: after the kill, or before the checkpoint from which the trial resumes.
    assert whole["stages"]["prediction"]["reported_epoch"] == 4
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            raise Stop

    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        lab.trial(folder, compat=("best_epoch",), progress=Calls(advance), **LIVELY)
    steps = -100
    again = lab.trial(folder, compat=("best_epoch",), progress=Calls(advance), **LIVELY)
    assert steps == -100 + 24 - (after // 4) * 4
    assert weights(folder) == weights(tmp_path / "whole")
    for field in ("metrics", "dev_scores"):
        assert again[field] == whole[field]
    assert again["stages"]["prediction"]["reported_epoch"] == whole["stages"]["prediction"]["reported_epoch"]


def plain_bert_adam(
    parameters: Iterable[tuple[torch.nn.Parameter, float]],
    state: dict[int, list[torch.Tensor]],
    lr: float,
    limit: float,
) -> float:
    """Make one step of BertAdam, parameter by parameter with decay, and return the clipped share of the gradients."""
    clipped = []
    for parameter, decay in parameters:
        if parameter.grad is None:
            continue
        gradient = parameter.grad
        norm = float(gradient.pow(2).sum().sqrt())
        clipped.append(norm > limit)
        if norm > limit:
            gradient = gradient * limit / (norm + 1e-6)
        m, v = state.setdefault(id(parameter), [torch.zeros_like(parameter), torch.zeros_like(parameter)])
        m[:] = 0.9 * m + 0.1 * gradient
        v[:] = 0.999 * v + 0.001 * gradient**2
        with torch.no_grad():
            parameter -= lr * (m / (v**0.5 + 1e-6) + decay * parameter)
    return sum(clipped) / len(clipped)


@pytest.mark.parametrize("stage", ["hsk", "prediction"])
def test_bert_adam(lab: Lab, stage: str, tmp_path: Path) -> None:
    def trainer_of(folder: str, *switches: Compat) -> StageTrainer:
        recipe = StageRecipe(
            epochs=2, learning_rate=1e-3, schedule="linear", batch_size=16, seed=0, dtype="fp32", device=CPU,
            weight_decay=0.1, max_grad_norm=0.2,
        )  # fmt: skip
        departures = Departures(switches)
        chosen = departures.arguments(tmp_path / folder, recipe, logging_steps=1)
        options = departures.trainer_options(recipe)
        source = lab.offline(HSKSpec.parse("2l_3t_0.5w"))
        if stage == "hsk":
            return HSKTrainer(HSKModule(lab.student("narrow"), WIDTH), chosen, lab.train, source, **options)
        return departures.prediction_trainer(lab.classifier("narrow"), chosen, lab.train, source, 1.0, **options)

    trainer = trainer_of("trained", "bert_adam")
    found = losses(trainer)

    by_hand = trainer_of("by hand")
    model, expected, shares = by_hand.model, [], []
    state: dict[int, list[torch.Tensor]] = {}
    loader = by_hand.get_train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            model.zero_grad()
            loss = by_hand.batch_loss(model, batch)
            loss.backward()
            decays = [
                (parameter, 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1)
                for name, parameter in model.named_parameters()
            ]
            shares.append(plain_bert_adam(decays, state, 1e-3 * (1 - len(shares) / 8), 0.2))
            expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-4)
    for name, tensor in model.state_dict().items():
        if name.endswith("key.bias"):
            continue  # its gradient is 0 except for rounding, which Adam amplifies
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert 0 < sum(shares) / len(shares) < 1

    adam_w = trainer_of("AdamW")
    assert losses(adam_w)[1:] != pytest.approx(expected[1:], rel=1e-3)


def test_the_first_step_of_bert_adam_is_larger() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    idle = torch.nn.Parameter(torch.ones(3))
    optimizer = BertAdam([parameter, idle], lr=0.01, weight_decay=0.1)
    parameter.grad = torch.tensor([4.0, -4.0, 1e-3])
    optimizer.step()
    moved = 1 - parameter.detach() - 0.01 * 0.1
    size = 0.01 * 0.1 / math.sqrt(0.001)  # the size of AdamW's first step is 0.01
    assert moved.tolist() == pytest.approx([size, -size, 0.01 * 1e-4 / (1e-3 * math.sqrt(0.001) + 1e-6)], rel=1e-4)
    assert idle.tolist() == [1.0] * 3


def test_drop_last(lab: Lab, tmp_path: Path) -> None:
    def batches(drop: bool) -> list[list[list[int]]]:
        trainer = PredictionTrainer(
            lab.classifier(),
            arguments(tmp_path, batch_size=12, dataloader_drop_last=drop),
            lab.train,
            lab.online(None),
        )
        loader = trainer.get_train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)  # type: ignore[attr-defined]
            epochs.append([batch["example_ids"].tolist() for batch in loader])
            assert len(loader) == len(epochs[-1])
        return epochs

    whole, cut = batches(False), batches(True)
    for every, full in zip(whole, cut, strict=True):
        assert [len(batch) for batch in every] == [12] * 5 + [4]
        assert full == every[:5]
    result = lab.trial(tmp_path / "trial", compat=("drop_last",), batch_size=12, hsk_epochs=2, prediction_epochs=1)
    for stage, epochs in (("hsk", 2), ("prediction", 1)):
        found = result["stages"][stage]
        assert (found["steps"], found["examples"]) == (5 * epochs, 60)
        assert found["examples_per_second"] == pytest.approx(60 * epochs / found["seconds"])
    with pytest.raises(HskdError, match="compat drop_last: 64 training examples are fewer than a batch of 65"):
        lab.trial(tmp_path / "none", compat=("drop_last",), batch_size=65)


# The student


def test_taylor_dropout(lab: Lab, tmp_path: Path) -> None:
    model = lab.teacher.model
    batches = [lab.train.collate(range(start, start + 16)) for start in (0, 16)]
    heads, neurons = torch.zeros(4, 4), torch.zeros(4, 64)
    torch.manual_seed(0)
    model.train()
    for batch in batches:
        model.zero_grad()
        F.cross_entropy(model(**model_inputs(batch)).logits, batch["labels"]).backward()
        for i, layer in enumerate(model.bert.encoder.layer):
            out, into, back = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
            terms = [(part.weight.grad * part.weight).detach().abs() for part in (out, into, back)]
            heads[i] += terms[0].sum(0).view(4, 8).sum(1)
            neurons[i] += terms[1].sum(1) + terms[2].sum(0)
    model.zero_grad()
    model.eval()
    state = torch.get_rng_state()
    found = taylor_importance(model, SequenceClassification(("a", "b")), batches, dropout_seed=0)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    torch.testing.assert_close(found.heads.float(), heads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.neurons.float(), neurons, rtol=1e-4, atol=1e-5)
    quiet = taylor_importance(model, SequenceClassification(("a", "b")), batches)
    assert float(((quiet.heads - found.heads) / quiet.heads).abs().max()) > 0.05

    sizes = {"layers": 2, "heads": 2, "ffn": 24}
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        create_rosita(lab.teacher, lab.train, RositaSettings(**sizes, compat=("taylor_dropout",)), tmp_path / name)
    create_rosita(lab.teacher, lab.train, RositaSettings(**sizes), tmp_path / "plain")
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b", "plain")}
    assert files["a"] == files["b"] != files["plain"]
    assert read_json(tmp_path / "a" / STUDENT_FILE)["settings"]["compat"] == ["taylor_dropout"]
    assert "compat" not in read_json(tmp_path / "plain" / STUDENT_FILE)["settings"]
    with pytest.raises(HskdError, match="holds a student of other sizes"):
        create_rosita(lab.teacher, lab.train, RositaSettings(**sizes), tmp_path / "a")


# Combinations and errors


def online_trial(
    lab: Lab, folder: Path, *compat: Compat, progress: Progress | None = None, **fields: Any
) -> dict[str, Any]:
    """Run a trial with the teacher in the loop, as ``hskd distill --teacher`` does."""
    chosen = settings(*compat, **{"hsk_epochs": 2, "prediction_epochs": 1, "batch_size": 16, **fields})
    student = Student.load(lab.root / "rosita", lab.task)
    spec = HSKSpec.parse("2l_3t_0.5w,width=random")
    prepared = from_teacher(lab.teacher, Distillation(chosen, spec, student, lab.task, lab.train), "fp32")
    inputs = TrialInputs(
        chosen, lab.task, lab.splits, student.model, prepared.teacher_width, prepared.source, student.folder
    )
    return run_prepared(inputs, folder, RunOptions("fp32"), About(prepared.record), progress).as_json()


def test_what_needs_labels_is_refused_without(ratings: Lab, tmp_path: Path) -> None:
    unlabelled = replace(ratings, splits={"train": replace(ratings.train, labels=None)})
    with pytest.raises(HskdError, match="compat best_epoch: needs the labels of dev, which are missing"):
        online_trial(unlabelled, tmp_path, "best_epoch")
    with pytest.raises(HskdError, match="compat gold_regression: needs the gold labels of train, which are missing"):
        online_trial(unlabelled, tmp_path, "gold_regression")
    assert not list(tmp_path.iterdir())


EVERY = tuple(name for name in COMPAT if name != "gold_regression")


def test_all_at_once_and_stopped(lab: Lab, tmp_path: Path) -> None:
    whole = online_trial(lab, tmp_path / "whole", *EVERY, prediction_epochs=2, prediction_lr=1e-3)
    assert whole["settings"]["compat"] == list(EVERY) and whole["source"] == "online"
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1
        if steps in (6, 11):  # the second epoch of the HSK stage; after a resumption there, of the last stage
            raise Stop

    folder = tmp_path / "stopped"
    for _ in range(2):
        with pytest.raises(Stop):
            online_trial(lab, folder, *EVERY, progress=Calls(advance), prediction_epochs=2, prediction_lr=1e-3)
    again = online_trial(lab, folder, *EVERY, prediction_epochs=2, prediction_lr=1e-3)
    assert weights(folder) == weights(tmp_path / "whole")
    assert again["metrics"] == whole["metrics"]
    for stage in ("hsk", "prediction"):
        assert again["stages"][stage]["last_loss"] == whole["stages"][stage]["last_loss"]


@pytest.mark.parametrize("name", ONLINE_ONLY)
@pytest.mark.parametrize("arm", ["spec", "none"])
def test_what_needs_the_teacher_is_refused_offline(lab: Lab, name: Compat, arm: str, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=rf"^compat {name} cannot come from a store: .+\. Give --teacher \(online\)"):
        lab.trial(tmp_path, arm=arm, compat=("zero_dropped", name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arm", ["none", "paper_none", "gold", "full", "shuffled"])
def test_switches_without_effect_on_an_arm_are_without_effect(lab: Lab, arm: str, tmp_path: Path) -> None:
    """These arms drop nothing along the width, or have no HSK stage."""
    results = [lab.trial(tmp_path / str(len(compat)), arm=arm, compat=compat) for compat in ((), ("zero_dropped",))]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert weights(tmp_path / "0") == weights(tmp_path / "1")
