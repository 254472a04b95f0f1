"""The artifacts behind trials: teacher, students, one superset, derived stores.

Each artifact is found in the work folder, or made there under a fingerprint of its recipe. A lock keeps two processes
from making the same one. Only methods called ``ensure_...`` make anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from hskd import processes
from hskd.artifacts import ArtifactFolders, build, locked, require_whole, seal
from hskd.distill.source import StoreSource
from hskd.errors import HskdError
from hskd.heads.scores import require_ranks
from hskd.progress import Prefixed, Progress
from hskd.runtime import RunOptions, StoreOnDevice, release_memory, set_threads
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.extract import ExtractOptions, Superset, extract
from hskd.store.reader import Store
from hskd.students.kinds import StudentContext
from hskd.tasks import Task, TokenizedSplit
from hskd.tasks.content import labelled
from hskd.teachers.finetune import ensure_scores, finetune
from hskd.teachers.loading import Teacher, checked_model, load_config, model_content
from hskd.training import HeadModule, Predictor
from hskd.trials.config import GivenStudent, TaskPlan, TeacherPlan, TrialConfig
from hskd.trials.data import Examples, store_alone_examples, task_examples
from hskd.trials.inputs import Inputs, inputs_of
from hskd.trials.prepare import Distillation, Prepared, Student, from_store, from_teacher, without_teacher
from hskd.trials.stages import HeldOut

_LABELS_FILE = "labels.npy"
HELD_OUT = 256
"""Number of dev examples on which the held-out HSK loss is measured."""

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Shared:
    """The part of the config that all trials of a workspace share. They may differ in everything else."""

    task: TaskPlan
    teacher: TeacherPlan | None
    store: str | None
    store_alone: bool
    given: bool
    online: bool
    dtype: str
    device: str
    build_threads: int
    files: tuple[tuple[str, str], ...]
    """Fingerprints of the user's files behind the task and the teacher."""

    @classmethod
    def of(cls, config: TrialConfig) -> Shared:
        """Return the shared part of a trial's config."""
        files = tuple(sorted((name, key) for name, key in config.files.items() if name in ("data", "augment", "model")))
        names = [field.name for field in fields(cls) if field.name != "files"]
        return cls(**{name: getattr(config, name) for name in names}, files=files)

    def require(self, config: TrialConfig) -> None:
        """Refuse a trial with another shared part.

        Raises:
            HskdError: a field differs; the message names it.
        """
        other = Shared.of(config)
        for field in fields(self):
            if getattr(other, field.name) != getattr(self, field.name):
                raise HskdError(
                    f"{config.title}: has another {field.name} than the other trials of its workspace "
                    f"({getattr(other, field.name)}, not {getattr(self, field.name)}); put it into a grid of its own."
                )

    @property
    def teacher_plan(self) -> TeacherPlan:
        """The teacher.

        Raises:
            HskdError: there is no teacher.
        """
        if self.teacher is None:
            raise HskdError("the trial has no teacher: it trains from a store, or from labels alone.")
        return self.teacher

    def recipe(self) -> dict[str, Any]:
        """Return what artifacts made by the teacher depend on."""
        # Neither teacher nor student depends on augmented sentences, and a store's recipe contains its examples.
        files = {name: key for name, key in self.files if name != "augment"}
        return {
            "teacher": self.teacher_plan.model_dump(mode="json"),
            "dtype": self.dtype,
            "device": self.device,
            "build_threads": self.build_threads,
            **({"files": files} if files else {}),
        }


class Workspace:
    """The artifacts that trials need: their common task, teacher and superset, and their students.

    Args:
        work: folder of the artifacts.
        trials: all trials that share the superset, which holds the union of what they need.
        folder: folder of the trial, if there is only one [default: each in ``work``, named by a fingerprint of its
            config].
        options: how trials train on this machine. Precision and device must be those of the trials [default: those of
            the trials, without checkpoints].
        store_on_device: see :class:`~hskd.runtime.RunOptions`. It is read only if there are no ``options``.

    Raises:
        HskdError: there are no trials, their shared parts differ, two students have the same name, or a store has to
            be placed on the device and the teacher runs online.
    """

    def __init__(
        self,
        work: Path,
        trials: Sequence[TrialConfig],
        *,
        folder: Path | None = None,
        options: RunOptions | None = None,
        store_on_device: StoreOnDevice = "auto",
    ) -> None:
        if not trials:
            raise HskdError("a workspace needs at least one trial, and none is given.")
        self.work = work
        self.trials = trials
        self.shared = Shared.of(trials[0])
        for config in trials:
            self.shared.require(config)
        self._require_names()
        self._folder_of_trial = folder
        self._options = options
        self.store_on_device = store_on_device if options is None else options.store_on_device
        if self.shared.online and self.store_on_device == "always":
            raise HskdError(
                "--store-on-device always: the teacher runs on every batch (online), so there is no store; use auto, "
                "or train from a store."
            )
        self._artifacts = ArtifactFolders(work)
        self._online_teacher: Teacher | None = None
        self._teacher_key: str | None = None
        self._teacher_metrics: Metrics | None = None
        self._superset: Store | None = None
        self._held_out: Store | None = None
        self._ready = False

    def _require_names(self) -> None:
        """Refuse two students with the same name, because results identify students by name.

        Raises:
            HskdError: two students have the same name.
        """
        names: dict[str, Any] = {}
        for student in dict.fromkeys(trial.student for trial in self.trials):
            if names.setdefault(student.name, student) != student:
                raise HskdError(
                    f"students: two of them are {student.name}, so that results could not tell them apart; "
                    "put them into two grids."
                )

    def require_of_here(self, config: TrialConfig) -> None:
        """Refuse a trial that the workspace's artifacts do not serve.

        Raises:
            HskdError: the trial belongs to another workspace; the message says why.
        """
        self.shared.require(config)
        if self._folder_of_trial is not None and config != self.trials[0]:
            raise HskdError(f"{self._folder_of_trial}: is the folder of another trial; make a workspace for this one.")

    def options(self, config: TrialConfig) -> RunOptions:
        """Return how a trial trains on this machine."""
        return self._options or RunOptions(
            config.dtype, self.device, checkpoints=False, store_on_device=self.store_on_device
        )

    def trial_folder(self, config: TrialConfig) -> Path:
        """Return the folder of a trial, which need not exist yet."""
        if self._folder_of_trial is not None:
            return self._folder_of_trial
        return self._artifacts.folder("trials", config.identity | {"inputs": dict(self.inputs(config).trained)})

    def is_users(self, folder: Path) -> bool:
        """Return whether a trial's folder is the user's own, outside the work folder."""
        return self._folder_of_trial == folder

    @contextmanager
    def lock(self, folder: Path, progress: Progress) -> Iterator[None]:
        """Keep other processes from running the trial in ``folder``; a process that has to wait reports it."""
        with ExitStack() as locks:
            processes.by_main(lambda: locks.enter_context(locked(folder, progress)))
            yield

    def inputs(self, config: TrialConfig) -> Inputs:
        """Return what the result of a trial depends on, by content."""
        return inputs_of(config, self.examples)

    # ---- inputs, which are only read

    @property
    def device(self) -> torch.device:
        """The device that models run on."""
        return torch.device(self.shared.device) if self._options is None else self._options.device

    @cached_property
    def examples(self) -> Examples:
        """The examples in the students' tokens, aligned with the teacher's tokens if its tokenizer differs."""
        tokenizer, teacher = self._tokenizer_model(), self.shared.teacher
        if self.shared.store_alone:
            return store_alone_examples(self._given_store(), self.shared.task, tokenizer)
        return task_examples(self.shared.task, tokenizer, self.work, teacher=None if teacher is None else teacher.model)

    @cached_property
    def teacher_examples(self) -> Examples:
        """The examples in the teacher's own tokens."""
        if self.examples.train.aligned is None:
            return self.examples
        return task_examples(self.shared.task, self.shared.teacher_plan.model, self.work)

    def _tokenizer_model(self) -> str:
        """Return the model whose tokenizer the students have: a given student, or by default the teacher.

        Raises:
            HskdError: the students have different tokenizers.
        """
        students = dict.fromkeys(trial.student for trial in self.trials)
        models = {
            student.folder
            if isinstance(student, GivenStudent)
            else student.tokenizer_model(self.shared.teacher_plan.model): student.name
            for student in students
        }
        if len(models) > 1:
            raise HskdError(
                f"students: {' and '.join(models.values())} have different tokenizers, and one store holds the tokens "
                "of one; put them into grids of their own."
            )
        return next(iter(models))

    @property
    def task(self) -> Task:
        """The task."""
        return self.examples.task

    @property
    def splits(self) -> dict[str, TokenizedSplit]:
        """The tokenised examples of the task; ``train`` has all its examples."""
        return self.examples.splits

    @property
    def train(self) -> TokenizedSplit:
        """The students' training examples: the task's, then augmented ones."""
        return self.examples.train

    @cached_property
    def held_out_examples(self) -> TokenizedSplit:
        """The dev examples on which the held-out HSK loss is measured."""
        dev = self.splits["dev"]
        return dev if len(dev) <= HELD_OUT else dev.first(HELD_OUT)

    def _given_store(self) -> Store:
        if self.shared.store is None:
            raise HskdError("the trial has no store to take its examples from.")
        if self._superset is None:
            self._superset = Store.open(self.shared.store)
        return self._superset

    # ---- artifacts, which are made if missing

    def ensure_shared(self, progress: Progress) -> None:
        """Make everything that trials share, with the number of threads set for shared artifacts."""
        if self._ready:
            return
        for config in self.trials:
            require_ranks(config.spec, self.task.head)
        if self.shared.given:
            self.ensure_labels(progress)
            return
        set_threads(self.shared.build_threads)
        self.ensure_teacher(progress)
        self.ensure_labels(progress)
        if not self.shared.online:
            self.ensure_superset(progress)
        self.ensure_held_out(progress)
        for config in {config.student: config for config in self.trials}.values():
            self.ensure_student(config, progress)
        self._ready = True
        release_memory()  # the teacher's, because from here on only students train

    def ensure_teacher(self, progress: Progress) -> Path:
        """Return the folder of the teacher, which is fine-tuned first if it does not exist."""
        plan = self.shared.teacher_plan
        if plan.fine_tuned:
            return Path(plan.model)
        if not self.task.head.has_gold_labels:
            return Path(checked_model(plan.model))
        splits = self.teacher_examples.splits
        train = splits["train"] if plan.examples is None else splits["train"].first(plan.examples)
        content = {
            "task": self.task.name,
            "data": labelled(self.task.head, train),
            "model": model_content(plan.model),
        }
        folder = self._artifacts.folder("teachers", self.shared.recipe() | content)
        options = RunOptions(self.shared.dtype, self.device)
        return finetune(plan.model, self.task, splits | {"train": train}, plan.settings, folder, options, progress)

    @property
    def _teacher_is_given(self) -> bool:
        """Whether the teacher is used as given, without fine-tuning."""
        return self.shared.teacher_plan.fine_tuned or not self.task.head.has_gold_labels

    def ensure_labels(self, progress: Progress) -> None:
        """Take the teacher's outputs as labels of scored splits, if the task has none; train needs no labels."""
        if self.task.head.has_gold_labels or self.shared.store_alone or self.shared.teacher is None:
            return
        for name, split in self.teacher_examples.splits.items():
            if name == "train" or split.labels is not None:
                continue
            recipe = {"teacher": self._key_of_teacher(progress), "data": split.fingerprint, "dtype": self.shared.dtype}
            folder = self._artifacts.folder("labels", recipe | {"device": self.shared.device})

            def write(partial: Path, split: TokenizedSplit = split) -> None:
                teacher = self._load_teacher(progress)
                rows = Predictor(HeadModule(teacher.model, teacher.head), self.shared.dtype).rows(split)
                if processes.is_main():
                    np.save(partial / _LABELS_FILE, rows)
                    seal(partial)

            build(folder, write, together=True, progress=progress)
            require_whole(folder)
            labels = np.load(folder / _LABELS_FILE)
            for examples in (self.teacher_examples, self.examples):
                examples.splits[name] = replace(examples.splits[name], labels=labels)

    def _load_teacher(self, progress: Progress) -> Teacher:
        teacher = Teacher.load(str(self.ensure_teacher(progress)), self.task)
        teacher.model.to(self.device)
        return teacher

    def _key_of_teacher(self, progress: Progress) -> str:
        """Return what identifies the teacher: its recipe's fingerprint or, for a given teacher, that of its weights."""
        if self._teacher_key is None:
            folder = self.ensure_teacher(progress)
            self._teacher_key = self._load_teacher(progress).fingerprint if self._teacher_is_given else folder.name
        return self._teacher_key

    def teacher_metrics(self, progress: Progress) -> Metrics | None:
        """Return the teacher's metrics on each labelled split except ``train``; None if folders are given.

        A given teacher of a grid is scored first, which takes a forward pass over these splits.
        """
        if self.shared.given:
            return None
        if self._teacher_metrics is None:
            if not self._teacher_is_given:
                options = RunOptions(self.shared.dtype, self.device)
                folder = self.ensure_teacher(progress)
                splits = self.teacher_examples.splits
                self._teacher_metrics = ensure_scores(folder, self.task, splits, options, progress)
            else:
                teacher = self._load_teacher(progress)
                predictor = Predictor(HeadModule(teacher.model, teacher.head), self.shared.dtype)
                self._teacher_metrics = {
                    name: predictor.score(split)
                    for name, split in self.teacher_examples.splits.items()
                    if name != "train" and split.labels is not None
                }
        return self._teacher_metrics

    def ensure_student(self, config: TrialConfig, progress: Progress) -> Path:
        """Return the folder of a trial's initialised student, which is made first if it does not exist."""
        if isinstance(config.student, GivenStudent):
            return Path(config.student.folder)
        context = self._student_context(config, progress)
        folder = self._artifacts.folder("students", config.student.recipe(context))
        if folder.exists():
            return folder
        return config.student.create(context, folder, Prefixed(progress, config.student_name))

    def _student_context(self, config: TrialConfig, progress: Progress) -> StudentContext:
        """Return what the trial's student may be made from."""
        recipe = config.recipe()
        return StudentContext(
            task=self.task,
            model=self.shared.teacher_plan.model,
            teacher=lambda: self._load_teacher(progress),
            teacher_key=lambda: self._key_of_teacher(progress),
            train=lambda: self.teacher_examples.splits["train"],
            artifact_folder=self._artifacts.folder,
            device=self.device,
            machine={name: recipe[name] for name in ("dtype", "device", "build_threads")},
            files=recipe.get("files", {}),
        )

    def load_student(self, config: TrialConfig, progress: Progress) -> Student:
        """Return the initialised student of a trial, loaded."""
        return Student.load(self.ensure_student(config, progress), self.task)

    def ensure_superset(self, progress: Progress) -> Store:
        """Return a store of all that the trials need, extracted in one pass of the teacher unless a store is given."""
        if self.shared.store is not None:
            return self._given_store()
        if self._superset is None:
            specs = [trial.spec for trial in self.trials]
            examples = self.examples
            store = self._ensure_extracted(examples.real, specs, Prefixed(progress, "store"))
            if examples.train is not examples.real:
                told = Prefixed(progress, "store of augmented examples")
                store = self._ensure_extracted(examples.train, specs, told, store)
            self._superset = store
        return self._superset

    def ensure_held_out(self, progress: Progress) -> Store:
        """Return a store of full HSK of some dev examples, to compare the HSK stage's loss between specs."""
        if self._held_out is None:
            fulls = [trial.spec and trial.spec.full() for trial in self.trials]
            told = Prefixed(progress, "store of held-out examples")
            self._held_out = self._ensure_extracted(self.held_out_examples, fulls, told)
        return self._held_out

    def union(self, specs: Sequence[HSKSpec | None], teacher: PretrainedConfig) -> Superset:
        """Return what a superset must hold to serve ``specs``, one for each trial."""
        return Superset.union(
            Superset.of([spec], Shape.of(teacher, trial.student.layers))
            for spec, trial in zip(specs, self.trials, strict=True)
            if spec is not None
        )

    def _ensure_extracted(
        self, examples: TokenizedSplit, specs: Sequence[HSKSpec | None], progress: Progress, extend: Store | None = None
    ) -> Store:
        superset = self.union(specs, load_config(str(self.ensure_teacher(progress))))
        folder = self._artifacts.folder(
            "stores",
            self.shared.recipe()
            | {
                "teacher": self._key_of_teacher(progress),
                "data": examples.fingerprint,
                "superset": superset.recipe,
                **({} if examples.aligned is None else {"alignment": examples.aligned.fingerprint}),
                **({"labels": labelled(self.task.head, examples)} if superset.gold_losses else {}),
            },
        )
        if folder.exists():
            return Store.open(folder)  # without loading the teacher
        options = ExtractOptions(self.shared.dtype, extend=extend)
        return extract(self._load_teacher(progress), self.task, examples, superset, folder, options, progress)

    def prepare(self, config: TrialConfig, distillation: Distillation, progress: Progress) -> Prepared:
        """Return the knowledge that a trial trains from: its teacher's, its store's, or none for labels alone."""
        if config.online:
            if self._online_teacher is None:  # kept in memory for the trials that run it
                self._online_teacher = self._load_teacher(progress)
            return from_teacher(self._online_teacher, distillation, config.dtype)
        if config.given and config.store is None:
            return without_teacher(distillation)
        store = self.ensure_superset(progress)
        derived = self._derived(store, config.spec, distillation.student.layers)
        return from_store(store, distillation, derived, progress, self.options(config))

    def _derived(self, superset: Store, spec: HSKSpec | None, student_layers: int) -> Path:
        if self._folder_of_trial is not None and self.shared.given:
            return self._folder_of_trial / "store"
        return self._artifacts.folder(
            "stores",
            {
                "superset": superset.manifest.fingerprint,
                "spec": spec.model_dump(mode="json") if spec else None,
                "student_layers": student_layers,
            },
        )

    def held_out_source(self, config: TrialConfig, student_layers: int, progress: Progress) -> HeldOut | None:
        """Return held-out examples with full HSK of a trial's mapping; None without HSK, or if folders are given."""
        if config.spec is None or config.given:
            return None
        superset, full = self.ensure_held_out(progress), config.spec.full()
        store = derive(superset, full, student_layers, self._derived(superset, full, student_layers))
        return self.held_out_examples, StoreSource(store, self.held_out_examples, student_layers)
