"""Stores of a student with another tokenizer than the teacher's: extraction, derivation, training, also online."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert
from safetensors.torch import load_file, save_file
from support.kept import require_same_on_device
from support.tiny_tokenizers import byte_bpe, shifted, wordpiece
from transformers import BertTokenizerFast, RobertaConfig, RobertaForSequenceClassification
from transformers.utils import ModelOutput
from typer.testing import CliRunner

from hskd.cli.app import app
from hskd.distill.source import OnlineSource, StoreSource
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.hashing import file_sha256
from hskd.selectors import ExampleScores
from hskd.selectors.examples import RandomExamples
from hskd.spec import HSKSpec
from hskd.store.amount import measure
from hskd.store.derive import derive
from hskd.store.examples import store_examples
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.store_format.manifest import Manifest
from hskd.tasks import Task, TokenizedSplit, load_task, tokenize
from hskd.tasks.alignment import align
from hskd.teachers.loading import Teacher
from hskd.trials.config import TaskPlan
from hskd.trials.data import task_examples

SUPERSET = Superset(layers=(0, 1, 2, 3), attention_layers=(1, 2, 3), received_layers=(1, 2, 3))
SPECS = (
    "2l_3t_0.5w",
    "2l_3t_0.5w,length=attention",
    "all_all_all",
    "all_all_0.25w,width=random",
    "1l_2t_all,length=pool",
    "1l_1t_all,length=cls",
    "2l_2t_0.25w,length=left,precision=int8",
    "2l_2t_all,length=random",
    "2l_3t_all,length=norm",
    "2l_3t_all,length=received",
)


@dataclass(frozen=True, eq=False)
class Two:
    """A byte-level RoBERTa as the teacher, and the examples in WordPiece, aligned with it."""

    root: Path
    task: Task
    teacher: Teacher
    split: TokenizedSplit

    @property
    def superset(self) -> Store:
        return Store.open(self.root / "superset")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast, data_folder: Path) -> Two:
    root = tmp_path_factory.mktemp("two")
    # "fi ##lm" and "f ilm", "min ##ute" and "mi nute": only the ends of the words coincide.
    bytes_tokenizer = byte_bpe(" f", "ilm", " mi", "nute", " and", " the", "lo", "ved", " bri", "ght", " bor")
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word not in ("film", "minute")]
    pieces = wordpiece(*words, "fi", "##lm", "min", "##ute", *"0123456789", *(f"##{digit}" for digit in "0123456789"))
    bytes_tokenizer.save_pretrained(root / "teacher")
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(bytes_tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=140,
        initializer_range=0.3,
        pad_token_id=1,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    RobertaForSequenceClassification(config).save_pretrained(root / "teacher")
    make_bert(seed=1, hidden_size=16, num_attention_heads=2, intermediate_size=24).save_pretrained(root / "student")
    pieces.save_pretrained(root / "student")
    plan = TaskPlan(name="custom", data=str(data_folder), text_columns=("sentence",), label_column="mood")
    examples = task_examples(plan, str(root / "student"), root / "work", teacher=str(root / "teacher"))
    teacher = Teacher.load(str(root / "teacher"), examples.task)
    extract(teacher, examples.task, examples.train, SUPERSET, root / "superset")
    return Two(root, examples.task, teacher, examples.train)


def alone(two: Two, example: int) -> ModelOutput:
    """Return the outputs of the teacher, run by itself on its own tokens of one example."""
    assert two.split.aligned is not None
    batch = two.split.aligned.teacher.collate([example])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    two.teacher.model.set_attn_implementation("eager")  # returns attention
    try:
        with torch.no_grad():
            output: ModelOutput = two.teacher.model(**inputs, output_hidden_states=True, output_attentions=True)
    finally:
        two.teacher.model.set_attn_implementation("sdpa")
    return output


def targets_of(two: Two, example: int) -> list[tuple[int, int, list[int]]]:
    """Return position, id and the teacher's tokens of each student token of an example that has a target."""
    aligned, first, end = two.split.aligned, two.split.offsets[example], two.split.offsets[example + 1]
    assert aligned is not None
    targets = [
        (
            token - first,
            int(two.split.input_ids[token]),
            aligned.members[aligned.starts[token] : aligned.starts[token + 1]],
        )
        for token in range(first, end)
    ]
    return [(position, token, members.tolist()) for position, token, members in targets if len(members)]


def test_the_alignment_is_of_both_kinds(two: Two) -> None:
    assert two.split.aligned is not None
    counts = two.split.aligned.counts
    assert (counts == 1).any() and (counts > 1).any()


def test_the_manifest_says_how_many_tokens_have_a_target(two: Two) -> None:
    origin = two.superset.manifest.origin
    assert two.split.aligned is not None and origin.alignment is not None
    counts = two.split.aligned.counts
    assert origin.tokenizer == two.split.aligned.student_tokenizer != two.teacher.tokenizer_fingerprint
    note = origin.alignment
    assert note.teacher_tokenizer == two.teacher.tokenizer_fingerprint
    assert (note.tokens, note.with_target) == (len(counts), int((counts > 0).sum()))
    assert note.means == int((counts > 1).sum())
    assert sum(shard.kept for shard in two.superset.manifest.shards) == note.with_target
    two.superset.verify()


def test_the_superset_holds_the_teachers_states_of_the_aligned_tokens(two: Two) -> None:
    """The reference is computed by the teacher alone, one example at a time."""
    states = two.superset.states(np.arange(len(two.superset)))
    row = 0
    for example in range(len(two.split)):
        output = alone(two, example)
        for position, token, members in targets_of(two, example):
            for layer in SUPERSET.layers:
                expected = output.hidden_states[layer][0, members].mean(0)
                torch.testing.assert_close(states.hidden[layer][row], expected, atol=2e-5, rtol=1e-4)
            for layer in SUPERSET.received_layers:
                received = output.attentions[layer - 1][0].mean(0).mean(0)  # over heads, then over the paying tokens
                assert states.received[layer][row] == pytest.approx(float(received[members].mean()), rel=1e-4)
            assert states.tokens.input_ids[row] == token
            assert states.tokens.position[row] == position
            row += 1
    assert row == len(states.tokens.input_ids)


def test_tokens_are_ranked_by_the_attention_that_theirs_of_the_teacher_receive(two: Two, tmp_path: Path) -> None:
    """A token's score is the mean over the teacher's tokens that it learns from. ``[SEP]`` is never kept."""
    spec = HSKSpec.parse("2l_3t_all,length=received,precision=fp32")
    store = derive(two.superset, spec, 2, tmp_path / "store")
    kept = StoreSource(store, two.split, 2).kept(two.split.collate(np.arange(len(two.split))))
    row = several = 0
    for example, count in enumerate(kept.counts.tolist()):
        output = alone(two, example)
        candidates = [target for target in targets_of(two, example) if target[1] != two.split.sep_id]
        assert count == min(3, len(candidates))
        for place, layer in enumerate(spec.layers(store.manifest.shape(2))):
            received = output.attentions[max(layer.teacher, 1) - 1][0].mean(0).mean(0)
            best = sorted(candidates, key=lambda target: -float(received[target[2]].mean()))[:3]
            for rank, (position, _, members) in enumerate(sorted(best)):
                assert kept.positions[row + rank, place] == position
                expected = output.hidden_states[layer.teacher][0, members].mean(0)
                torch.testing.assert_close(kept.values[row + rank, place], expected, atol=2e-5, rtol=1e-4)
                several += len(members) > 1
        row += count
    assert row == len(kept.positions) and several, "some kept tokens are means"


@pytest.mark.parametrize("examples", ["random", "disagree", "entropy"])
def test_a_share_of_the_examples(two: Two, tmp_path: Path, examples: str) -> None:
    """The choice is of the teacher's own outputs and the examples' ids, and it does not depend on the tokenizers."""
    spec = HSKSpec.parse(f"2l_2t_all_0.25e,length=left,precision=fp32,examples={examples}")
    superset = extract(two.teacher, two.task, two.split, replace(SUPERSET, gold_losses=True), tmp_path / "superset")
    store = derive(superset, spec, 2, tmp_path / "store")
    outputs = [alone(two, example) for example in range(len(two.split))]
    logs = torch.cat([output.logits for output in outputs]).double().log_softmax(1)
    assert two.split.labels is not None and two.split.aligned is not None
    scores = {
        "random": torch.from_numpy(RandomExamples(e=0.25).scores(ExampleScores(two.split.aligned.teacher.ids))),
        "disagree": -logs[torch.arange(len(logs)), torch.from_numpy(two.split.labels)],
        "entropy": -(logs.exp() * logs).sum(1),
    }
    rows = sorted(scores[examples].argsort(descending=True)[: len(two.split) // 4].tolist())
    online = OnlineSource(two.teacher, two.split.sep_id, spec, 2, aligned=two.split)
    assert store.rows_with_hsk.tolist() == online.rows_with_hsk(two.split).tolist() == rows
    few = two.split.take(np.array(rows))
    batch = few.collate(np.arange(len(few)))
    kept, now = StoreSource(store, few, 2).kept(batch), online.kept(batch)
    torch.testing.assert_close(kept.positions, now.positions)
    torch.testing.assert_close(kept.values, now.values, atol=2e-5, rtol=1e-4)
    first = [targets_of(two, row)[:2] for row in rows]
    assert kept.positions[:, 0].tolist() == [position for targets in first for position, _, _ in targets]
    for place, layer in enumerate(spec.layers(store.manifest.shape(2))):
        expected = [
            outputs[row].hidden_states[layer.teacher][0, members].mean(0)
            for row, targets in zip(rows, first, strict=True)
            for _, _, members in targets
        ]
        torch.testing.assert_close(kept.values[:, place], torch.stack(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("text", SPECS)
def test_online_equals_offline(two: Two, text: str) -> None:
    spec = HSKSpec.parse(text)
    store = derive(two.superset, spec, 2, two.root / "derived" / spec.fingerprint)
    offline = StoreSource(store, two.split, 2)
    online = OnlineSource(two.teacher, two.split.sep_id, spec, 2, aligned=two.split)
    online.fit(two.split)
    require_same_on_device(store)
    batch = two.split.collate(np.array([5, 0, 17, 3]))
    kept, now = offline.kept(batch), online.kept(batch)
    torch.testing.assert_close(kept.counts, now.counts)
    if spec.length.selector != "pool":  # the members of a pool decide its position
        torch.testing.assert_close(kept.positions, now.positions)
    torch.testing.assert_close(kept.values, now.values, atol=5e-3, rtol=5e-3)
    if kept.members is not None:
        assert now.members is not None
        torch.testing.assert_close(kept.members.position, now.members.position)
    torch.testing.assert_close(offline.targets(batch), online.targets(batch), atol=1e-4, rtol=1e-4)
    amount = measure(
        spec,
        two.split.with_targets,
        store.manifest.shape(2),
        two.split.max_length,
        two.task.head.target(),
        aligned_tokens=len(two.split.input_ids),
    )
    assert store.manifest.bytes >= amount.bytes_per_example * len(store) > 0.5 * store.manifest.bytes
    if text == "all_all_all":
        assert amount.fraction == 1


def test_tokens_without_a_target_are_never_kept(two: Two, tmp_path: Path) -> None:
    """Half of the targets are removed at random."""
    aligned = two.split.aligned
    assert aligned is not None
    keep = np.random.default_rng(0).random(len(aligned.counts)) < 0.5
    keep[two.split.offsets[:-1]] = True  # [CLS]
    counts = np.where(keep, aligned.counts, 0)
    members = aligned.members[np.repeat(keep, aligned.counts)]
    fewer = replace(
        two.split, aligned=replace(aligned, starts=np.concatenate([[0], np.cumsum(counts)]), members=members)
    )
    superset = extract(two.teacher, two.task, fewer, SUPERSET, tmp_path / "superset")
    allowed = counts > 0
    for text in SPECS:
        spec = HSKSpec.parse(text)
        store = derive(superset, spec, 2, tmp_path / spec.fingerprint)
        kept = StoreSource(store, fewer, 2).kept(fewer.collate(np.arange(len(fewer))))
        positions, example = kept.positions, kept.example
        if kept.members is not None:
            positions, example = kept.members.position[:, None], kept.example[kept.members.kept]
        assert allowed[fewer.offsets[example.numpy()][:, None] + positions.numpy()].all(), text
    everything = derive(superset, HSKSpec(), 2, tmp_path / HSKSpec().fingerprint)
    assert int(everything.counts.sum()) == int(allowed.sum())


def test_same_pieces_are_as_with_the_same_tokenizer(
    two: Two, tmp_path: Path, tokenizer: BertTokenizerFast, data_folder: Path
) -> None:
    """The teacher's ids are the student's + 4, and the store equals that of the teacher's own tokens."""
    data = load_task("custom", str(data_folder), ["sentence"], "mood")
    mpnet = shifted(tokenizer)
    mpnet.save_pretrained(tmp_path / "teacher")
    make_bert(vocab_size=len(mpnet), num_hidden_layers=3).save_pretrained(tmp_path / "teacher")
    teacher = Teacher.load(str(tmp_path / "teacher"), data.task)
    own = tokenize(data, teacher.tokenizer, tmp_path / "tokens")
    split = align(data, tokenize(data, tokenizer, tmp_path / "tokens"), own, (tokenizer, mpnet), tmp_path / "tokens")
    assert split["train"].aligned is not None and split["train"].aligned.share == 1
    aligned = extract(teacher, data.task, split["train"], SUPERSET, tmp_path / "aligned")
    plain = extract(teacher, data.task, own["train"], SUPERSET, tmp_path / "plain")
    rows = np.arange(len(plain))
    for layer in SUPERSET.layers:
        torch.testing.assert_close(aligned.states(rows).hidden[layer], plain.states(rows).hidden[layer], atol=0, rtol=0)
    np.testing.assert_array_equal(aligned.states(rows).attention[2], plain.states(rows).attention[2])


def test_a_store_grows_and_resumes(two: Two, tmp_path: Path) -> None:
    few = two.split.take(np.arange(20))
    options = ExtractOptions(shard_bytes=20_000)
    old = extract(two.teacher, two.task, few, SUPERSET, tmp_path / "few", options)
    grown = extract(
        two.teacher, two.task, two.split, SUPERSET, tmp_path / "grown", ExtractOptions(extend=old, shard_bytes=20_000)
    )
    rows, order = np.arange(len(grown)), two.superset.rows(grown.example_ids)
    for layer in SUPERSET.layers:
        torch.testing.assert_close(
            grown.states(rows).hidden[layer], two.superset.states(order).hidden[layer], atol=1e-5, rtol=1e-5
        )
    plain = replace(two.split.aligned.teacher, labels=None)  # type: ignore[union-attr]
    with pytest.raises(MismatchError):
        extract(two.teacher, two.task, plain, SUPERSET, tmp_path / "plain", ExtractOptions(extend=old))


def test_a_store_alone_tells_its_examples(two: Two) -> None:
    split = store_examples(two.superset)
    assert split.fingerprint == two.split.fingerprint
    np.testing.assert_array_equal(split.input_ids, two.split.input_ids)


# ---- errors


def test_the_teacher_of_another_tokenizer_is_refused(two: Two, tmp_path: Path) -> None:
    wrong = replace(two.split, aligned=replace(two.split.aligned, teacher_tokenizer="0" * 16))  # type: ignore[type-var]
    with pytest.raises(MismatchError, match="aligned with the tokens of another tokenizer"):
        extract(two.teacher, two.task, wrong, SUPERSET, tmp_path / "store")


def test_other_tokens_are_refused(two: Two) -> None:
    assert two.split.aligned is not None
    with pytest.raises(MismatchError, match="other tokens here than in the store"):
        two.superset.require_tokens(two.split.aligned.teacher.tokens)


def test_a_shard_whose_targets_were_changed_is_refused(two: Two, tmp_path: Path) -> None:
    """The checksum fits, as after a deliberate manipulation."""
    store = extract(two.teacher, two.task, two.split, SUPERSET, tmp_path / "store")
    entry = store.manifest.shards[0]
    path = store.folder / entry.file
    arrays = load_file(path)
    arrays["has_target"] = 1 - arrays["has_target"]
    save_file(arrays, path)
    changed = entry.model_copy(update={"sha256": file_sha256(path), "bytes": path.stat().st_size})
    store.manifest.model_copy(update={"shards": (changed,)}).write(store.folder)
    with pytest.raises(CorruptionError, match="its count of tokens with a target is wrong"):
        Store.open(store.folder).states(np.arange(3))


def test_a_manifest_that_counts_wrongly_is_refused(two: Two, tmp_path: Path) -> None:
    manifest = two.superset.manifest
    note = manifest.origin.alignment
    assert note is not None
    origin = manifest.origin.model_copy(update={"alignment": note.model_copy(update={"with_target": 3})})
    tmp_path.joinpath("store").mkdir()
    manifest.model_copy(update={"origin": origin}).write(tmp_path / "store")
    with pytest.raises(CorruptionError, match="says that 3 of"):
        Manifest.read(tmp_path / "store")


def test_switches_of_the_paper_need_one_tokenizer(two: Two) -> None:
    from hskd.paper.departures import Departures

    with pytest.raises(HskdError, match="compat teacher_dropout: needs a teacher with the student's tokenizer"):
        Departures(("teacher_dropout",)).online_source(two.teacher, two.split.sep_id, None, 2, "fp32", two.split)


# ---- commands


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def test_commands_from_a_store_and_online(two: Two, data_folder: Path, tmp_path: Path) -> None:
    task = ("--task", "custom", "--data", data_folder, "--text-columns", "sentence", "--label-column", "mood")
    task += ("--work", tmp_path / "work")
    machine = ("--dtype", "fp32", "--device", "cpu", "--threads", "1")
    epochs = ("--hsk-epochs", 1, "--prediction-epochs", 1, "--spec", "2l_3t_0.5w")
    student = tmp_path / "student"
    made = ("--kind", "tinybert", "--checkpoint", two.root / "student", "--out", student)
    run("student", *task, "--teacher", two.root / "teacher", *made, *machine)
    extracted = ("--teacher", two.root / "teacher", "--student-tokenizer", student, "--precision", "fp32")
    run("store", "extract", *task, *extracted, "--out", tmp_path / "superset", *machine)
    assert "tokens with a target" in run("store", "inspect", tmp_path / "superset")
    given = ("--student", student, *epochs, *machine)
    offline = run("distill", *task, "--store", tmp_path / "superset", *given, "--out", tmp_path / "offline")
    online = run("distill", *task, "--teacher", two.root / "teacher", *given, "--out", tmp_path / "online")
    amounts = [[line for line in out.splitlines() if "% of full HSK" in line] for out in (offline, online)]
    assert amounts[0] == amounts[1] and len(amounts[0]) == 1  # equal in values and in bytes
    scores = [line for line in offline.splitlines() if line.startswith(("dev", "test"))]
    assert scores == [line for line in online.splitlines() if line.startswith(("dev", "test"))]
    weights = [load_file(tmp_path / name / "student" / "model.safetensors") for name in ("offline", "online")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-3, rtol=1e-2)
    # A store in the teacher's own tokens is rejected, and the message names the right command.
    run("store", "extract", *task, "--teacher", two.root / "teacher", "--out", tmp_path / "plain", *machine)
    result = CliRunner().invoke(
        app, [str(part) for part in ("distill", *task, "--store", tmp_path / "plain", *given, "--out", tmp_path / "no")]
    )
    assert result.exit_code != 0 and "--student-tokenizer" in str(result.exception)
