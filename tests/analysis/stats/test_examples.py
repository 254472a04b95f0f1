from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hskd.analysis.stats.examples import Answers
from hskd.analysis.table import studies
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.heads import head_of_rows
from hskd.results import unpack

DEMO = Path(__file__).resolve().parents[3] / "results" / "demo-3-seeds"
GAP = {"full": 1.0, "none": -1.0}


def answers_of(metrics: tuple[str, ...], seeds: int = 3, count: int = 400, classes: int = 2) -> Answers:
    """Return predictions of two points for examples of different difficulty."""
    rng = np.random.default_rng(0)
    regression = "pearson" in metrics
    head = head_of_rows(1 if regression else classes, metrics)
    labels = rng.normal(size=count) if regression else rng.integers(classes, size=count)
    hardness = rng.normal(size=count)
    logits = {}
    for point, skill in (("full", 1.5), ("none", 0.8)):
        for seed in range(seeds):
            noise = rng.normal(size=count) + hardness
            if regression:
                logits[point, seed] = (skill * labels + noise)[:, None]
            else:
                chosen = np.where(noise < skill, labels, rng.integers(classes, size=count))
                logits[point, seed] = np.eye(classes)[chosen]
    return Answers(head, labels, logits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder that a test may change."""
    return shutil.copytree(DEMO, tmp_path / "results")


def test_the_committed_answers_give_the_committed_scores() -> None:
    [demo] = studies(DEMO)
    answers = Answers.read(DEMO, demo)
    assert answers is not None
    again = [answers.score(name, seed) for name, seed in zip(demo.trials["name"], demo.trials["seed"], strict=True)]
    np.testing.assert_allclose(again, demo.trials["score"], rtol=0, atol=1e-12)
    assert sorted(np.load(DEMO / "labels.npz")) == ["dev", "test"]


def test_answers_that_are_not_kept_are_none(folder: Path) -> None:
    [demo] = studies(folder)
    assert Answers.read(None, demo) is None
    assert Answers.read(folder.parent, demo) is None
    unpack(folder)
    (folder / "trials" / f"{demo.trials['trial'].iloc[3]}.npz").unlink()
    assert Answers.read(folder, demo) is None


def test_without_labels_there_are_no_answers(folder: Path) -> None:
    (folder / "labels.npz").unlink()
    [demo] = studies(folder)
    assert Answers.read(folder, demo) is None
    assert Answers.read(folder, replace(demo, trials=demo.trials.drop(columns="trial"))) is None


def test_labels_of_other_data_are_refused(folder: Path) -> None:
    [demo] = studies(folder)
    labels = dict(np.load(folder / "labels.npz"))
    np.savez(folder / "labels.npz", test=labels["test"][::-1])
    said = r"with the labels of labels\.npz, trial \w{16} scores 0\.4\d+, but the table says 0\.7"
    with pytest.raises(MismatchError, match=said):
        Answers.read(folder, demo)
    np.savez(folder / "labels.npz", test=labels["test"][:-1])
    with pytest.raises(HskdError, match="2030 predictions for 2029 labels"):
        Answers.read(folder, demo)
    np.savez(folder / "labels.npz", dev=labels["dev"])
    with pytest.raises(HskdError, match=r"labels\.npz: no split test"):
        Answers.read(folder, demo)
    (folder / "labels.npz").write_bytes(b"nothing")
    with pytest.raises(CorruptionError, match=r"labels\.npz: cannot be read"):
        Answers.read(folder, demo)


def test_for_accuracy_the_variance_is_that_of_a_mean_over_examples() -> None:
    answers = answers_of(("accuracy",))
    right = {key: logits.argmax(axis=1) == answers.labels for key, logits in answers.logits.items()}
    share = np.mean([right["full", seed].astype(float) - right["none", seed] for seed in range(3)], axis=0)
    assert answers.df == 399
    assert answers.variance(GAP, [0, 1, 2]) == pytest.approx(share.var(ddof=1) / 400)
    assert answers.variance({"full": 0.0}, [0]) == 0


@pytest.mark.parametrize(
    ("metrics", "classes"),
    [
        (("accuracy",), 2),
        (("accuracy", "f1"), 2),
        (("matthews",), 2),
        (("matthews",), 3),
        (("pearson", "spearman"), 1),
    ],
)
def test_the_variance_is_that_over_resampled_examples(metrics: tuple[str, ...], classes: int) -> None:
    answers = answers_of(metrics, classes=classes)
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(200):
        draw = rng.integers(len(answers.labels), size=len(answers.labels))
        scores = {
            key: answers.head.metrics(logits[draw], answers.labels[draw])["score"]
            for key, logits in answers.logits.items()
        }
        gaps.append(np.mean([scores["full", seed] - scores["none", seed] for seed in (0, 1)]))
    # A variance from 200 resamples is uncertain by 10 %, one from 100 blocks by 14 %.
    assert answers.variance(GAP, [0, 1]) == pytest.approx(np.var(gaps, ddof=1), rel=0.35)
    assert answers.df == (99 if classes == 1 else 399)
