"""Pinned loss traces of short runs. A change that moves them changes the result of every trial.

They are written with seven digits. Over eight steps, fp32 arithmetic with AVX-512, AVX2 or SSE differs from them by
less than 1e-6 of their value, which is rounding. The tolerance of 1e-4 allows for the libraries of other processors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.distill_lab import Lab, StudentKind, arguments, losses

from hskd.distill.trainer import HSKModule, HSKTrainer, PredictionTrainer
from hskd.spec import HSKSpec

HSK: dict[tuple[StudentKind, str], list[float]] = {
    ("rosita", "all_all_all"): [2.828359, 2.611264, 2.651628, 2.428977, 2.260775, 2.326504, 2.096346, 2.002841],
    ("rosita", "2l_3t_0.5w"): [3.266442, 2.958405, 2.881091, 2.493251, 2.330423, 2.297051, 1.978463, 1.913162],
    ("narrow", "2l_3t_0.5w"): [4.389693, 4.23278, 4.223407, 3.772747, 3.815898, 3.882805, 3.430016, 3.532188],
}
PREDICTION: dict[StudentKind, list[float]] = {
    "rosita": [1.508212, 1.382411, 1.364123, 0.9984815, 0.7316994, 0.7024658, 0.699989, 0.7132779],
    "narrow": [0.7698087, 0.7683043, 0.8054899, 0.7772214, 0.727409, 0.7482002, 0.7325307, 0.7131663],
}


@pytest.mark.parametrize(("kind", "text"), HSK)
def test_hsk_stage(lab: Lab, kind: StudentKind, text: str, tmp_path: Path) -> None:
    source = lab.online(HSKSpec.parse(f"{text},precision=fp32"))
    module = HSKModule(lab.student(kind), 32, seed=3)
    trainer = HSKTrainer(module, arguments(tmp_path, epochs=2, seed=3), lab.train, source)
    assert losses(trainer) == pytest.approx(HSK[kind, text], rel=1e-4)


@pytest.mark.parametrize("kind", PREDICTION)
def test_prediction_stage(lab: Lab, kind: StudentKind, tmp_path: Path) -> None:
    settings = arguments(tmp_path, epochs=2, seed=3, schedule="linear", warmup_steps=0.25)
    trainer = PredictionTrainer(lab.classifier(kind), settings, lab.train, lab.online(None), tau=2.0)
    assert losses(trainer) == pytest.approx(PREDICTION[kind], rel=1e-4)
