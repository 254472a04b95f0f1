"""Collect what a trial trains from, and refuse parts that do not belong together."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hskd.artifacts import read_record
from hskd.compat import refuse_offline
from hskd.distill.losses import require_comparable
from hskd.distill.source import KnowledgeSource, ShuffledSource, StoreSource
from hskd.errors import CorruptionError, HskdError, MismatchError
from hskd.heads import output_names
from hskd.paper.departures import Departures
from hskd.progress import Progress, Silent
from hskd.runtime import RunOptions
from hskd.selectors import Tokens
from hskd.spec import HSKSpec, Shape
from hskd.store.amount import HSKAmount, measure
from hskd.store.derive import derive
from hskd.store.on_device import device_for
from hskd.store.reader import Store
from hskd.store.spread import spread_of
from hskd.students import load_student
from hskd.students.base import STUDENT_FILE
from hskd.tasks import Task, TokenizedSplit, tokenizer_fingerprint
from hskd.tasks.content import labelled
from hskd.tasks.positions import require_positions
from hskd.teachers.fitting import require_fit
from hskd.teachers.loading import Teacher, load_tokenizer, model_fingerprint
from hskd.trials.settings import DistillSettings

NO_SCORES = "none: trained from the store alone, with no labelled data"


@dataclass(frozen=True, eq=False)
class Student:
    """A student loaded from disk, and its origin."""

    folder: Path
    model: PreTrainedModel
    tokenizer: str
    """Fingerprint of its tokenizer."""
    teacher: str | None
    """Fingerprint of the teacher that it was pruned from, if known."""

    @classmethod
    def load(cls, folder: Path, task: Task) -> Student:
        """Load the student in ``folder``.

        Raises:
            HskdError: there is no student.
            CorruptionError: one of its files is damaged.
            MismatchError: its labels differ from the task's.
        """
        model = load_student(folder, task.head)
        if not task.head.matches(model):
            raise MismatchError(
                f"{folder}: the student's labels are {list(output_names(model.config))}, those of task {task.name} "
                f"{list(task.label_names)}; make a student from a teacher of this task (hskd student)."
            )
        made = folder / STUDENT_FILE
        remedy = f"Delete {folder} and make the student again (hskd student)."
        record = read_record(made, remedy) if made.is_file() else {"teacher": None}
        teacher = record.get("teacher")
        if "teacher" not in record or not isinstance(teacher, str | None):
            raise CorruptionError(f"{made}: expected the fingerprint of a teacher. {remedy}")
        return cls(folder, model, tokenizer_fingerprint(load_tokenizer(str(folder))), teacher)

    @property
    def layers(self) -> int:
        """``L_S``, the number of layers without the embedding output."""
        return int(self.model.config.num_hidden_layers)

    def require_teacher(self, teacher: str, tokenizer: str, where: str) -> None:
        """Refuse knowledge of another tokenizer, or of another teacher than the one the student was pruned from.

        Raises:
            MismatchError: one of the two differs; the message says which.
        """
        if tokenizer != self.tokenizer:
            raise MismatchError(
                f"{where} and {self.folder} have different tokenizers: their tokens do not match one to one. "
                f"Use a student of that tokenizer, or a store extracted for this one: hskd store extract "
                f"--student-tokenizer {self.folder}."
            )
        if self.teacher is not None and teacher != self.teacher:
            raise MismatchError(
                f"{where}: is of teacher {teacher}, and {self.folder} was pruned from teacher {self.teacher}; "
                "use the store of that teacher, or prune a student from this one."
            )


@dataclass(frozen=True, eq=False)
class Prepared:
    """The knowledge that a trial trains from, and the trial's record.

    Attributes:
        source: the knowledge source; None for the arm *gold*.
        teacher_width: ``d_T``.
        record: identifies the trial apart from its settings, and says how much HSK it keeps.
        knowledge: fingerprint of everything read from a store; None if no store is read.
        spread: the teacher's standard deviations, if the loss of the HSK stage needs them.
        hsk_rows: the training examples whose HSK is kept, ascending; None for all.
    """

    source: KnowledgeSource | None
    teacher_width: int
    record: dict[str, Any]
    knowledge: str | None = None
    spread: torch.Tensor | None = None
    hsk_rows: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Distillation:
    """A distillation to prepare, independent of the source of knowledge.

    Attributes:
        settings: its arm determines what is distilled.
        spec: the spec that the arm *spec* distils; None for the spec of a derived store, or full HSK.
        student: the student.
        task: the task.
        train: the training examples.
    """

    settings: DistillSettings
    spec: HSKSpec | None
    student: Student
    task: Task
    train: TokenizedSplit


def from_store(
    store: Store,
    distillation: Distillation,
    derived: Path,
    progress: Progress | None = None,
    options: RunOptions | None = None,
) -> Prepared:
    """Prepare a trial that trains from a store: a superset to derive from, or the derived store of its spec.

    Args:
        store: the open store, which must hold all training examples.
        distillation: the distillation to prepare.
        derived: folder for the derived store.
        progress: receives progress reports of the derivation, and where the store is placed.
        options: the device, and whether the store is placed on it; None to read the store from disk.

    Raises:
        MismatchError: store, student, task or data do not belong together.
        HskdError: the superset does not hold what the spec needs, a switch of ``compat`` needs the teacher, or the
            store has to be placed on a device that has no room for it.
    """
    settings, student, task, train = distillation.settings, distillation.student, distillation.task, distillation.train
    refuse_offline(settings.compat, "Give --teacher (online) in place of --store, or leave it out.")
    manifest = store.manifest
    manifest.require(
        store.folder,
        task=task.name,
        head=task.head.kind,
        label_names=task.label_names,
        max_length=train.max_length,
    )
    student.require_teacher(manifest.origin.teacher, manifest.origin.tokenizer, str(store.folder))
    shape = manifest.shape(student.layers)
    store.require_tokens(train.tokens)
    kept = settings.arm_spec(distillation.spec or store.spec or HSKSpec())
    Departures(settings.compat).require_spec(kept)
    require_comparable(settings.hsk_loss, kept, manifest.teacher_width)
    given = store
    shares = kept is not None and not kept.examples.keeps_all
    if kept is not None and shares and len(store) != len(train):
        raise MismatchError(
            f"{store.folder}: holds {len(store)} examples, and {len(train)} are trained on: {kept.label} keeps the HSK "
            "of a share of all examples, so fewer examples would change the choice. Train on all of them, or extract a "
            "store of just these."
        )
    if kept is not None and manifest.kind == "superset":
        store = derive(store, kept, student.layers, derived, progress=progress)
    elif kept is not None and kept != store.spec:
        raise MismatchError(
            f"{store.folder}: keeps {store.spec.label if store.spec else '?'}, and {kept.label} is asked for; "
            "name the superset that it was derived from."
        )
    hsk_rows = None
    if shares:
        _require_labels_of(store, train, task)
        hsk_rows = np.flatnonzero(np.isin(store.rows(train.ids), store.rows_with_hsk))
    device = None
    if options is not None and settings.arm != "gold":
        device = device_for(store, options, progress or Silent())
    source: KnowledgeSource
    if settings.arm == "shuffled":
        source = ShuffledSource(store, train, student.layers, settings.seed, device)
    else:
        source = StoreSource(store, train, student.layers, device)
    return Prepared(
        source=None if settings.arm == "gold" else source,
        teacher_width=manifest.teacher_width,
        record=_record(
            distillation,
            manifest.origin.teacher,
            kept,
            shape,
            _with_targets(given, train),
            manifest.is_aligned,
            hsk_rows,
        )
        | {"source": "offline", "teacher_dtype": manifest.origin.dtype},
        knowledge=None if settings.arm == "gold" else _knowledge(store, train, kept),
        spread=spread_of(store, None if given is store else given)
        if kept is not None and settings.hsk_loss == "standardised"
        else None,
        hsk_rows=hsk_rows,
    )


def _require_labels_of(store: Store, train: TokenizedSplit, task: Task) -> None:
    """Refuse a store whose examples were chosen by gold labels that differ from the current ones.

    Raises:
        MismatchError: the labels differ.
    """
    chosen_by = store.manifest.gold_labels
    if chosen_by is None or train.labels is None:
        return
    if labelled(task.head, train.take(np.argsort(store.rows(train.ids)))) != chosen_by:
        raise MismatchError(
            f"{store.folder}: its examples were chosen by other gold labels than those of the training examples now; "
            "extract the superset again, and derive the spec from it."
        )


def _knowledge(store: Store, train: TokenizedSplit, kept: HSKSpec | None) -> str:
    """Return a fingerprint of the knowledge that a trial reads: its derived store, or else its examples' targets.

    The superset's fingerprint would not do, because the superset grows with what other trials need.
    """
    if kept is not None:
        return store.manifest.fingerprint
    targets = store.targets(store.rows(train.ids)).contiguous()
    return hashlib.sha256(targets.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _with_targets(store: Store, train: TokenizedSplit) -> Tokens:
    """Return the tokens of the training examples that have a target in ``store``."""
    return store.tokens(store.rows(train.ids)) if store.manifest.is_aligned else train.tokens


def from_teacher(teacher: Teacher, distillation: Distillation, dtype: str) -> Prepared:
    """Prepare a trial that trains from the teacher itself, which runs on every batch.

    Raises:
        MismatchError: teacher and student do not belong together, or the examples lack the teacher's token types.
        HskdError: the arm cannot be served online, or an example is longer than the teacher can take.
    """
    settings, student, train = distillation.settings, distillation.student, distillation.train
    if settings.arm == "shuffled":
        raise HskdError("the arm shuffled reads the HSK of other examples, so it needs a store: give --store.")
    aligned = train.aligned
    tokenizer = teacher.tokenizer_fingerprint
    if aligned is not None and aligned.teacher_tokenizer == tokenizer:
        tokenizer = aligned.student_tokenizer
    student.require_teacher(teacher.fingerprint, tokenizer, teacher.name)
    run_on = train if aligned is None else aligned.teacher
    require_positions(teacher.model.config, {"train": run_on}, f"teacher {teacher.name}")
    if run_on.token_type_ids is None and "token_type_ids" in teacher.tokenizer.model_input_names:
        raise MismatchError(
            f"{student.folder}: its tokenizer gives no token types, and that of {teacher.name} does. The teacher could "
            "not tell which of two sentences a token belongs to. Distil from a store, or make the student again "
            "(hskd student)."
        )
    require_fit(teacher.name, teacher.model, [run_on])
    kept = settings.arm_spec(distillation.spec or HSKSpec())
    shape = teacher.shape(student.layers)
    if aligned is not None:
        shape = replace(shape, vocab_size=aligned.vocabulary)
    departures = Departures(settings.compat)
    departures.require_spec(kept)
    require_comparable(settings.hsk_loss, kept, shape.teacher_width)
    source = departures.online_source(
        teacher, train.sep_id, kept, student.layers, dtype, None if aligned is None else train
    )
    shares = kept is not None and not kept.examples.keeps_all
    hsk_rows = source.rows_with_hsk(train) if shares else None
    fitted_on = train if hsk_rows is None else train.take(hsk_rows)
    source.fit(fitted_on)
    return Prepared(
        source=None if settings.arm == "gold" else source,
        teacher_width=shape.teacher_width,
        record=_record(
            distillation, teacher.fingerprint, kept, shape, train.with_targets, aligned is not None, hsk_rows
        )
        | {"source": "online", "teacher_dtype": dtype},
        spread=source.spread(fitted_on) if kept is not None and settings.hsk_loss == "standardised" else None,
        hsk_rows=hsk_rows,
    )


def without_teacher(distillation: Distillation) -> Prepared:
    """Prepare a trial that learns from gold labels alone, as the arm *gold* does."""
    return Prepared(None, distillation.student.model.config.hidden_size, _record(distillation, None, None, None))


def _record(
    distillation: Distillation,
    teacher: str | None,
    kept: HSKSpec | None,
    shape: Shape | None,
    tokens: Tokens | None = None,
    aligned: bool = False,
    hsk_rows: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return what identifies a trial, and how much HSK it keeps of ``tokens``, the tokens that have a target."""
    train, student = distillation.train, distillation.student
    amount = HSKAmount(0, 0, 0.0, 0.0, 0.0)
    if kept is not None and shape is not None and tokens is not None:
        target, total = distillation.task.head.target(), len(train.input_ids) if aligned else None
        amount = measure(kept, tokens, shape, train.max_length, target, aligned_tokens=total, chosen=hsk_rows)
    return {
        "task": distillation.task.name,
        "train_examples": len(train),
        **({} if train.real is None else {"augmented_examples": len(train) - train.real}),
        "data": train.fingerprint,
        "teacher": teacher,
        "student": model_fingerprint(student.model),
        "student_parameters": student.model.num_parameters(),
        "spec": kept.label if kept else None,
        "spec_fields": kept.model_dump(mode="json") if kept else None,
        **asdict(amount),
    }
