"""A trial is a pure function of its inputs, survives kills, and compares arms fairly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import distill_lab as lab_module
from support.calls import Calls
from support.distill_lab import RESUMED, Lab, weights

from hskd.distill.source import KnowledgeSource, ShuffledSource, StoreSource
from hskd.errors import HskdError, MismatchError
from hskd.knowledge import KeptHSK
from hskd.spec import HSKSpec
from hskd.store.derive import derive
from hskd.training import StageTrainer
from hskd.trials.prepare import Distillation, from_teacher
from hskd.trials.settings import ARMS, DistillSettings
from hskd.trials.stages import RunOptions, TrialInputs
from hskd.trials.trial import About, run_prepared

POINTS = ("3", "8", "12", "save hsk", "begin prediction stage", "14", "21", "26", "30", "save result")
"""Steps or moments of kills: before the first checkpoint of a stage, between two, at its end, after it."""

TORN = {"8,torn": "hsk/checkpoint-12", "26,torn": "prediction/checkpoint-18", "3,torn": "hsk/checkpoint-6"}
"""Kills in the tests of half-written checkpoints, and the checkpoint that is then incomplete."""

VARYING = ("seconds", "examples_per_second", "peak_memory_bytes")
"""Fields of a result that differ between runs."""


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    stages = {
        stage: {name: value for name, value in entry.items() if name not in VARYING}
        for stage, entry in result["stages"].items()
    }
    return {**{name: value for name, value in result.items() if name not in VARYING}, "stages": stages}


class Unreachable:
    """A source that must not be used."""

    def kept(self, batch: Any) -> KeptHSK:
        raise AssertionError("asked for HSK")

    def targets(self, batch: Any) -> torch.Tensor:
        raise AssertionError("asked for targets")


# Determinism


@pytest.mark.parametrize("kind", lab_module.KINDS)
def test_same_config_same_bits(lab: Lab, kind: lab_module.StudentKind, tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # the state of the generator must not matter
        results.append(lab.trial(tmp_path / name, kind=kind))
    assert comparable(results[0]) == comparable(results[1])
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert ("fit_dense.safetensors" in weights(tmp_path / "a")) == (kind == "narrow")


def test_seeds_differ(lab: Lab, tmp_path: Path) -> None:
    results = [lab.trial(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert weights(tmp_path / "0") != weights(tmp_path / "1")
    assert results[0]["stages"]["hsk"]["first_loss"] != results[1]["stages"]["hsk"]["first_loss"]


def test_checkpoints_and_reporting_change_no_bit(lab: Lab, tmp_path: Path) -> None:
    results = [
        lab.trial(tmp_path / str(saving), run=RunOptions("fp32", checkpoints=saving)) for saving in (True, False)
    ]
    assert comparable(results[0]) == comparable(results[1])
    assert weights(tmp_path / "True") == weights(tmp_path / "False")


# Resuming


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, lab.trial(folder, kind="narrow", **RESUMED)


@pytest.fixture(scope="module")
def killed(lab: Lab, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one trial killed at each of the points, under its name."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(lab_module.__file__)
    subprocess.run(
        [sys.executable, str(script), str(lab.root), str(data_folder), str(folder), *POINTS, *TORN],
        check=True,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},  # a script finds modules beside it, but not `support`
    )
    return folder


def test_what_is_killed_says_something(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    _, result = undisturbed
    assert [result["stages"][stage]["steps"] for stage in ("hsk", "prediction")] == [12, 18]
    assert len(set(result["dev_scores"])) > 1


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_trial_ends_with_the_same_bits(
    lab: Lab, undisturbed: tuple[Path, dict[str, Any]], killed: Path, point: str
) -> None:
    folder = killed / point
    assert not (folder / "result.json").exists()
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1

    result = lab.trial(folder, kind="narrow", progress=Calls(advance), **RESUMED)
    # Finished work is not repeated.
    done = {"3": 0, "8": 6, "12": 6, "14": 12, "21": 18, "26": 24, "30": 24, "save result": 30}.get(point, 12)
    assert steps == 30 - done
    assert comparable(result) == comparable(undisturbed[1])
    assert weights(folder) == weights(undisturbed[0])
    assert not list(folder.rglob("checkpoint-*"))


@pytest.mark.parametrize("point", TORN)
def test_a_half_written_checkpoint_is_passed_over(
    lab: Lab, undisturbed: tuple[Path, dict[str, Any]], killed: Path, point: str
) -> None:
    folder = killed / point
    checkpoint = folder / TORN[point]
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    (checkpoint / "optimizer.pt").write_bytes(b"")
    result = lab.trial(folder, kind="narrow", **RESUMED)
    assert comparable(result) == comparable(undisturbed[1])
    assert weights(folder) == weights(undisturbed[0])


# Finished trials


def test_a_finished_trial_is_read(lab: Lab, tmp_path: Path) -> None:
    result = lab.trial(tmp_path)
    before = weights(tmp_path)

    def advance() -> None:
        raise AssertionError("trained")

    again = lab.trial(tmp_path, progress=Calls(advance), wrap=lambda source: Unreachable())
    assert again == json.loads(json.dumps(result))
    assert weights(tmp_path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_in_the_same_folder_are_refused(lab: Lab, tmp_path: Path, finished: bool) -> None:
    lab.trial(tmp_path)
    if not finished:
        (tmp_path / "result.json").unlink()
    before = weights(tmp_path)
    for changes in ({"seed": 1}, {"hsk_lr": 1e-4}, {"kind": "narrow"}, {"run": RunOptions("bf16")}):
        with pytest.raises(MismatchError, match="holds a trial with other settings"):
            lab.trial(tmp_path, **changes)
    assert weights(tmp_path) == before


def test_the_last_epoch_is_reported_and_the_best_is_beside_it(lab: Lab, tmp_path: Path) -> None:
    result = lab.trial(tmp_path, arm="gold", hsk_epochs=3, prediction_epochs=3, prediction_lr=1e-2, seed=1)
    scores = result["dev_scores"]
    assert len(scores) == 6
    assert result["metrics"]["dev"]["score"] == scores[-1]
    assert result["best_dev_score"] == max(scores) != scores[-1]
    assert set(result["metrics"]) == {"dev", "test"}


# Arms


HSK_EPOCHS, LAST_EPOCHS = 2, 3
EPOCHS = {
    "spec": {"hsk": 2, "prediction": 3},
    "full": {"hsk": 2, "prediction": 3},
    "shuffled": {"hsk": 2, "prediction": 3},
    "none": {"prediction": 5},
    "gold": {"prediction": 5},
    "paper_none": {"prediction": 2},
}


@pytest.fixture(scope="module")
def arms(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """The result of every arm with one seed, and the example ids of every batch, by stage."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("arms")
    batches: dict[str, list[list[int]]] = {}
    compute_loss = StageTrainer.compute_loss

    def record(self: StageTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = "hsk" if self.stage == "HSK stage" else "prediction"
        batches.setdefault(name, []).append(inputs["example_ids"].tolist())
        return compute_loss(self, model, inputs, *args, **kwargs)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "compute_loss", record)
        for arm in ARMS:
            batches = {}
            result = lab.trial(
                root / arm,
                arm=arm,
                hsk_epochs=HSK_EPOCHS,
                prediction_epochs=LAST_EPOCHS,
                wrap=lambda source, arm=arm: None if arm == "gold" else source,  # type: ignore[misc]
            )
            found[arm] = {"result": result, "batches": batches}
    yield found


@pytest.mark.parametrize("arm", ARMS)
def test_epochs_of_every_arm(arms: dict[str, dict[str, Any]], arm: str) -> None:
    result = arms[arm]["result"]
    assert {stage: entry["epochs"] for stage, entry in result["stages"].items()} == EPOCHS[arm]
    assert {stage: entry["steps"] for stage, entry in result["stages"].items()} == {
        stage: 4 * epochs for stage, epochs in EPOCHS[arm].items()
    }
    assert len(result["dev_scores"]) == EPOCHS[arm]["prediction"]
    assert result["settings"]["arm"] == arm
    kept = {"spec": "2l_3t_0.5w", "full": "all_all_all", "shuffled": "all_all_all"}.get(arm)
    assert result["spec"] == kept
    assert (result["fraction"] > 0) == (kept is not None)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_a_seed_sees_the_same_batches(arms: dict[str, dict[str, Any]], lab: Lab, arm: str) -> None:
    longest = arms["none"]["batches"]["prediction"]
    for stage, batches in arms[arm]["batches"].items():
        assert len(batches) == 4 * EPOCHS[arm][stage]
    seen = [batch for stage in ("hsk", "prediction") for batch in arms[arm]["batches"].get(stage, [])]
    assert seen
    assert seen == longest[: len(seen)]
    epochs = [longest[:4], longest[4:8]]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == sorted(lab.train.ids.tolist())  # noqa: RUF017


def test_arms_differ_in_what_they_learn(arms: dict[str, dict[str, Any]]) -> None:
    first = {arm: entry["result"]["stages"].get("hsk", {}).get("last_loss") for arm, entry in arms.items()}
    assert len({first["spec"], first["full"], first["shuffled"]}) == 3
    assert first["shuffled"] > first["full"]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "gold"])
def test_every_arm_but_gold_needs_a_source(lab: Lab, arm: str, tmp_path: Path) -> None:
    with pytest.raises(HskdError, match=f"the arm {arm} needs the teacher's knowledge"):
        lab.trial(tmp_path, arm=arm, wrap=lambda source: None)


def test_gold_learns_the_labels_with_no_teacher(lab: Lab, tmp_path: Path) -> None:
    settings = DistillSettings(arm="gold", hsk_epochs=10, prediction_epochs=10, prediction_lr=5e-3, batch_size=16)
    student, prepared = lab.prepare(settings, tmp_path)
    assert prepared.source is None
    inputs = TrialInputs(settings, lab.task, lab.splits, student.model, 32, None)
    result = run_prepared(inputs, tmp_path, RunOptions("fp32"), About(prepared.record)).as_json()
    assert result["metrics"]["dev"]["score"] > 0.9


def test_arms_without_an_hsk_stage_never_ask_for_hsk(lab: Lab, tmp_path: Path) -> None:
    class TargetsOnly(Unreachable):
        def __init__(self, source: KnowledgeSource) -> None:
            self.targets = source.targets  # type: ignore[method-assign]

    for arm in ("none", "paper_none"):
        lab.trial(tmp_path / arm, arm=arm, wrap=lambda source: TargetsOnly(source))  # type: ignore[arg-type]


def test_online_and_offline_are_one_trial(lab: Lab, tmp_path: Path) -> None:
    """Both are prepared as in ``hskd distill``."""
    settings = DistillSettings(hsk_epochs=2, prediction_epochs=2, batch_size=16)
    spec = HSKSpec.parse("2l_3t_0.5w,precision=fp32")
    results = []
    for where in ("online", "offline"):
        student, prepared = lab.prepare(settings, tmp_path / "unused", spec=spec.label)
        if where == "online":
            prepared = from_teacher(lab.teacher, Distillation(settings, spec, student, lab.task, lab.train), "fp32")
        inputs = TrialInputs(settings, lab.task, lab.splits, student.model, 32, prepared.source)
        results.append(run_prepared(inputs, tmp_path / where, RunOptions("fp32"), About(prepared.record)).as_json())
    online, offline = results
    assert (online["source"], offline["source"]) == ("online", "offline")
    for field in ("spec", "fraction", "kept_values", "teacher", "student", "data"):
        assert online[field] == offline[field], field
    for stage in ("hsk", "prediction"):
        for loss in ("first_loss", "last_loss"):
            assert online["stages"][stage][loss] == pytest.approx(offline["stages"][stage][loss], rel=1e-4)


# The control


def of_example(source: Any, lab: Lab, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    kept = source.kept(lab.train.collate([row]))
    return kept.positions, kept.values


@pytest.mark.parametrize("text", ["all_all_all", "2l_3t_0.5w"])
def test_shuffled_gives_the_knowledge_of_another_example(lab: Lab, text: str, tmp_path: Path) -> None:
    spec = HSKSpec.parse(f"{text},precision=fp32")
    store = derive(lab.superset, spec, 2, tmp_path / "store")
    right, shuffled = StoreSource(store, lab.train, 2), ShuffledSource(store, lab.train, 2, seed=0)
    own = [of_example(right, lab, row) for row in range(len(lab.train))]
    partners, cut = [], 0
    for row, length in enumerate(lab.train.lengths):
        positions, values = of_example(shuffled, lab, row)
        assert (positions < int(length)).all()
        matches = []
        for other, (at, what) in enumerate(own):
            inside = (at < int(length)).all(dim=1)
            if torch.equal(at[inside], positions) and torch.equal(what[inside], values):
                matches.append(other)
                cut += other != row and not inside.all()
        assert matches and row not in matches
        partners.append(matches[0])
        assert abs(int(lab.train.lengths[matches[0]] - length)) <= 4
    assert len(set(partners)) >= len(lab.train) - 1
    if text == "all_all_all":
        assert cut > 0  # some longer partner was truncated


def test_shuffled_within_a_batch_equals_one_by_one_and_keeps_the_right_logits(lab: Lab, tmp_path: Path) -> None:
    store = derive(lab.superset, HSKSpec.parse("all_all_all,precision=fp32"), 2, tmp_path / "store")
    shuffled = ShuffledSource(store, lab.train, 2, seed=0)
    rows = [5, 60, 0, 33]
    batch = lab.train.collate(rows)
    kept = shuffled.kept(batch)
    alone = [of_example(shuffled, lab, row) for row in rows]
    assert kept.counts.tolist() == [len(positions) for positions, _ in alone]
    assert torch.equal(kept.values, torch.cat([values for _, values in alone]))
    assert torch.equal(kept.positions, torch.cat([positions for positions, _ in alone]))
    assert torch.equal(shuffled.targets(batch), StoreSource(store, lab.train, 2).targets(batch))
    other = ShuffledSource(store, lab.train, 2, seed=1)
    assert not torch.equal(
        other.kept(lab.train.collate(range(64))).values, shuffled.kept(lab.train.collate(range(64))).values
    )


def test_shuffled_needs_two_examples_and_a_store(lab: Lab, tmp_path: Path) -> None:
    store = derive(lab.superset, HSKSpec(), 2, tmp_path / "two")
    with pytest.raises(HskdError, match="at least two training examples"):
        ShuffledSource(store, lab.train.first(1), 2, 0)
    two = ShuffledSource(store, lab.train.first(2), 2, 0)
    assert len(two.kept(lab.train.first(2).collate([0, 1])).counts) == 2
    student, _ = lab.prepare(DistillSettings(), tmp_path)
    with pytest.raises(HskdError, match="needs a store"):
        from_teacher(
            lab.teacher, Distillation(DistillSettings(arm="shuffled"), None, student, lab.task, lab.train), "fp32"
        )
