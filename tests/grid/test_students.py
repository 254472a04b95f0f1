"""Grids with both kinds of students: their origins, each made once, and the files of their trials."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_bert
from grid.conftest import Cli, Write
from safetensors.torch import load_file
from support.checkpoints import save_old_checkpoint
from support.grid_lab import OPTIONS, Ran, Recorder, recorded, run, trials_of
from support.tiny_tokenizers import wordpiece
from transformers import BertTokenizerFast

from hskd.artifact_gc import artifacts
from hskd.distill.projection import PROJECTION_FILE
from hskd.errors import HskdError
from hskd.trials.workspace import Workspace

ROSITA = "{layers: 2, heads: 2, ffn: 24, importance_examples: 32}"
NAMES = ["rosita-2l-2h-24ffn", "tinybert-2l-16d-24ffn", "tinybert-2l-8d-16ffn-general"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast) -> Path:
    """A published checkpoint with a ``fit_dense``. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_old_checkpoint(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unlabelled sentences."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the story is moving and the film is warm and bright\n" * 12, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def origins(checkpoint: Path, text: Path) -> list[str]:
    """A student of every origin."""
    general = f'{{layers: 2, width: 8, heads: 2, ffn: 16, text: "{text}", chunk_tokens: 12, epochs: 1}}'
    return [ROSITA, f'{{kind: tinybert, checkpoint: "{checkpoint}"}}', f"{{kind: tinybert, general: {general}}}"]


@pytest.fixture(scope="module")
def students(origins: list[str]) -> str:
    """A line of the grid with all students."""
    return f"students: [{', '.join(origins)}]"


@pytest.fixture(scope="module")
def file(write: Write, students: str) -> Path:
    """The grid: none, full and one spec for each student."""
    return write(students, "seeds: 1", "sweeps: [{n: [1], k: [1], w: [0.25]}]", name="kinds")


@pytest.fixture(scope="module")
def ran(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The results of that grid."""
    return run(file, tmp_path_factory.mktemp("kinds"))


def test_every_student_has_its_trials(ran: Ran) -> None:
    assert not ran.progress.failed
    assert {(row.student, row.arm) for row in ran.table.itertuples()} == {
        (name, arm) for name in NAMES for arm in ("none", "full", "spec")
    }
    assert ran.table["score"].between(0, 1).all()


def test_each_student_is_made_once_and_the_general_one_before_it(ran: Ran) -> None:
    kinds = [artifact.kind for artifact in artifacts(ran.work)]
    assert (kinds.count("students"), kinds.count("general"), kinds.count("teachers")) == (3, 1, 1)
    assert [title for title in ran.told.titles if "general distillation" in title] == [
        "tinybert-2l-8d-16ffn-general: general distillation"
    ]


def test_narrow_students_learn_through_w(ran: Ran, checkpoint: Path) -> None:
    results = recorded(ran.out)
    folders = {path.parent: json.loads(path.read_text()) for path in (ran.work / "trials").glob("*/result.json")}
    with_w = {(result["student_parameters"], result["settings"]["arm"]) for folder, result in folders.items()
              if (folder / "student" / PROJECTION_FILE).is_file()}  # fmt: skip
    narrow = {result["student_parameters"] for result in results if result["student_name"] != NAMES[0]}
    assert len(narrow) == 2
    assert with_w == {(size, arm) for size in narrow for arm in ("full", "spec")}
    for result in results:
        stage = result["stages"].get("hsk", {})
        assert (result["settings"]["arm"] == "none") == (not stage)
        if stage:
            assert stage["last_loss"] < stage["first_loss"]


def test_a_student_folder_holds_fit_dense_and_names_no_teacher(ran: Ran) -> None:
    made = {}
    for path in (ran.work / "students").glob("*/student.json"):
        made[json.loads(path.read_text())["kind"], (path.parent / PROJECTION_FILE).is_file()] = path.parent
    assert {*made} == {("rosita", False), ("tinybert", True)}
    shapes = {tuple(load_file(path)["weight"].shape) for path in (ran.work / "students").glob(f"*/{PROJECTION_FILE}")}
    assert shapes == {(32, 16), (32, 8)}


def test_a_second_run_runs_nothing(ran: Ran, file: Path) -> None:
    again = run(file, ran.root)
    assert again.told.titles == []
    assert len(again.progress.done) == 9


def test_the_general_student_is_shared_over_tasks(
    ran: Ran, write: Write, data_folder: Path, students: str, tmp_path: Path
) -> None:
    shutil.copytree(ran.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "out")
    shutil.copytree(data_folder, tmp_path / "data")
    with (tmp_path / "data" / "train.csv").open("a") as rows:
        rows.write("a warm story,positive\n")
    task = f'task: {{name: custom, data: "{tmp_path / "data"}", text_columns: [sentence], label_column: mood}}'
    told = Recorder()
    other = write(students, "seeds: 1", task, name="kinds")
    workspace = Workspace(tmp_path / "copy" / "work", trials_of(other)[1])
    workspace.ensure_shared(told)
    titles = " ".join(told.titles)
    assert "teacher" in told.titles and "importance" in titles
    assert "general distillation" not in titles
    assert {config.id for config in workspace.trials}.isdisjoint(ran.table["trial"])


def test_plan_and_status_know_them(ran: Ran, file: Path, cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("plan", file, "--out", "out", "--work", "work", *OPTIONS)
    assert code == 0, err
    assert "kinds: 9 trials, 1 seeds" in out
    assert "for 9 trials" in out
    assert not (tmp_path / "work" / "general").exists(), "a plan makes nothing"
    code, out, _ = cli("status", file, "--out", ran.out, *OPTIONS)
    assert code == 0
    assert all(name in out for name in NAMES)


def test_time_is_estimated_for_every_kind(write: Write, origins: list[str], cli: Cli) -> None:
    for one in origins:
        code, out, err = cli("plan", write(f"students: [{one}]"), "--out", "out", "--work", "work", *OPTIONS)
        assert code == 0, err
        assert "time: about" in out


def test_another_content_of_the_checkpoint_is_another_trial(
    write: Write, checkpoint: Path, text: Path, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(checkpoint, mine)
    sentences = tmp_path / "text.txt"
    shutil.copy(text, sentences)
    file = write(
        f'students: [{ROSITA}, {{kind: tinybert, checkpoint: "{mine}"}}, '
        f'{{kind: tinybert, general: {{layers: 2, text: "{sentences}"}}}}]',
        name="files",
    )

    def ids() -> list[set[str]]:
        trials = trials_of(file)[1]
        return [
            {trial.id for trial in trials if trial.student == one} for one in dict.fromkeys(t.student for t in trials)
        ]

    before = ids()
    assert ids() == before
    save_old_checkpoint(mine, tokenizer, seed=1)
    changed = ids()
    assert [old == new for old, new in zip(before, changed, strict=True)] == [True, False, True]
    sentences.write_text("another text\n")
    assert [old == new for old, new in zip(changed, ids(), strict=True)] == [True, True, False]


def test_two_students_of_one_name_are_refused(
    write: Write, checkpoint: Path, tokenizer: BertTokenizerFast, cli: Cli, tmp_path: Path
) -> None:
    save_old_checkpoint(tmp_path / "twin", tokenizer, seed=1)
    both = f'{{kind: tinybert, checkpoint: "{checkpoint}"}}, {{kind: tinybert, checkpoint: "{tmp_path / "twin"}"}}'
    file = write(f"students: [{both}]", name="twins")
    with pytest.raises(HskdError, match="two of them are tinybert-2l-16d-24ffn"):
        Workspace(tmp_path / "work", trials_of(file)[1])
    code, _, err = cli("run", file, "--out", tmp_path / "out", "--work", tmp_path / "work", *OPTIONS)
    assert code == 2
    assert "tell them apart" in " ".join(err.split())


# ---- another tokenizer


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with another tokenizer than the teacher's. Tests must not change it."""
    folder = tmp_path_factory.mktemp("foreign")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    wordpiece(*letters, *(f"##{letter}" for letter in letters)).save_pretrained(folder)
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    make_bert(seed=2, max_position_embeddings=140, **sizes).save_pretrained(folder)
    return folder


def test_a_grid_aligns_the_tokens_of_its_students(write: Write, ran: Ran, foreign: Path, tmp_path: Path) -> None:
    """It uses the work folder of the previous grid and reuses its teacher."""
    line = f'students: [{{kind: tinybert, checkpoint: "{foreign}"}}]'
    file = write(line, "seeds: 1", "sweeps: [{n: [1], k: [2], w: [0.25]}]", name="foreign")
    shutil.copytree(ran.work, tmp_path / "work")
    again = run(file, tmp_path)
    assert not again.progress.failed and set(again.table["arm"]) == {"none", "full", "spec"}
    assert sum(artifact.kind == "teachers" for artifact in artifacts(again.work)) == 1
    workspace = Workspace(again.work, trials_of(file)[1])
    store = workspace.ensure_superset(Recorder())
    note = store.manifest.origin.alignment
    # Each letter of the student learns from the teacher's word around it.
    assert note is not None and note.with_target == note.tokens
    [full] = [result for result in recorded(again.out) if result["settings"]["arm"] == "full"]
    assert full["fraction"] == 1
    assert workspace.teacher_metrics(Recorder()) == Workspace(ran.work, ran.progress.done).teacher_metrics(Recorder())


def test_students_of_two_tokenizers_need_two_grids(write: Write, foreign: Path, tmp_path: Path) -> None:
    line = f'students: [{ROSITA}, {{kind: tinybert, checkpoint: "{foreign}"}}]'
    with pytest.raises(HskdError, match=r"rosita-2l-2h-24ffn and tinybert-2l-16d-24ffn have different tokenizers"):
        _ = Workspace(tmp_path, trials_of(write(line, "seeds: 1", name="two"))[1]).examples
