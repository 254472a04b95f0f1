"""Batches of few shapes give the losses of batches as wide as their longest example.

A GPU captures what runs here, on a CPU or on the device ``meta``, whose tensors have shapes and no values: reading one
back, which a capture forbids, is an error there.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.calls import Calls
from support.distill_lab import Lab, arguments, losses
from support.kept import CPU

from hskd.benchmarks.data import draw_lengths
from hskd.distill import fixed as fixed_module
from hskd.distill.dataset import DistillationDataset
from hskd.distill.losses import hsk_loss
from hskd.distill.source import KnowledgeSource, OnlineSource, ShuffledSource, StoreSource
from hskd.distill.trainer import Criterion, HSKModule, HSKTrainer, PredictionTrainer
from hskd.errors import HskdError
from hskd.fast.capture import HeldAdamW
from hskd.runtime import RunOptions
from hskd.selectors import PRECISION, WIDTH
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.on_device import PlacedStore
from hskd.store.reader import Store
from hskd.tasks import BatchDataset, bucketed_batches, model_inputs
from hskd.tasks.fixed import PlacedSplit, few_widths, in_few_shapes
from hskd.teachers.loading import Teacher
from hskd.training import GoldTrainer, Predictor, StageTrainer

META = torch.device("meta")
SPECS = [
    *(f"2l_3t_0.25w,precision={name}" for name in PRECISION),
    *(f"2l_3t_0.25w,width={name}" for name in WIDTH),
    "2l_3t_0.04w",
    "all_all_all",
    *(f"2l_2t_0.25w,length={name}" for name in ("left", "random", "norm")),
    "2l_2t_0.25w,length=pool",
    "2l_3t_0.25w_0.25e",
    "2l_2t_0.25w_0.25e,length=pool,width=pca",
]


def made(lab: Lab, folder: Path, text: str) -> Store:
    return derive(lab.superset, HSKSpec.parse(text), 2, folder / "store")


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 4))
def test_few_widths_are_the_best(longest: list[int], count: int) -> None:
    def tokens(widths: tuple[int, ...]) -> int:
        return sum(min(width for width in widths if width >= need) for need in longest)

    needed = sorted(set(longest))
    choices = itertools.combinations(needed, min(count, len(needed)))
    widths = few_widths(longest, count)
    assert len(widths) <= count and list(widths) == sorted(set(widths))
    assert tokens(widths) == min(tokens(choice) for choice in choices if choice[-1] == needed[-1])


@pytest.mark.parametrize(("count", "least", "most"), [(4, 0.14, 0.38), (8, 0.07, 0.14)])
def test_how_many_more_tokens_few_widths_have(count: int, least: float, most: float) -> None:
    """The figures of docs/benchmarks.md and of ``WIDTHS``."""
    shares = []
    for task in ("cola", "sst2", "rte"):
        lengths = np.random.default_rng(0).permutation(draw_lengths(task, 20_000))
        longest = [lengths[rows].max() for epoch in range(3) for rows in bucketed_batches(lengths, 32, 0, epoch)]
        widths = np.array(few_widths(longest, count))
        shares.append(widths[np.searchsorted(widths, longest)].sum() / np.sum(longest) - 1)
    assert (round(min(shares), 2), round(max(shares), 2)) == (least, most)


def test_a_batch_is_that_of_the_split_and_pads(lab: Lab) -> None:
    rows = np.array([5, 0, 63, 5, 17])
    expected = lab.train.collate(rows)
    longest = expected["input_ids"].shape[1]
    batch = PlacedSplit(lab.train, CPU).batch(torch.from_numpy(rows), longest + 3)
    assert batch.keys() == expected.keys() - {"example_ids"}
    for name, values in batch.items():
        assert values.dtype == expected[name].dtype and torch.equal(values[..., :longest], expected[name]), name
    assert (batch["input_ids"][:, longest:] == lab.train.pad_id).all() and not batch["attention_mask"][
        :, longest:
    ].any()


@pytest.mark.parametrize("text", SPECS)
def test_losses_of_every_spec(lab: Lab, tmp_path: Path, text: str) -> None:
    """Knowledge with pads gives the loss of the same knowledge without, and can be gathered without a wait."""
    store = made(lab, tmp_path, text)
    rows = store.rows_with_hsk[[3, 11, 4, 9, 3]]
    placed, at = PlacedStore(store, CPU), torch.from_numpy(rows)
    most, averaged = placed.most(rows) + 1, placed.averaged(rows) + 1
    kept, expected = placed.kept_in_shape(at, most, averaged), store.kept(rows)
    states = [torch.randn(len(rows), int(store.lengths.max()) + 1, 32) for _ in range(3)]
    assert hsk_loss(states, kept).item() == pytest.approx(hsk_loss(states, expected).item(), rel=1e-5)
    assert torch.equal(kept.real.view(len(rows), -1).sum(1), expected.counts)  # type: ignore[union-attr]
    assert torch.equal(kept.values[kept.real], expected.values)
    one, other = placed.targets_in_shape(at), store.targets(rows)
    assert one.dtype == other.dtype and torch.equal(one, other)

    nothing = PlacedStore(store, META).kept_in_shape(at.to(META), most, averaged)
    assert nothing.values.shape == kept.values.shape and nothing.values.device == META


def test_outputs_per_word_are_refused(lab: Lab, tmp_path: Path) -> None:
    placed = PlacedStore(made(lab, tmp_path, "1l_2t_0.25w"), CPU)
    placed._words = torch.arange(3)
    with pytest.raises(HskdError, match="per word cannot be gathered in a fixed shape"):
        placed.targets_in_shape(torch.arange(2))


def both(lab: Lab, folder: Path, source: KnowledgeSource, stage: str, **options: Any) -> list[StageTrainer]:
    """Return two trainers of a stage, without and with capture."""
    trainers: list[StageTrainer] = []
    for capture in (False, True):
        args = arguments(folder, epochs=2, batch_size=12, capture=capture, max_grad_norm=0.5, **options)
        if stage == "hsk":
            trainers.append(HSKTrainer(HSKModule(lab.student("narrow"), 32), args, lab.train, source))
        elif stage == "prediction":
            trainers.append(PredictionTrainer(lab.classifier("narrow"), args, lab.train, source))
        else:
            trainers.append(GoldTrainer(lab.classifier("narrow"), args, lab.train))
    assert [trainer.captures for trainer in trainers] == [False, True]
    return trainers


def require_equal(plain: StageTrainer, captured: StageTrainer) -> None:
    """Check that two trainers give the same losses and weights, up to rounding, and that training changed them."""
    expected = losses(plain)
    assert len(set(expected)) > 6
    assert losses(captured) == pytest.approx(expected, rel=1e-4)
    for name, weight in captured.model.state_dict().items():
        if name.endswith("key.bias"):  # It has no effect, and AdamW follows the signs of its rounding errors.
            continue
        torch.testing.assert_close(weight, plain.model.state_dict()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("stage", ["hsk", "prediction", "gold"])
def test_every_stage_trains_alike(lab: Lab, tmp_path: Path, stage: str, schedule: str) -> None:
    source = StoreSource(made(lab, tmp_path, "2l_3t_0.5w"), lab.train, 2, CPU)
    require_equal(*both(lab, tmp_path, source, stage, schedule=schedule, warmup_steps=3))


ONLINE = [
    "all_all_all",
    "2l_all_0.5w",
    "2l_all_0.25w,width=pca,precision=int8",
    "2l_3t_0.25w",
    "all_40t_all,length=attention",
    "2l_2t_0.25w,width=projection",
]


@pytest.mark.parametrize("text", ONLINE)
def test_a_teacher_that_runs_on_every_batch_trains_alike(lab: Lab, tmp_path: Path, text: str) -> None:
    require_equal(*both(lab, tmp_path, lab.online(HSKSpec.parse(text)), "hsk"))


def test_a_teacher_of_the_prediction_stage_trains_alike(lab: Lab, tmp_path: Path) -> None:
    require_equal(*both(lab, tmp_path, lab.online(None), "prediction"))


@pytest.mark.parametrize("text", ["2l_3t_0.5w", "all_all_all"])
def test_shuffled_knowledge_trains_alike(lab: Lab, tmp_path: Path, text: str) -> None:
    source = ShuffledSource(made(lab, tmp_path, text), lab.train, 2, 0, CPU)
    require_equal(*both(lab, tmp_path, source, "hsk"))


def test_shuffled_averages_are_of_tokens_inside_the_example(lab: Lab, tmp_path: Path) -> None:
    """The student's averages end where its example ends, in both forms of the knowledge."""
    store = made(lab, tmp_path, "2l_4t_0.5w,length=pool")
    order = np.argsort(lab.train.lengths)
    source = StoreSource(store, lab.train, 2, CPU)
    batch, longer = lab.train.collate(order[:6]), lab.train.ids[order[-6:]]
    lengths = batch["attention_mask"].sum(1)
    kept = source.kept_of(longer, batch)
    within = kept.within(lengths)
    assert 0 < len(within.positions) <= len(kept.positions) and within.members is not None
    assert (kept.members.position >= lengths[kept.example[kept.members.kept]]).any()  # type: ignore[union-attr]
    inside = within.members.kept < len(within.positions)
    example = within.example[within.members.kept[inside]]
    assert (within.members.position[inside] < lengths[example]).all()
    assert within.members.kept[inside].unique().tolist() == list(range(len(within.positions)))

    placed = PlacedStore(store, CPU)
    rows = store.rows(longer)
    padded = placed.kept_in_shape(torch.from_numpy(rows), placed.most(rows), placed.averaged(rows)).within(lengths)
    states = [torch.randn(*batch["input_ids"].shape, 32) for _ in range(3)]
    assert hsk_loss(states, padded).item() == pytest.approx(hsk_loss(states, within).item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["standardised", "cosine", "gram"])
def test_every_loss_of_the_hsk_stage(lab: Lab, tmp_path: Path, loss: Any) -> None:
    source = StoreSource(made(lab, tmp_path, "2l_3t_0.25w,width=pca"), lab.train, 2, CPU)
    fixed = in_few_shapes(DistillationDataset(lab.train, source), 12, 0, CPU)
    assert fixed is not None
    rows = list(range(7, 19))
    spread = torch.rand(2, 8) + 0.5 if loss == "standardised" else None
    module = HSKModule(lab.student("narrow"), 32, criterion=Criterion(loss, spread))
    plain, padded = (
        DistillationDataset(lab.train, source).__getitems__(rows),
        fixed.complete(**fixed.__getitems__(rows)),
    )
    values = [module(batch["kept"], padded=True, **model_inputs(batch)).item() for batch in (plain, padded)]
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_a_step_reads_nothing_back(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering, loss, gradients and clipping run on the device ``meta``, offline and online."""
    monkeypatch.setattr(fixed_module, "autocast", lambda *given: nullcontext())  # There is none for this device.
    spec = HSKSpec.parse("2l_3t_0.25w")
    teacher = Teacher.load(str(lab.root / "teacher"), lab.task)
    teacher.model.to(META)
    sources = [
        StoreSource(made(lab, tmp_path, spec.label), lab.train, 2, META),
        OnlineSource(teacher, lab.train.sep_id, spec, 2),
    ]
    for source in sources:
        module = HSKModule(lab.student("narrow", dropout=0.1), 32).to(META)
        fixed = in_few_shapes(DistillationDataset(lab.train, source), 12, 0, META)
        assert fixed is not None
        batch = fixed.complete(torch.arange(12, device=META), fixed.widths[-1])
        loss = module(batch["kept"], padded=True, **model_inputs(batch))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        assert loss.shape == norm.shape == () and loss.device == META


@pytest.mark.parametrize("text", ["1l_2t_0.25w,depth=random", "2l_3t_0.25w,length=norm"])
def test_what_varies_in_shape_is_not_captured(lab: Lab, tmp_path: Path, text: str) -> None:
    """Layers that are drawn for each batch, a store that is read from disk, tokens that are ranked on the CPU."""
    spec = HSKSpec.parse(text)
    sources = [lab.online(spec), StoreSource(made(lab, tmp_path, text), lab.train, 2)]
    if spec.depth.draws:
        sources.append(StoreSource(made(lab, tmp_path, text), lab.train, 2, CPU))
    for source in sources:
        trainer = HSKTrainer(HSKModule(lab.student("narrow"), 32), arguments(tmp_path, capture=True), lab.train, source)
        assert not trainer.captures and type(trainer.dataset) is DistillationDataset


def test_accumulated_batches_are_not_captured(lab: Lab, tmp_path: Path) -> None:
    trainer = GoldTrainer(lab.classifier("narrow"), arguments(tmp_path, capture=True, accumulate=2), lab.train)
    assert not trainer.captures and type(trainer.dataset) is BatchDataset


def test_a_captured_stage_resumes(lab: Lab, tmp_path: Path) -> None:
    """A checkpoint holds the optimizer with its learning rate, and the steps after it are those of one run."""
    source = StoreSource(made(lab, tmp_path, "2l_3t_0.5w"), lab.train, 2, CPU)

    def trainer(epochs: int, folder: Path) -> StageTrainer:
        args = arguments(
            folder, epochs=epochs, capture=True, checkpoints=True, schedule="constant_with_warmup", warmup_steps=6
        )
        return HSKTrainer(HSKModule(lab.student("narrow"), 32), args, lab.train, source)

    whole = trainer(2, tmp_path / "whole")
    expected = losses(whole)
    losses(trainer(1, tmp_path / "parts"))
    resumed = trainer(2, tmp_path / "parts")
    assert losses(resumed) == expected
    assert isinstance(resumed.optimizer.optimizer, HeldAdamW)
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, whole.model.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_the_stage(lab: Lab, tmp_path: Path) -> None:
    source = StoreSource(made(lab, tmp_path, "2l_3t_0.5w"), lab.train, 2, CPU)
    module = HSKModule(lab.student("narrow"), 32)
    with torch.no_grad():
        module.projection.weight[0, 0] = torch.inf  # type: ignore[union-attr]
    with pytest.raises(HskdError, match=r"the loss is (inf|nan) at step 1"):
        HSKTrainer(module, arguments(tmp_path, capture=True), lab.train, source).run()


def test_outputs_are_those_of_batches_as_wide_as_their_longest_example(lab: Lab) -> None:
    module = lab.classifier("rosita", dropout=0.1)
    plain, captured = (Predictor(module, "fp32", capture) for capture in (False, True))
    for split in (lab.splits["dev"], lab.train, lab.splits["dev"]):
        np.testing.assert_allclose(captured.rows(split, 5), plain.rows(split, 5), rtol=1e-5, atol=1e-6)
    assert len(captured._captured) == 2 and module.training
    assert captured.score(lab.train) == plain.score(lab.train)


def test_a_trial_records_that_its_steps_were_captured(lab: Lab, tmp_path: Path) -> None:
    store, lines = made(lab, tmp_path, "2l_3t_0.5w"), list[str]()
    options = RunOptions("fp32", CPU, capture=True)
    told: dict[str, Any] = {"run": options, "progress": Calls(say=lines.append)}
    placed = StoreSource(store, lab.train, 2, CPU)
    result = lab.trial(tmp_path / "captured", wrap=lambda source: placed, **told)
    assert result["capture"] is True and not any("not captured" in line for line in lines)
    lab.trial(tmp_path / "not", **told)
    assert [line for line in lines if "not captured" in line] == [
        f"{stage}: steps are not captured, because the shapes of its batches vary"
        for stage in ("HSK stage", "prediction stage")
    ]
    assert "capture" not in lab.trial(tmp_path / "plain")
