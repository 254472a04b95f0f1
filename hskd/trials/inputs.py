"""The contents that a trial's result depends on. A name or path in the config may refer to other contents later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.artifacts import SCHEMAS
from hskd.hashing import content_fingerprint, fingerprint, known_sha256
from hskd.paper.departures import Departures
from hskd.store.reader import Store
from hskd.tasks.content import labelled, scored
from hskd.teachers.loading import PROJECTION_FILE, model_content
from hskd.trials.config import GivenStudent, TrialConfig

if TYPE_CHECKING:
    from hskd.trials.data import Examples

SCHEMA = "code of hskd"


@dataclass(frozen=True)
class Inputs:
    """Fingerprints of contents, each under a name that messages can use.

    Attributes:
        trained: what training depends on.
        scored: by split, what its scores depend on apart from the student.
    """

    trained: Mapping[str, str] = field(default_factory=dict)
    scored: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, str]]:
        """Return the part of a result that records these inputs."""
        return {"trained": dict(self.trained), "scored": dict(self.scored)}

    def changes(self, recorded: Mapping[str, Any] | None) -> list[str]:
        """Return the names of inputs that differ from a recorded result; empty if it recorded no inputs."""
        return self.changes_in_training(recorded) + self.changes_in_scores(recorded)

    def changes_in_training(self, recorded: Mapping[str, Any] | None) -> list[str]:
        """Return the names of training inputs that differ from a recorded result."""
        return _differing(self.trained, recorded, "trained")

    def changes_in_scores(self, recorded: Mapping[str, Any] | None) -> list[str]:
        """Return the splits whose examples or labels differ from a recorded result."""
        return _differing(self.scored, recorded, "scored")


def _differing(now: Mapping[str, str], recorded: Mapping[str, Any] | None, part: str) -> list[str]:
    if recorded is None:
        return []
    before = recorded.get(part) or {}
    return [name for name, key in now.items() if before.get(name) != key] + [
        name for name in before if part == "scored" and name not in now
    ]


def inputs_of(config: TrialConfig, examples: Examples) -> Inputs:
    """Return what the result of a trial depends on. Nothing is made or trained for this.

    Args:
        config: the trial.
        examples: its examples.

    Raises:
        HskdError: a model or a text that the config names cannot be read.
    """
    head = examples.task.head
    trained = {"training examples": examples.train.fingerprint}
    modules = not head.has_gold_labels
    by_split = {}
    for name, split in examples.splits.items():
        if name == "train":
            continue
        if head.labels_come_from_teacher(split.labels):
            # The teacher has not run yet, so its content stands for the labels that it will give.
            if config.teacher is not None and not config.store_alone:
                content = model_content(config.teacher.model, modules)
                by_split[name] = fingerprint([scored(head, replace(split, labels=None)), content])
        elif split.labels is not None:
            by_split[name] = scored(head, split)
    if isinstance(config.student, GivenStudent):
        # Student and teacher weights are not added here: the record of the prepared trial contains them.
        start = Path(config.student.folder) / PROJECTION_FILE
        if start.is_file():
            trained["start of W"] = known_sha256(start)
        chosen_by_labels = config.spec is not None and config.spec.examples.needs_losses
        if config.settings.arm == "gold" or (chosen_by_labels and config.online):
            trained["labels"] = labelled(head, examples.train)
    else:
        trained["labels"] = labelled(head, examples.splits["train"])
        if config.teacher is not None:
            trained["model"] = model_content(config.teacher.model, modules)
        trained |= config.student.contents()
    if Departures(config.settings.compat).trains_by_dev and "dev" in by_split:
        trained["dev, by which the epoch is chosen"] = by_split["dev"]
    trained[SCHEMA] = fingerprint({kind: number for kind, number in SCHEMAS.items() if kind != "stores"})
    return Inputs(trained, by_split)


def with_contents(config: TrialConfig) -> TrialConfig:
    """Return a config of given folders with their contents in ``files``, so that its id depends on them, not on paths.

    Raises:
        HskdError: a folder does not hold the expected artifact.
    """
    if not isinstance(config.student, GivenStudent) or "student" in config.files:
        return config
    files = {"student": model_content(config.student.folder, modules=True)}
    if config.teacher is not None:
        files["model"] = model_content(config.teacher.model, modules=True)
    if config.store is not None:
        files["store"] = Store.open(config.store).manifest.fingerprint
    for name, place in (("data", config.task.data), ("augment", config.task.augment)):
        if place is not None and Path(place).exists():
            files[name] = content_fingerprint(Path(place))
    return config.model_copy(update={"files": files | config.files})
