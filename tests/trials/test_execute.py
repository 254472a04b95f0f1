"""Running a trial from Python, and inputs that a workspace rejects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.distill_lab import Lab

import hskd
from hskd.errors import CorruptionError, HskdError
from hskd.io import read_json, write_json
from hskd.spec import HSKSpec
from hskd.trials.config import GivenStudent, TaskPlan, TrialConfig
from hskd.trials.result import TrialResult
from hskd.trials.settings import DistillSettings
from hskd.trials.workspace import Workspace


def config(lab: Lab, data_folder: Path, **changes: Any) -> TrialConfig:
    fields: dict[str, Any] = {
        "task": TaskPlan(name="custom", data=str(data_folder), text_columns=("sentence",), label_column="mood"),
        "teacher": None,
        "student": GivenStudent(folder=str(lab.root / "rosita")),
        "settings": DistillSettings(hsk_epochs=2, prediction_epochs=1, batch_size=16),
        "spec": HSKSpec.parse("2l_3t_0.5w"),
        "dtype": "fp32",
        "device": "cpu",
        "threads": 1,
        "build_threads": 1,
        "store": str(lab.root / "superset"),
    }
    return TrialConfig(**fields | changes)


def test_run_trial_is_the_trial_of_the_engine(lab: Lab, data_folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected = lab.trial(tmp_path / "engine")
    result = hskd.run_trial(config(lab, data_folder), tmp_path / "work", tmp_path / "api")
    for field in ("metrics", "dev_scores", "spec", "fraction", "student", "data", "settings"):
        assert result.as_json()[field] == expected[field], field
    assert result.stages["hsk"].last_loss == expected["stages"]["hsk"]["last_loss"]
    assert TrialResult.read(tmp_path / "api" / "result.json") == result
    assert TrialConfig.model_validate(result.config).id == result.id
    # It is found finished, in a folder of its own or in the work folder.
    assert hskd.run_trial(config(lab, data_folder), tmp_path / "work", tmp_path / "api") == result


@pytest.mark.parametrize(
    ("field", "changes"),
    [("threads", None), ("device", {"device": "cuda"}), ("dtype", {"dtype": "bf16"}), ("store", {"store": "other"})],
)
def test_what_trials_share_is_checked(lab: Lab, data_folder: Path, field: str, changes: Any, tmp_path: Path) -> None:
    one = config(lab, data_folder)
    if changes is None:  # each trial has its own thread count
        Workspace(tmp_path, [one, config(lab, data_folder, threads=2)])
        return
    other = config(lab, data_folder, **changes)
    with pytest.raises(HskdError, match=f"has another {field} than the other trials"):
        Workspace(tmp_path, [one, other])
    with pytest.raises(HskdError, match=f"has another {field} than the other trials"):
        Workspace(tmp_path, [one]).require_of_here(other)
    assert not list(tmp_path.iterdir())


def test_a_result_of_another_version_keeps_its_fields(lab: Lab, tmp_path: Path) -> None:
    lab.trial(tmp_path / "trial")
    path = tmp_path / "trial" / "result.json"
    old = read_json(path)
    del old["version"], old["checksum"]
    old["stages"]["hsk"]["of_another_version"] = 1
    old["of_another_version"] = {"a": [1]}
    write_json(path, old)
    result = TrialResult.read(path)
    assert result.version == 0 and result.as_json() == old
    write_json(path, {"task": "mr"})
    with pytest.raises(CorruptionError, match="not a trial's result"):
        TrialResult.read(path)
