"""The artifacts behind trials: teacher, students, one superset, derived stores; and a trial from them.

Everything is found in the work folder or made there, under a name that is a fingerprint of its recipe; a lock keeps
two processes from making the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, PretrainedConfig

from hskd.artifacts import Workspace, lock_path, read_json
from hskd.distill.general import general_distill
from hskd.distill.prepare import Prepared, Student, from_store, from_teacher
from hskd.distill.source import StoreSource
from hskd.distill.trial import HeldOut, Run, run_trial
from hskd.errors import HskdError
from hskd.grid.config import TrialConfig
from hskd.runtime import release_memory, set_threads
from hskd.spec import HSKSpec, Shape
from hskd.store.derive import derive
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.students.create import AnyStudent, StudentSettings, TinyBertSettings, create_rosita
from hskd.students.general import GeneralSettings
from hskd.students.pretrained import create_tinybert
from hskd.tasks import Task, TaskData, TokenizedSplit, load_task, tokenize
from hskd.tasks.augment import AUGMENTED
from hskd.teachers.finetune import METRICS_FILE, finetune
from hskd.teachers.loading import Teacher, load_tokenizer
from hskd.training import score
from hskd.watch import Silent, Watcher

HELD_OUT = 256
"""Dev examples on which the held-out HSK loss is measured."""


class Study:
    """What the trials of one grid share: task, teacher, superset. Trials may differ in all else.

    Args:
        trials: configs with the same task, teacher and machine, all offline or all online.
        work: folder of the artifacts.
        watcher: is told the progress.
    """

    def __init__(self, trials: Sequence[TrialConfig], work: Path, watcher: Watcher | None = None) -> None:
        self.trials = trials
        self.work = work
        self._first = trials[0]
        self._places = Workspace(work)
        self.watcher = watcher or Silent()
        self.device = torch.device(self._first.device)
        self._require_names()

    def _require_names(self) -> None:
        """Results are told apart by the students' names.

        Raises:
            HskdError: two students have the same.
        """
        names: dict[str, AnyStudent] = {}
        for student in dict.fromkeys(trial.student for trial in self.trials):
            if names.setdefault(student.name, student) != student:
                raise HskdError(
                    f"students: two of them are {student.name}, so that results could not tell them apart; "
                    "put them into two grids."
                )

    def _folder(self, kind: str, recipe: dict[str, Any]) -> Path:
        return self._places.folder(kind, recipe | {"hskd": version("hskd")})

    @cached_property
    def data(self) -> TaskData:
        """The task with its examples."""
        plan = self._first.task
        return load_task(plan.name, plan.data, plan.text_columns, plan.label_column, plan.augment)

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    @cached_property
    def _tokenized(self) -> dict[str, TokenizedSplit]:
        tokenizer = load_tokenizer(self._first.teacher.model)
        return tokenize(self.data, tokenizer, self.work / "tokens", self._first.task.max_length)

    @cached_property
    def splits(self) -> dict[str, TokenizedSplit]:
        """The tokenised examples of the task; ``train`` whole."""
        return {name: split for name, split in self._tokenized.items() if name != AUGMENTED}

    @cached_property
    def _real(self) -> TokenizedSplit:
        """Those of the task's training examples that students train on."""
        count = self._first.task.train_examples
        return self.splits["train"] if count is None else self.splits["train"].first(count)

    @cached_property
    def train(self) -> TokenizedSplit:
        """The students' training examples: the task's, then augmented ones."""
        augmented = self._tokenized.get(AUGMENTED)
        return self._real if augmented is None else self._real.followed_by(augmented)

    @cached_property
    def teacher_folder(self) -> Path:
        """The fine-tuned teacher; fine-tuned now if it is not there yet."""
        plan = self._first.teacher
        if plan.fine_tuned:
            return Path(plan.model)
        train = self.splits["train"] if plan.examples is None else self.splits["train"].first(plan.examples)
        recipe = self._first.recipe("teacher") | {"data": train.fingerprint, "task": self.task.name}
        return finetune(
            plan.model,
            self.task,
            self.splits | {"train": train},
            plan.settings,
            self._folder("teachers", recipe),
            dtype=self._first.dtype,
            device=self.device,
            begin_stage=lambda stage, steps: self.watcher.begin("teacher: fine-tuning", steps),
            advance=self.watcher.advance,
        )

    @cached_property
    def _teacher_key(self) -> str:
        """Identifies the teacher: by its recipe, or a given one by its weights."""
        return self._load_teacher().fingerprint if self._first.teacher.fine_tuned else self.teacher_folder.name

    @cached_property
    def _online_teacher(self) -> Teacher:
        """The teacher, kept in memory for the trials that run it."""
        return self._load_teacher()

    def _load_teacher(self) -> Teacher:
        teacher = Teacher.load(str(self.teacher_folder), self.task)
        teacher.model.to(self.device)
        return teacher

    @cached_property
    def teacher_metrics(self) -> dict[str, dict[str, float]]:
        """The teacher's metrics on every labelled split but ``train``."""
        if not self._first.teacher.fine_tuned:
            return read_json(self.teacher_folder / METRICS_FILE)["metrics"]  # type: ignore[no-any-return]
        teacher = self._load_teacher()
        return {
            name: score(teacher.model, self.task, split, self._first.dtype)
            for name, split in self.splits.items()
            if name != "train" and split.labels is not None
        }

    def student_folder(self, config: TrialConfig) -> Path:
        """The initialised student of a trial; made now if it is not there yet."""
        if isinstance(config.student, TinyBertSettings):
            return self._tinybert(config, config.student)
        folder = self._folder(
            "students",
            config.recipe("student") | {"teacher": self._teacher_key, "data": self.splits["train"].fingerprint},
        )
        if folder.exists():
            return folder
        train = self.splits["train"]
        assert isinstance(config.student, StudentSettings)
        examples = min(config.student.importance_examples or len(train), len(train))
        self.watcher.begin(f"{config.student_name}: importance", -(-examples // 32))
        return create_rosita(
            self._load_teacher(), train, config.student, folder, advance=lambda batches: self.watcher.advance()
        )

    def _tinybert(self, config: TrialConfig, settings: TinyBertSettings) -> Path:
        """A student of the TinyBERT type: it depends on no teacher but by its tokens, and on no examples."""
        general = None if settings.general is None else self._general(config, settings.general)
        recipe = {
            "student": settings.model_dump(mode="json"),
            "checkpoint": config.files.get("checkpoint") if general is None else general.name,
            "task": self.task.name,
            "labels": list(self.task.label_names),
            "model": config.teacher.model,
            "files": {name: config.files[name] for name in ("model",) if name in config.files},
        }
        folder = self._folder("students", recipe)
        if folder.exists():
            return folder
        return create_tinybert(
            settings, self.task, config.teacher.model, folder, general=general, report=self.watcher.say
        )

    def _general(self, config: TrialConfig, settings: GeneralSettings) -> Path:
        """The general student: of the teacher's body, whatever the task; distilled now if it is not there yet."""
        recipe = {
            "model": config.teacher.model,
            "settings": settings.model_dump(mode="json"),
            "files": {name: config.files[name] for name in ("model", "text") if name in config.files},
            "dtype": config.dtype,
            "device": config.device,
            "build_threads": config.build_threads,
        }
        return general_distill(
            config.teacher.model,
            settings,
            self._folder("general", recipe),
            dtype=config.dtype,
            device=self.device,
            begin_stage=lambda stage, steps: self.watcher.begin(f"{config.student_name}: {stage}", steps),
            advance=self.watcher.advance,
        )

    def student(self, config: TrialConfig) -> Student:
        """The initialised student of a trial, loaded."""
        return Student.load(self.student_folder(config), self.task)

    @cached_property
    def superset(self) -> Store:
        """The union of what the trials ask for, in one pass of the teacher over the training examples."""
        specs = [trial.spec for trial in self.trials]
        store = self._extract(self._real, "store: one pass of the teacher", specs)
        if self.train is self._real:
            return store
        return self._extract(self.train, "store: augmented examples", specs, store)

    @cached_property
    def held_out(self) -> tuple[TokenizedSplit, Store]:
        """Full HSK of some dev examples, on which the HSK stage's loss is compared between specs."""
        fulls = [trial.spec and trial.spec.full() for trial in self.trials]
        return self.held_out_examples, self._extract(self.held_out_examples, "store: held-out examples", fulls)

    @cached_property
    def held_out_examples(self) -> TokenizedSplit:
        """The dev examples on which the held-out HSK loss is measured."""
        dev = self.splits["dev"]
        return dev if len(dev) <= HELD_OUT else dev.first(HELD_OUT)

    def union(self, specs: Sequence[HSKSpec | None], teacher: PretrainedConfig) -> Superset:
        """What a superset must hold that serves ``specs``, one for each trial."""
        parts = [
            Superset.of([spec], Shape(trial.student.layers, teacher.num_hidden_layers, teacher.hidden_size, 1, 1))
            for spec, trial in zip(specs, self.trials, strict=True)
            if spec is not None
        ]
        precisions = {part.precision for part in parts} or {"fp16"}
        return Superset(
            layers=tuple(sorted({layer for part in parts for layer in part.layers})),
            attention_layers=tuple(sorted({layer for part in parts for layer in part.attention_layers})),
            precision=precisions.pop() if len(precisions) == 1 else "fp32",
        )

    def _extract(
        self, examples: TokenizedSplit, title: str, specs: Sequence[HSKSpec | None], extend: Store | None = None
    ) -> Store:
        superset = self.union(specs, AutoConfig.from_pretrained(self.teacher_folder))
        folder = self._folder(
            "stores",
            self._first.recipe()
            | {
                "teacher": self._teacher_key,
                "data": examples.fingerprint,
                "superset": asdict(superset),
            },
        )
        if folder.exists():
            return Store.open(folder)  # without loading the teacher
        teacher = self._load_teacher()
        self.watcher.begin(title, len(examples) - (0 if extend is None else len(extend)))
        return extract(
            teacher,
            self.task,
            examples,
            superset,
            folder,
            dtype=self._first.dtype,
            extend=extend,
            report=self.watcher.say,
            advance=self.watcher.advance,
        )

    def build(self) -> None:
        """Make everything that trials share, on all the threads that are set for that."""
        set_threads(self._first.build_threads)
        if not self._first.online:
            _ = self.superset
        _ = self.teacher_folder, self.held_out
        for config in {config.student: config for config in self.trials}.values():
            self.student_folder(config)
        release_memory()  # the teacher's: from here on students train alone

    def run(self, config: TrialConfig) -> tuple[Path, dict[str, Any]]:
        """Run a trial, or find it done: its folder, and what its ``result.json`` holds."""
        self.build()
        folder = self._folder("trials", config.identity)
        set_threads(config.threads)
        student = self.student(config)
        with FileLock(lock_path(folder)):
            prepared = self._prepared(config, student)
            run = Run(
                config.dtype,
                self.device,
                checkpoints=False,
                begin_stage=lambda stage, steps: self.watcher.begin(f"{config.title}: {stage}", steps),
                advance=self.watcher.advance,
            )
            return folder, run_trial(
                config.settings,
                self.task,
                self.splits | {"train": self.train},
                student.model,
                prepared.teacher_width,
                prepared.source,
                folder,
                run,
                student_folder=student.folder,
                record=prepared.record,
                held_out=self._held_out_source(config, student.layers),
            )

    def _prepared(self, config: TrialConfig, student: Student) -> Prepared:
        if config.online:
            teacher = self._online_teacher
            return from_teacher(teacher, config.settings, config.spec, student, self.task, self.train, config.dtype)
        derived = self._derived(self.superset, config.spec, student.layers)
        return from_store(self.superset, config.settings, config.spec, student, self.task, self.train, derived)

    def _derived(self, superset: Store, spec: HSKSpec | None, student_layers: int) -> Path:
        return self._folder(
            "stores",
            {
                "superset": superset.manifest.fingerprint,
                "spec": spec.model_dump(mode="json") if spec else None,
                "student_layers": student_layers,
            },
        )

    def _held_out_source(self, config: TrialConfig, student_layers: int) -> HeldOut | None:
        if config.spec is None:
            return None
        examples, superset = self.held_out
        full = config.spec.full()
        store = derive(superset, full, student_layers, self._derived(superset, full, student_layers))
        return examples, StoreSource(store, examples, student_layers)
