"""The paper's study at the paper's shapes: every stage on official CoLA sentences, with random weights in hub layout.

Parameter counts, layer maps and kept values are compared with numbers and loops that are written out here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import save_old_checkpoint
from support.grid_lab import Ran, Recorder, recorded
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizerFast

from hskd.distill.projection import PROJECTION_FILE
from hskd.grid.changes import changed
from hskd.grid.executors import InProcess
from hskd.grid.run import run_grid
from hskd.grid.spec import load_grid
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.students.pretrained.settings import TinyBertSettings
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks.builtin.glue import GLUE_TASKS
from hskd.teachers.loading import Teacher
from hskd.trials.config import Machine
from hskd.trials.workspace import Workspace

HERE = Machine(dtype="fp32", device="cpu", threads=1, build_threads=1)
VOCABULARY = 30_522
TINYBERT4, WITH_W, ROSITA6 = 14_350_874, 14_591_258, 14_465_282
"""Number of parameters of the students with two labels; the second includes ``W``, which projects to 768 neurons."""
SENTENCES = {"train": 64, "dev": 32, "test": 8}
"""Sentences of each split; two batches for training."""
LOOKED_AT = 8
"""Sentences whose knowledge is compared with that of plain loops."""
PAPER = {  # epochs of the HSK stage, maximum length
    "cola": (30, 64),
    "mnli": (5, 128),
    "mrpc": (20, 128),
    "sst2": (10, 64),
    "stsb": (20, 128),
    "qqp": (5, 128),
    "qnli": (5, 128),
    "rte": (20, 128),
}
MAPS = {
    (4, 8): [0, 2, 4, 6, 8],
    (4, 10): [0, 2, 5, 8, 10],  # 2.5 and 7.5 round to the even neighbour
    (4, 12): [0, 3, 6, 9, 12],
    (6, 8): [0, 1, 3, 4, 5, 7, 8],
    (6, 10): [0, 2, 3, 5, 7, 8, 10],
    (6, 12): [0, 2, 4, 6, 8, 10, 12],
}
"""Student layers and ``L_top`` -> the teacher layer of each student layer."""


@pytest.mark.parametrize("task", PAPER)
def test_the_presets_are_the_papers_study(task: str) -> None:
    grid = load_grid(f"paper-{task}")
    assert (grid.task.name, grid.teacher.model, grid.seeds) == (task, "bert-base-uncased", 5)
    assert (grid.teacher.settings.epochs, grid.teacher.settings.lr) == (5, 2e-5)
    tiny, rosita = grid.students
    assert isinstance(tiny, TinyBertSettings) and tiny.checkpoint == "huawei-noah/TinyBERT_General_4L_312D"
    assert isinstance(rosita, RositaSettings) and rosita.importance_examples is None
    assert (rosita.layers, rosita.heads, rosita.ffn, rosita.rank) == (6, 2, 768, 128)
    told = GLUE_TASKS[task].task
    epochs, length = PAPER[task]
    assert (told.max_length, grid.task.max_length) == (length, None)
    training = grid.training
    assert (training.batch_size, training.hsk_lr, training.prediction_lr) == (32, 5e-5, 2e-5)
    arms = {"full": (epochs, 5), "spec": (epochs, 5), "none": (0, epochs + 5), "paper_none": (0, epochs)}
    for arm, expected in arms.items():
        assert training.model_copy(update={"arm": arm}).epochs(told.hsk_epochs) == expected
    assert grid.arms == ("paper_none",)
    specs = grid.specs()
    assert {spec.label for spec in specs} >= {"1l_all_all,depth.l_top=8", "2l_all_all,depth.l_top=10", "3l_all_all"}
    assert {spec.label for spec in specs} >= {"all_10t_all", "all_all_0.1w", "1l_10t_0.1w"}
    assert [spec.label for spec in grid.fulls()] == [
        "all_all_all,depth.l_top=8",
        "all_all_all,depth.l_top=10",
        "all_all_all",
    ]


@pytest.fixture(scope="module")
def cola(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first sentences of the official files."""
    folder = tmp_path_factory.mktemp("glue") / "CoLA"
    folder.mkdir()
    for split, count in SENTENCES.items():
        lines = (glue / "CoLA" / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.tsv").write_text("".join(lines[: count + (split == "test")]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer_of_bert(cola: Path, tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """Return a tokenizer with BERT's vocabulary size: words of the sentences, letters, and unused tokens."""
    sentences = [line.split("\t")[3].lower() for line in (cola / "train.tsv").read_text().splitlines()]
    words = sorted({word.strip(".,!?'\"") for sentence in sentences for word in sentence.split()} - {""})
    letters = [chr(code) for code in range(33, 127)]
    pieces = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]
    )
    unused = (f"[unused{i}]" for i in range(VOCABULARY - len(pieces)))
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join([*pieces, *unused]) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(file), do_lower_case=True)


@pytest.fixture(scope="module")
def ran(cola: Path, tokenizer_of_bert: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The preset with few examples and epochs: fine-tuned, pruned, extracted, and distilled in every arm."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(root / "bert-base-uncased")
    tokenizer_of_bert.save_pretrained(root / "bert-base-uncased")
    sizes = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
    whole = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "type_vocab_size": 2}
    save_old_checkpoint(root / "TinyBERT_General_4L_312D", tokenizer_of_bert, fit_dense=768, **sizes, **whole)
    grid = changed(
        load_grid("paper-cola"),
        {
            "task.data": str(cola),
            "teacher.model": str(root / "bert-base-uncased"),
            "students.0.checkpoint": str(root / "TinyBERT_General_4L_312D"),
            "task.max_length": 12,
            "teacher.settings.epochs": 1,
            "students.1.importance_examples": 32,
            "training.hsk_epochs": 1,
            "training.prediction_epochs": 1,
            "seeds": 1,
            "sweeps": [],
            "include": ["1l_10t_0.1w"],
        },
    )
    told = Recorder()
    table, progress = run_grid(grid, grid.trials(HERE), root / "out", root / "work", InProcess(), told)
    return Ran(root, table, progress, told)


@pytest.fixture(scope="module")
def teacher(ran: Ran) -> Teacher:
    [folder] = [path.parent for path in (ran.work / "teachers").glob("*/metrics.json")]
    return Teacher.load(str(folder), GLUE_TASKS["cola"].task)


def test_every_arm_ran_for_both_students(ran: Ran) -> None:
    assert not ran.progress.failed
    arms = {(row.student, row.arm, row.spec): row for row in ran.table.itertuples()}
    assert {*arms} == {
        (student, arm, spec)
        for student in ("tinybert-4l-312d-1200ffn", "rosita-6l-2h-768ffn-r128")
        for arm, spec in (("none", ""), ("paper_none", ""), ("full", "all_all_all"), ("spec", "1l_10t_0.1w"))
    }
    epochs = {arm: (row.hsk_epochs, row.prediction_epochs) for (_, arm, _), row in arms.items()}
    assert epochs == {"none": (0, 2), "paper_none": (0, 1), "full": (1, 1), "spec": (1, 1)}
    assert (ran.table["train_examples"] == SENTENCES["train"]).all()
    assert ran.table["score"].between(-1, 1).all()


def test_the_students_have_the_papers_parameters(ran: Ran) -> None:
    found = {}
    for result in recorded(ran.out):
        found[result["student_name"]] = result["student_parameters"]
    assert found == {"tinybert-4l-312d-1200ffn": TINYBERT4, "rosita-6l-2h-768ffn-r128": ROSITA6}
    made = {}
    for path in (ran.work / "students").glob("*/student.json"):
        record = json.loads(path.read_text())
        made[record["kind"]] = path.parent
        assert record["parameters"] == {"tinybert": TINYBERT4, "rosita": ROSITA6}[record["kind"]]
        model = AutoModelForSequenceClassification.from_pretrained(path.parent)
        assert sum(weight.numel() for weight in model.parameters()) == record["parameters"]
    w = load_file(made["tinybert"] / PROJECTION_FILE)
    assert TINYBERT4 + sum(tensor.numel() for tensor in w.values()) == WITH_W
    assert not (made["rosita"] / PROJECTION_FILE).exists()
    old = torch.load(ran.root / "TinyBERT_General_4L_312D" / "pytorch_model.bin", weights_only=True)
    assert torch.equal(w["weight"], old["fit_dense.weight"])


def test_w_is_trained_with_the_narrow_student_alone(ran: Ran) -> None:
    trained = {}
    for path in (ran.work / "trials").glob("*/result.json"):
        result = json.loads(path.read_text())
        trained[result["student_parameters"], result["settings"]["arm"]] = (
            path.parent / "student" / PROJECTION_FILE
        ).is_file()
    assert {key for key, has_w in trained.items() if has_w} == {(TINYBERT4, "full"), (TINYBERT4, "spec")}
    assert len(trained) == 8


def test_the_share_that_is_kept(ran: Ran) -> None:
    workspace = Workspace(ran.work, ran.progress.done)
    lengths = workspace.train.lengths
    assert lengths.max() == 12
    for row in ran.table[ran.table["arm"] == "spec"].itertuples():
        layers = 5 if "tinybert" in row.student else 7
        kept = sum(min(10, length - 1) for length in lengths) * 76  # [SEP] is not eligible; 10 % of 768 neurons
        assert row.kept_values == kept
        assert row.fraction == pytest.approx(kept / (lengths.sum() * layers * 768))
        assert row.fraction_padded == pytest.approx(kept / (len(lengths) * 12 * layers * 768))


@pytest.fixture(scope="module")
def looked_at(ran: Ran, teacher: Teacher) -> Store:
    """All states and attentions of the teacher for a few sentences."""
    workspace = Workspace(ran.work, ran.progress.done)
    layers = tuple(range(13))
    return extract(
        teacher, workspace.task, workspace.train.first(LOOKED_AT), Superset(layers, layers[1:]), ran.root / "superset"
    )


@pytest.mark.parametrize(("layers", "l_top"), MAPS)
def test_layer_maps(looked_at: Store, layers: int, l_top: int, tmp_path: Path) -> None:
    everything = HSKSpec.parse("all_all_all" if l_top == 12 else f"all_all_all,l_top={l_top}")
    store = derive(looked_at, everything, layers, tmp_path / "full")
    assert list(store.manifest.mapped) == MAPS[layers, l_top]
    assert list(store.manifest.layers) == list(range(layers + 1))
    two = HSKSpec.parse(f"2l_all_all,l_top={l_top}")
    top = derive(looked_at, two, layers, tmp_path / "two").manifest
    assert (list(top.layers), list(top.mapped)) == ([layers - 1, layers], MAPS[layers, l_top][-2:])


def ranked(scores: Sequence[float], allowed: Sequence[int], count: int) -> list[int]:
    """Return the places of the largest allowed scores; of equal scores, the first."""
    return sorted(sorted(allowed, key=lambda place: -scores[place])[:count])


def same(found: list[int], expected: list[int], scores: Sequence[float]) -> None:
    """Return whether the places are the same, or differ only where scores are equal to rounding."""
    assert len(found) == len(expected)
    differing = set(found) ^ set(expected)
    if differing:
        assert max(scores[place] for place in differing) - min(scores[place] for place in differing) < 1e-5


@pytest.mark.parametrize(("layers", "l_top"), [(4, 10), (6, 12)])
@pytest.mark.parametrize("k", [3, 10])
def test_what_is_kept_is_what_loops_find(
    looked_at: Store, teacher: Teacher, layers: int, l_top: int, k: int, tmp_path: Path
) -> None:
    spec = HSKSpec.parse(f"all_{k}t_0.1w,l_top={l_top},precision=fp32")
    store = derive(looked_at, spec, layers, tmp_path / "store")
    eager = AutoModelForSequenceClassification.from_pretrained(teacher.name, attn_implementation="eager").eval()
    cls_id, sep_id = teacher.tokenizer.cls_token_id, teacher.tokenizer.sep_token_id
    for row in range(len(store)):
        ids = store.token_ids([row]).tolist()
        assert (ids[0], ids[-1]) == (cls_id, sep_id)
        with torch.no_grad():
            output = eager(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        kept = store.kept([row])
        assert kept.neurons is not None
        eligible = [place for place, token in enumerate(ids) if token != sep_id]
        count = min(k, len(eligible))
        assert kept.counts.tolist() == [count]
        for student, mapped in enumerate(MAPS[layers, l_top]):
            attention = output.attentions[max(mapped, 1) - 1][0]
            importance = [sum(attention[head, 0, place].item() for head in range(12)) / 12 for place in range(len(ids))]
            positions = kept.positions[:, student].tolist()
            same(positions, ranked(importance, eligible, count), importance)
            for token, place in enumerate(positions):
                state = output.hidden_states[mapped][0, place].tolist()
                size = [abs(value) for value in state]
                neurons = kept.neurons[token, student].tolist()
                assert len(neurons) == math.floor(0.1 * 768) == 76
                same(neurons, ranked(size, range(768), 76), size)
                expected = torch.tensor([state[neuron] for neuron in neurons])
                torch.testing.assert_close(kept.values[token, student], expected, atol=1e-4, rtol=1e-4)
