"""The result of one trial, as stored in its JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hskd.artifacts import read_record, unsealed, write_record
from hskd.errors import CorruptionError
from hskd.heads.metrics import unit_of

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
"""File with the outputs of every scored split, ``(N, C)`` fp16: one row per example or per token, in order."""
VERSION = 2
"""The version of :class:`TrialResult` that is written."""


class StageRecord(BaseModel):
    """The work of a stage, and its cost. Fields written by other versions are kept."""

    model_config = ConfigDict(extra="allow")

    epochs: int
    steps: int
    """Steps of all epochs together."""
    examples: int
    """Examples in one epoch."""
    seconds: float
    examples_per_second: float
    """Throughput, where each example counts once per epoch."""
    first_loss: float | None
    last_loss: float | None
    clipped_share: float | None = None
    """Share of the steps whose gradient was clipped. Only versions before 1 recorded it."""
    held_out_loss: float | None = None
    """HSK stage: loss on dev examples against full HSK of the same mapping."""
    reported_epoch: int | None = None
    """Last stage: the epoch that is reported, from 1, if it is not the last one (:mod:`hskd.compat`)."""


class TrialResult(BaseModel):
    """The record of a finished trial.

    A field that does not apply is not written. Fields written by other versions are kept, and written back.
    """

    model_config = ConfigDict(extra="allow")

    version: int = 0
    """0 in files from before there was a version."""

    # The trial. These are None if no config was recorded, as in a folder of `hskd distill` before version 1.
    id: str | None = None
    """Fingerprint of the config."""
    config: dict[str, Any] | None = None
    """The :class:`~hskd.trials.config.TrialConfig` as written at the time: an old one need not be valid today."""
    student_name: str | None = None
    """Kind and sizes of the student."""
    teacher_metrics: dict[str, dict[str, float]] | None = None
    """The teacher's metrics on each labelled split except train."""

    # What the student was trained from.
    task: str
    head: dict[str, Any] | None = None
    """What the student predicts: ``kind``, ``label_names`` and ``metric_names``; None in files of earlier versions."""
    train_examples: int
    """Examples that the student trained on, augmented ones included."""
    augmented_examples: int | None = None
    data: str
    """Fingerprint of the training examples."""
    teacher: str | None
    """Fingerprint of the teacher; None if there was none."""
    student: str
    """Fingerprint of the initialised student."""
    student_parameters: int
    spec: str | None
    """Label of the HSK spec; None if no HSK is distilled."""
    spec_fields: dict[str, Any] | None
    kept_values: int
    full_values: int
    fraction: float
    """Kept values / values of full HSK of the same mapping, on real tokens."""
    fraction_padded: float
    """The same fraction, counted on tokens padded to the maximum length."""
    bytes_per_example: float
    """Size of the spec's store on disk, per example."""
    source: str | None = None
    """offline or online; None if there was no teacher."""
    teacher_dtype: str | None = None
    scores: str | None = None
    """The reason if there are no scores."""
    inputs: dict[str, dict[str, str]] | None = None
    """Fingerprints of the contents behind all this (:class:`~hskd.trials.inputs.Inputs`); None before version 2."""

    # How it was run.
    settings: dict[str, Any]
    """The :class:`~hskd.trials.settings.DistillSettings`."""
    dtype: str
    device: str
    threads: int
    compile: bool | None = None
    capture: bool | None = None
    accumulate: int | None = None
    processes: int | None = None

    # What the trial gave.
    metrics: dict[str, dict[str, float]]
    """Metrics by split."""
    dev_scores: list[float]
    """Score on dev after each epoch of the last stage."""
    best_dev_score: float | None
    stages: dict[str, StageRecord]
    """By stage: hsk, prediction."""
    peak_memory_bytes: int
    made_by: dict[str, Any]
    """Versions, machine and commit."""

    @classmethod
    def read(cls, path: Path) -> TrialResult:
        """Read a result's file.

        Raises:
            HskdError: there is no such file.
            CorruptionError: it does not hold a trial's result.
        """
        remedy = "run the trial again"
        return cls.of(read_record(path, _advice(remedy)), path, remedy)

    @classmethod
    def of(cls, content: Any, file: Path | str, remedy: str) -> TrialResult:
        """Return the result in the JSON ``content`` of ``file``; ``remedy`` says what to do once it is deleted.

        Raises:
            CorruptionError: the content is not a trial's result.
        """
        try:
            return cls.model_validate(unsealed(content, file, _advice(remedy)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptionError(
                f"{file}: not a trial's result ({where}: {first['msg']}); delete it and {remedy}."
            ) from None

    def as_json(self) -> dict[str, Any]:
        """Return the content of the result's file: every field that was set."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path) -> None:
        """Write the result's file, with a checksum of its content."""
        write_record(path, self.as_json())

    @property
    def scored_split(self) -> str:
        """The split that is reported: test if it has labels, else dev."""
        return "test" if "test" in self.metrics else "dev"

    @property
    def score_unit(self) -> str:
        """The unit of 100 times a score."""
        head = self.head or {}
        # Earlier versions wrote per cent for most metrics, or nothing.
        if (recorded := head.get("unit", "%")) != "%":
            return str(recorded)
        scored = self.metrics.get(self.scored_split, {})
        return unit_of(head.get("metric_names") or [name for name in scored if name != "score"])


def _advice(remedy: str) -> str:
    return f"Delete it, and {remedy}."
