from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support import simulated

from hskd.analysis.report import provenance
from hskd.analysis.table import Study, studies
from hskd.results import ResultsFolder, unpack

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
DEPTH = DEMO.with_name("mr-depth")


def grid_of(folder: Path) -> dict[str, Any]:
    content = ResultsFolder(folder).grid()
    assert content is not None
    return content


def test_facts_of_a_committed_study() -> None:
    [study] = studies(DEMO)
    facts = dict(provenance.facts(study, DEMO))
    assert facts["task"] == "mr, 500 training examples; scored on test"
    assert facts["teacher"] == "offline:minilm, fine-tuned for 2 epochs at 5e-05; it scores 81.5 %"
    assert facts["student"] == "rosita-3l-2h-96ffn, 12,591,074 parameters"
    assert facts["trials"] == "24: none 3, spec 18, full 3"
    assert (facts["seeds"], facts["specs"], facts["threads of a trial"]) == ("0, 1, 2", "6", "1")
    assert facts["epochs of the HSK stage"] == "4" and facts["learning rate of the HSK stage"] == "0.0004"
    assert facts["none instead"] == "6 epochs of the prediction stage at 0.0004"
    assert facts["batch size"] == "32"
    assert facts["machine"] == "AMD EPYC, cpu, arithmetic in bf16"
    assert "torch 2.13.0+cpu" in facts["versions"]
    assert len(facts["git commit"]) == 40
    seconds = study.trials[["hsk_seconds", "prediction_seconds"]].sum().sum()
    assert facts["time"].startswith(f"{seconds / 60:.0f} minutes of training in all")
    assert "trials not done" not in facts


def test_a_table_alone_says_less_and_nothing_false() -> None:
    table = simulated.simulate()
    facts = dict(provenance.facts(Study.of(table), None))
    assert facts["student"] == "rosita-3l-2h-96ffn"
    assert "versions" not in facts and "batch size" not in facts
    bare = table.drop(columns=["hsk_seconds", "git_commit", "threads", "hsk_lr"])
    facts = dict(provenance.facts(Study.of(bare), None))
    assert not {"time", "git commit", "threads of a trial", "learning rate of the HSK stage"} & set(facts)
    assert "none instead" not in dict(provenance.facts(Study.of(table[table["arm"] != "none"]), None))


def test_trials_that_the_grid_lacks_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(DEMO, folder)
    [study] = studies(folder)
    unpack(folder)
    (folder / "trials" / f"{study.trials['trial'].iloc[3]}.json").unlink()
    assert dict(provenance.facts(study, folder))["trials not done"] == "1 of the grid's 24"


def test_the_commands_can_be_pasted() -> None:
    demo = Path("results/demo-3-seeds")
    assert provenance.commands(DEPTH, DEPTH / "report", 0.005)[0] == (
        "runs the grid, a preset",
        f"hskd grid run mr-depth --out {DEPTH}",
    )
    assert provenance.commands(demo, demo / "report", 0.005)[-1][1] == "hskd report results/demo-3-seeds"
    changed = provenance.commands(Path("my results.csv"), Path("out"), 0.01)
    assert changed == [("made this page", "hskd report 'my results.csv' --out out --margin 1")]
    by_values = provenance.commands(Path("runs/trials.csv"), Path("runs/report"), 0.005, "values")
    assert by_values[-1][1] == "hskd report runs/trials.csv --axis values"
    beside = provenance.commands(Path("runs/trials.csv"), Path("runs/report"), 0.005)
    assert beside == [("made this page", "hskd report runs/trials.csv")]


def test_a_grid_that_is_no_preset_is_run_by_its_file(tmp_path: Path) -> None:
    grid = grid_of(DEMO)
    for name, training in (("mine", grid["training"]), ("demo", grid["training"] | {"of_an_older_version": 9})):
        (tmp_path / "grid.yaml").write_text(json.dumps(grid | {"name": name, "training": training}))
        note, command = provenance.commands(tmp_path, tmp_path / "report", 0.005)[0]
        assert command == f"hskd grid run {tmp_path}/grid.yaml --out {tmp_path}"
        assert "from the file" in note


def test_switches_and_the_teacher_in_the_loop_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(DEMO, folder)
    assert not {"switches of compat", "knowledge"} & set(dict(provenance.facts(studies(folder)[0], folder)))
    unpack(folder)
    for file in (folder / "trials").glob("*.json"):
        result = json.loads(file.read_text())
        result["settings"]["compat"] = ["teacher_dropout"]
        result["config"]["online"] = True
        file.write_text(json.dumps(result))
    facts = dict(provenance.facts(studies(folder)[0], folder))
    assert facts["switches of compat"] == "teacher_dropout"
    assert facts["knowledge"] == "from the teacher, in the training loop"


def test_a_preset_with_changes_is_run_with_them(tmp_path: Path) -> None:
    grid = grid_of(DEMO)
    changes = {"training": grid["training"] | {"hsk_epochs": 9}, "task": grid["task"] | {"max_length": 32}}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid | changes))
    note, command = provenance.commands(tmp_path, tmp_path / "report", 0.005)[0]
    # The teacher of the committed demo was fine-tuned on all sentences, that of the preset on fewer.
    changed = "--set task.max_length=32 --set teacher.examples=null --set training.hsk_epochs=9"
    assert command == f"hskd grid run demo --seeds 3 {changed} --out {tmp_path}"
    assert note == "runs the grid, a preset with changes"


def test_the_time_of_long_studies_is_in_hours() -> None:
    table = simulated.simulate().assign(hsk_seconds=3600.0, prediction_seconds=0.0)
    assert dict(provenance.facts(Study.of(table), None))["time"].startswith(f"{len(table):.1f} hours")
