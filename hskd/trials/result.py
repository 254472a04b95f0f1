"""The result of one trial, as its JSON file holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hskd.artifacts import read_record, unsealed, write_record
from hskd.errors import CorruptionError

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
"""Outputs of every scored split, ``(N, C)`` fp16: a row for each example, or each token, in their order."""
VERSION = 2
"""Version of :class:`TrialResult` that is written now."""


class StageRecord(BaseModel):
    """What a stage did, and what it cost. Fields that other versions wrote are kept."""

    model_config = ConfigDict(extra="allow")

    epochs: int
    steps: int
    """Steps of all epochs."""
    examples: int
    """Examples of an epoch."""
    seconds: float
    examples_per_second: float
    """Each example counts once an epoch."""
    first_loss: float | None
    last_loss: float | None
    clipped_share: float | None = None
    """Share of the steps whose gradient was clipped, which versions before 1 recorded."""
    held_out_loss: float | None = None
    """HSK stage: loss against full HSK of the same mapping, on dev examples."""
    reported_epoch: int | None = None
    """The epoch of the last stage that is reported, from 1, where it is not the last one (:mod:`hskd.compat`)."""


class TrialResult(BaseModel):
    """Everything that is known of a trial that is done.

    A field that does not apply is not written. Fields that other versions wrote are kept, and written back.
    """

    model_config = ConfigDict(extra="allow")

    version: int = 0
    """0 in files of before there was a version."""

    # The trial. These are None where no config was written down, as in a folder of `hskd distill` before version 1.
    id: str | None = None
    """Fingerprint of the config."""
    config: dict[str, Any] | None = None
    """The :class:`~hskd.trials.config.TrialConfig`, as it was written: an old one need not be valid today."""
    student_name: str | None = None
    """Kind and sizes of the student."""
    teacher_metrics: dict[str, dict[str, float]] | None = None
    """The teacher's metrics on each labelled split but train."""

    # What it was trained from.
    task: str
    head: dict[str, Any] | None = None
    """What the student predicts: ``kind``, ``label_names`` and ``metric_names``; None in files of earlier versions."""
    train_examples: int
    """Examples that the student trained on, augmented ones included."""
    augmented_examples: int | None = None
    data: str
    """Fingerprint of the training examples."""
    teacher: str | None
    """Fingerprint of the teacher; None where there was none."""
    student: str
    """Fingerprint of the initialised student."""
    student_parameters: int
    spec: str | None
    """Label of the HSK spec; None where no HSK is distilled."""
    spec_fields: dict[str, Any] | None
    kept_values: int
    full_values: int
    fraction: float
    """Kept values / values of full HSK of the same mapping, on real tokens."""
    fraction_padded: float
    """The same, counted on tokens padded to the maximum length."""
    bytes_per_example: float
    """What the spec's store takes on disk."""
    source: str | None = None
    """offline or online; None where there was no teacher."""
    teacher_dtype: str | None = None
    scores: str | None = None
    """Why there are no scores."""
    inputs: dict[str, dict[str, str]] | None = None
    """Fingerprints of the contents behind all this (:class:`~hskd.trials.inputs.Inputs`); None before version 2."""

    # How it was run.
    settings: dict[str, Any]
    """The :class:`~hskd.trials.settings.DistillSettings`."""
    dtype: str
    device: str
    threads: int
    compile: bool | None = None
    accumulate: int | None = None
    processes: int | None = None

    # What came of it.
    metrics: dict[str, dict[str, float]]
    """By split."""
    dev_scores: list[float]
    """Score on dev after each epoch of the last stage."""
    best_dev_score: float | None
    stages: dict[str, StageRecord]
    """hsk, prediction."""
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
        """The result that the JSON ``content`` of ``file`` holds; ``remedy`` says what to do once it is deleted.

        Raises:
            CorruptionError: it does not hold a trial's result.
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
        """The content of the result's file: every field that was given."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path) -> None:
        """Write the result's file, with a checksum of its content."""
        write_record(path, self.as_json())

    @property
    def scored_split(self) -> str:
        """The split that is reported: test where it has labels, else dev."""
        return "test" if "test" in self.metrics else "dev"

    @property
    def score_unit(self) -> str:
        """What 100 times a score is called."""
        return str((self.head or {}).get("unit", "%"))


def _advice(remedy: str) -> str:
    return f"Delete it, and {remedy}."
