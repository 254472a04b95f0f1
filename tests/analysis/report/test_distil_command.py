from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from support.trial_tables import study, table
from typer.testing import CliRunner

from hskd.analysis.cli.recommend import parse_bytes
from hskd.analysis.report.distil_command import distil_command
from hskd.analysis.table import Study, studies
from hskd.cli.app import app
from hskd.errors import HskdError
from hskd.results import ResultsFolder
from hskd.spec import HSKSpec
from hskd.trials.settings import DistillSettings

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"


def parsed(command: str) -> dict[str, Any]:
    """Return the options that the real ``hskd distill`` reads from ``command``. Its settings are validated too."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("hskd", "distill")
    distill = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options: dict[str, Any] = distill.make_context(name, words).params
    DistillSettings(**{field: options[field] for field in DistillSettings.model_fields})
    return options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50MB", 50e6),
        ("1.5GiB", 1.5 * 2**30),
        ("200 kB", 200e3),
        ("200KB", 200e3),
        ("1 kib", 1024),
        (".5 M", 5e5),
        ("2TB", 2e12),
        ("4096", 4096),
        ("7 bytes", 7),
    ],
)
def test_sizes_as_people_write_them(text: str, expected: float) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "50 XB", "-5MB", "1,5GB", "0", "1e6 MB", "5 ib", "50MBs", "nan"])
def test_what_is_no_size_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(HskdError, match=r"--budget .*: expected a size above 0 such as 50MB, 1\.5GiB or 200 kB"):
        parse_bytes(text, "--budget")


def test_the_command_distils_as_the_trials_did() -> None:
    [made] = studies(DEMO)
    options = parsed(distil_command(made, "2l_8t_0.1w"))
    results = ResultsFolder(DEMO).results().values()
    result = next(result for result in results if result.spec == "2l_8t_0.1w")
    assert options["spec"] == "2l_8t_0.1w" and (options["task"], options["train_examples"]) == ("mr", 500)
    wanted = {field: value for field, value in result.settings.items() if field not in ("arm", "seed")}
    assert {field: options[field] for field in wanted} == wanted


def test_without_the_trials_files_the_table_says_what_it_can() -> None:
    [made] = studies(DEMO)
    from_table = Study(**{**{k: getattr(made, k) for k in made.__dataclass_fields__}, "folder": None})
    options = parsed(distil_command(from_table, "2l_all_0.5w", examples=5000))
    assert (options["hsk_epochs"], options["prediction_epochs"]) == (4, 2)
    assert (options["hsk_lr"], options["prediction_lr"], options["train_examples"]) == (4e-4, 1e-4, 5000)
    assert options["warmup"] == 0  # the table does not store it


def test_defaults_are_left_out_and_full_is_a_spec() -> None:
    made = study({"full": [0.8], "1l_1t_0.1w": [0.7]}, hsk_epochs=10.0, prediction_epochs=5, hsk_lr=5e-5)
    command = distil_command(made, "full")
    assert "--hsk-lr" not in command and "--prediction-epochs" not in command
    assert "--hsk-epochs 10 " in command and "--spec all_all_all " in command


@given(
    st.sampled_from(["1l_10t_0.1w", "all_3t_all", "2l_all_0.003w,width=magnitude"]),
    st.sampled_from(["", ",length=random,length.seed=3", ",att_map=top,length=attention", ",l_top=0.5"]),
    st.sampled_from(["", ",precision=bf16"]),
)
def test_every_label_survives_the_shell_and_the_parser(short: str, change: str, precision: str) -> None:
    if "length=attention" in change:
        change = ",length=attention,att_map=top"
    spec = HSKSpec.parse(short + change + precision)
    made = study({spec.label: [0.7]})
    assert HSKSpec.parse(parsed(distil_command(made, spec.label))["spec"]) == spec


def test_odd_names_and_layer_pairs_are_quoted(tmp_path: Path) -> None:
    spec = HSKSpec.parse({"depth": {"selector": "top_n", "l_top": [[0, 0], [3, 5]]}})
    trials = table({"full": [0.7], "2l_3t_0.1w": [0.6]}).assign(trial=["a", "b"])
    trials.loc[trials["arm"] == "full", "spec"] = spec.label
    task = {"name": "custom", "data": "my data/$HOME's", "text_columns": ["a", "b"], "label_column": "label"}
    settings = {"tau": 2.0, "compat": ["best_epoch", "zero_dropped"]}
    made = next(iter(ResultsFolder(DEMO).results().values())).as_json()
    changes = {"id": "a", "config": {"task": task, "settings": settings}, "spec_fields": spec.model_dump(mode="json")}
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "a.json").write_text(json.dumps(made | changes))
    options = parsed(distil_command(Study.of(trials, tmp_path), "full"))
    assert HSKSpec.parse(options["spec"]) == spec
    assert (options["data"], options["text_columns"], options["tau"]) == ("my data/$HOME's", "a,b", 2.0)
    assert list(options["compat"]) == ["best_epoch", "zero_dropped"]


@pytest.mark.parametrize("what", [["--tolerance", "1"], ["--budget", "20 MB"], ["--margin-share", "0.5"]])
def test_the_printed_command_can_be_pasted(what: list[str]) -> None:
    done = CliRunner().invoke(app, ["recommend", str(DEMO), *what], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    [command] = [line for line in done.stdout.splitlines() if line.startswith("hskd distill")]
    label = parsed(command)["spec"]
    assert HSKSpec.parse(label).label == label
    assert "below full" in done.stdout and "2l_8t_0.1w" in done.stdout


def test_each_study_of_a_table_gets_its_own_recommendation(tmp_path: Path) -> None:
    means = {"none": 0.6, "full": 0.8, "1l_8t_0.1w": 0.79}
    rows = [
        table({name: [mean, mean + 0.001, mean + 0.002] for name, mean in means.items()}, task=task, student=student)
        for task, student in (("mr", "small"), ("cola", "small"), ("mr", "large"))
    ]
    path = tmp_path / "all.csv"
    pd.concat(rows).to_csv(path, index=False)
    run = CliRunner().invoke
    everything = run(app, ["recommend", str(path)]).stdout
    assert everything.count("hskd distill") == 3 and "cola · small" in everything
    one = run(app, ["recommend", str(path), "--task", "mr", "--student", "large"]).stdout
    assert one.count("hskd distill") == 1 and "mr · large" in one
    missing = run(app, ["recommend", str(path), "--task", "rte"])
    assert isinstance(missing.exception, HskdError)
    assert "there are: --task cola --student small, --task mr --student large" in str(missing.exception)
    unkept = run(app, ["recommend", str(path), "--new-examples"])
    assert "leave out --new-examples" in str(unkept.exception)
