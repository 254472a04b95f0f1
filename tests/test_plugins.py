"""Plug-ins: the page's examples run on the command line, in worker processes, on Ray and from a package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_bert
from transformers import BertTokenizerFast

from hskd.results import ResultsFolder, load

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugins.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GRID = """\
name: plugged
plugins: [my_plugin]
task: {{name: shouting}}
teacher: {{model: "{model}", settings: {{epochs: 1, lr: 3.0e-3, batch_size: 16}}}}
students: [{{kind: random_bert, layers: 2}}]
training: {{hsk_epochs: 1, prediction_epochs: 1, hsk_lr: 1.0e-3, prediction_lr: 5.0e-3, batch_size: 16}}
sweeps: [{{k: [2], length: [largest_norm], length.order: [1.0, 2.0], w: [0.25], width: [layer_mask]}}]
"""
OPTIONS = ["--out", "out", "--work", "work", "--dtype", "fp32", "--threads", "1"]


def prepare(folder: Path, tokenizer: BertTokenizerFast) -> Path:
    """Fill a folder with the page's module, a model to fine-tune, and a grid of both."""
    (folder / "my_plugin.py").write_text("\n".join(BLOCK.findall(PAGE.read_text(encoding="utf-8"))))
    make_bert(num_hidden_layers=3).save_pretrained(folder / "body")
    tokenizer.save_pretrained(folder / "body")
    (folder / "grid.yaml").write_text(GRID.format(model=folder / "body"))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: BertTokenizerFast) -> Path:
    """A folder with the page's module, a model to fine-tune, and a grid of both."""
    return prepare(tmp_path, tokenizer)


@pytest.fixture(scope="module")
def run_in_workers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizerFast
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The results of the grid, run in two workers."""
    folder = prepare(tmp_path_factory.mktemp("plugged"), tokenizer)
    return folder, hskd(folder, "grid", "run", "grid.yaml", "--workers", "2", *OPTIONS)


def hskd(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``hskd`` in ``folder``, in a process without any plug-in loaded."""
    command = [str(Path(sys.executable).with_name("hskd")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "300", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def require_table(folder: Path) -> None:
    table = load(folder / "out")
    specs = table[table["arm"] == "spec"]
    assert sorted(map(float, specs["length.order"])) == [1.0, 2.0]
    assert set(specs["length"]) == {"largest_norm"}
    assert set(specs["width"]) == {"layer_mask"}
    assert set(table["student"]) == {"random-2l-16d"}
    assert len(table) == 4


@pytest.mark.timeout(600)
def test_a_grid_of_plug_ins_runs_in_two_workers(
    run_in_workers: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = run_in_workers
    assert ran.returncode == 0, ran.stderr
    require_table(folder)
    assert (ResultsFolder(folder / "out").grid() or {})["plugins"] == ["my_plugin"]
    listed = hskd(folder, "cache", "ls", "--work", "work")
    assert listed.returncode == 0 and "largest_norm" in listed.stdout, listed.stderr
    reported = hskd(folder, "report", "out", "--plugins", "my_plugin")
    assert reported.returncode == 0, reported.stderr
    points = pd.read_csv(folder / "out" / "report" / "tables" / "points.csv", keep_default_na=False)
    assert "order=2.0" in set(points["strategy"]), "the report knows the fields of the plug-in's selector"


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="needs hskd[cluster]")
@pytest.mark.timeout(600)
def test_a_grid_of_plug_ins_runs_on_ray(
    run_in_workers: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(run_in_workers[0], tmp_path / "ray")
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "work" / "trials")  # teacher and stores exist, and the trials run on Ray
    ran = hskd(folder, "grid", "run", "grid.yaml", "--ray", *OPTIONS, RAY_USAGE_STATS_ENABLED="0")
    assert ran.returncode == 0, ran.stderr
    require_table(folder)


def test_the_head_of_the_page_is_registered(folder: Path) -> None:
    code = (
        "from hskd.plugins import load_plugins; load_plugins(['my_plugin'])\n"
        "import torch; from hskd.heads.registry import head_of\n"
        "head = head_of('huber_regression', metric_names=['pearson'])\n"
        "assert float(head.gold_loss(torch.tensor([[4.0]]), torch.tensor([0.0]))) == 3.5\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=200)


@pytest.mark.timeout(600)
def test_a_teacher_and_a_store_have_the_head_of_the_page(folder: Path) -> None:
    options = ["--task", "loudness", "--plugins", "my_plugin", "--work", "work", "--dtype", "fp32"]
    taught = hskd(folder, "teacher", "--model", "body", "--out", "teacher", "--epochs", "1", *options)
    assert taught.returncode == 0, taught.stderr
    assert "pearson" in json.loads((folder / "teacher" / "metrics.json").read_text())["metrics"]["dev"]
    extracted = hskd(folder, "store", "extract", "--teacher", "teacher", "--out", "store", *options)
    assert extracted.returncode == 0, extracted.stderr
    assert json.loads((folder / "store" / "manifest.json").read_text())["origin"]["head"] == "huber_regression"


def test_an_installed_package_needs_no_option(folder: Path) -> None:
    package = folder / "my_plugin-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[hskd.selectors]\nlargest_norm = my_plugin:LargestNorm\nbroken = not_there:Broken\n"
        "[hskd.students]\nrandom_bert = my_plugin:RandomStudent\n[hskd.tasks]\nshouting = my_plugin:SHOUTING\n"
    )
    code = (
        "from hskd.errors import HskdError; from hskd.spec import HSKSpec; from hskd.grid.spec import GridSpec\n"
        "print(HSKSpec.parse('1l_2t_all,length=largest_norm,order=2.0').label)\n"
        "grid = GridSpec(name='g', task={'name': 'shouting'}, students=[{'kind': 'random_bert'}])\n"
        "print(grid.students[0].name, grid.task.name)\n"
        "try:\n    HSKSpec.parse('1l_2t_all,length=broken')\nexcept HskdError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["1l_2t_all,length=largest_norm,length.order=2.0", "random-2l-16d shouting"]
    assert all(word in lines[2] for word in ("broken", "my-plugin", "not_there:Broken", "ModuleNotFoundError"))


@pytest.mark.parametrize(("text", "cause"), [(None, "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError: division")])
def test_a_plug_in_that_fails_is_named_with_its_cause(tmp_path: Path, text: str | None, cause: str) -> None:
    if text is not None:
        (tmp_path / "failing.py").write_text(text)
    option = hskd(tmp_path, "grid", "plan", "demo", "--plugins", "failing")
    assert option.returncode == 2
    assert "plug-in failing: cannot be imported" in option.stderr and cause in option.stderr
    (tmp_path / "grid.yaml").write_text("name: g\n\nplugins: [failing]\n")
    written = hskd(tmp_path, "grid", "plan", "grid.yaml")
    assert written.returncode == 2
    assert "grid.yaml, line 3: plugins" in written.stderr and cause in written.stderr


@pytest.mark.timeout(600)
def test_the_commands_take_plug_ins(folder: Path) -> None:
    task = ["--task", "shouting", "--plugins", "my_plugin", "--work", "work", "--dtype", "fp32"]
    spec = "1l_2t_0.25w,length=largest_norm,width=layer_mask"
    steps = [
        ["teacher", "--model", "body", "--out", "teacher", "--epochs", "1", *task],
        ["student", "--teacher", "teacher", "--kind", "random_bert", "--set", "layers=2", "--out", "student", *task],
        ["store", "extract", "--teacher", "teacher", "--spec", spec, "--student-layers", "2", "--out", "store", *task],
        ["distill", "--student", "student", "--store", "store", "--spec", spec, "--out", "trial",
         "--hsk-epochs", "1", "--prediction-epochs", "1", *task],
    ]  # fmt: skip
    for step in steps:
        ran = hskd(folder, *step)
        assert ran.returncode == 0, (step, ran.stderr)
    assert json.loads((folder / "trial" / "result.json").read_text())["spec"].startswith("1l_2t_0.25w,length=largest")
    refused = hskd(folder, *steps[1][:-6], "--set", "depth=2", "--plugins", "my_plugin")
    assert refused.returncode == 2
    assert "--set depth=2" in refused.stderr and "layers, width, seed" in refused.stderr
