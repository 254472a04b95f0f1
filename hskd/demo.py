"""The demo: the paper's effect on real sentences, from nothing to a table, on two cores in minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from pydantic import BaseModel, ConfigDict

from hskd.artifacts import Workspace, atomic_path
from hskd.distill.prepare import Student, from_store
from hskd.distill.settings import Arm, DistillSettings
from hskd.distill.trial import Run, run_trial
from hskd.runtime import resolve_device, resolve_dtype, set_threads
from hskd.spec import HSKSpec
from hskd.store.extract import Superset, extract
from hskd.store.reader import Store
from hskd.students.create import StudentSettings, create_rosita
from hskd.tasks import load_task, tokenize
from hskd.teachers.finetune import TeacherSettings, finetune, teacher_metrics
from hskd.teachers.loading import OFFLINE_MINILM, Teacher, load_tokenizer

TASK = "mr"
SPECS = ("1l_1t_0.1w", "1l_3t_0.1w", "2l_3t_0.1w", "2l_8t_0.1w", "2l_8t_0.5w", "2l_all_0.5w,width=magnitude")
"""From 0.09 % to 25 % of full HSK."""


class DemoPlan(BaseModel):
    """Sizes and rates of the demo; the rates were chosen on the dev split (docs/design.md)."""

    model_config = ConfigDict(frozen=True)

    teacher_examples: int | None = None
    teacher: TeacherSettings = TeacherSettings(epochs=2, lr=5e-5)
    student: StudentSettings = StudentSettings(layers=3, heads=2, ffn=96, importance_examples=1024)
    train_examples: int = 2000
    distill: DistillSettings = DistillSettings(
        hsk_epochs=4, prediction_epochs=2, hsk_lr=4e-4, prediction_lr=2e-4, warmup=0.1
    )
    none_lr: float = 4e-4
    """Learning rate of the arm *none*."""

    @classmethod
    def quick(cls) -> DemoPlan:
        """A shrunken demo, to see that everything runs; its scores mean nothing."""
        return cls(
            teacher_examples=2000,
            teacher=TeacherSettings(epochs=1, lr=1e-4),
            student=StudentSettings(layers=3, heads=2, ffn=96, importance_examples=128),
            train_examples=500,
            distill=DistillSettings(hsk_epochs=2, prediction_epochs=2, hsk_lr=4e-4, prediction_lr=2e-4, warmup=0.1),
        )

    def trials(self, seeds: int) -> Iterator[tuple[DistillSettings, str | None]]:
        """Settings and spec of every trial: none, the specs, full, for each seed."""
        for seed in range(seeds):
            yield self.arm("none", seed, prediction_lr=self.none_lr), None
            for spec in SPECS:
                yield self.arm("spec", seed), spec
            yield self.arm("full", seed), None

    def arm(self, arm: Arm, seed: int, **changes: Any) -> DistillSettings:
        """The demo's settings for one arm and seed."""
        return self.distill.model_copy(update={"arm": arm, "seed": seed, **changes})


class Watcher(Protocol):
    """Who is told how far the demo is."""

    def begin(self, title: str, total: int) -> None:
        """A part of ``total`` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def say(self, message: str) -> None:
        """Something worth a line."""


class Demo:
    """Teacher, student and store of the demo, found in ``work`` or made there; then any trial from them.

    Args:
        plan: sizes and rates.
        work: folder of the artifacts. A second run finds them all, a killed one goes on.
        watcher: is told the progress.
        threads: CPU threads; None for torch's default.

    Raises:
        HskdError: the packages that carry teacher and sentences are missing, or the disk is full.
    """

    def __init__(self, plan: DemoPlan, work: Path, watcher: Watcher, threads: int | None = None) -> None:
        self.plan = plan
        self.watcher = watcher
        used_threads = set_threads(threads)
        self.device = resolve_device()
        self.dtype = resolve_dtype("auto", self.device)
        self._places = Workspace(work)
        self._machine = {
            "dtype": self.dtype,
            "device": self.device.type,
            "threads": used_threads,
            "hskd": version("hskd"),
        }
        data = load_task(TASK)
        self.task = data.task
        self.splits = tokenize(data, load_tokenizer(OFFLINE_MINILM), work / "tokens")
        teacher_folder = self._teacher()
        self.teacher_score = float(teacher_metrics(teacher_folder)["metrics"]["test"]["score"])
        watcher.say(f"teacher: {100 * self.teacher_score:.1f} % on test")
        # Gone when this method ends: the trials run with no teacher in memory.
        teacher = Teacher.load(str(teacher_folder), self.task)
        teacher.model.to(self.device)
        self._student_folder = self._student(teacher)
        self.train = self.splits["train"].first(plan.train_examples)
        self.store = self._store(teacher)

    def _folder(self, kind: str, **recipe: Any) -> Path:
        return self._places.folder(kind, self._machine | recipe)

    def _teacher(self) -> Path:
        count = self.plan.teacher_examples
        train = self.splits["train"] if count is None else self.splits["train"].first(count)
        return finetune(
            OFFLINE_MINILM,
            self.task,
            self.splits | {"train": train},
            self.plan.teacher,
            self._folder(
                "teachers", model=OFFLINE_MINILM, data=train.fingerprint, settings=self.plan.teacher.model_dump()
            ),
            dtype=self.dtype,
            device=self.device,
            begin_stage=lambda stage, steps: self.watcher.begin("teacher: fine-tuning", steps),
            advance=self.watcher.advance,
        )

    def _student(self, teacher: Teacher) -> Path:
        train, settings = self.splits["train"], self.plan.student
        folder = self._folder("students", teacher=teacher.fingerprint, settings=settings.model_dump())
        examples = min(settings.importance_examples or len(train), len(train))
        self.watcher.begin("student: importance", -(-examples // 32))
        return create_rosita(teacher, train, settings, folder, advance=lambda batches: self.watcher.advance())

    def _store(self, teacher: Teacher) -> Store:
        specs = [HSKSpec.parse(spec) for spec in SPECS] + [HSKSpec()]
        superset = Superset.of(specs, teacher.shape(self.plan.student.layers))
        folder = self._folder(
            "stores", teacher=teacher.fingerprint, data=self.train.fingerprint, superset=asdict(superset)
        )
        self.watcher.begin("store: one pass of the teacher", len(self.train))
        return extract(
            teacher,
            self.task,
            self.train,
            superset,
            folder,
            dtype=self.dtype,
            report=self.watcher.say,
            advance=self.watcher.advance,
        )

    def trial(self, settings: DistillSettings, spec: str | None, title: str) -> dict[str, Any]:
        """Run one trial, or find it done; its result as a row of the table."""
        student = Student.load(self._student_folder, self.task)
        wanted = HSKSpec.parse(spec) if spec else None
        kept = settings.arm_spec(wanted or HSKSpec())
        derived = self._folder(
            "stores",
            superset=self.store.manifest.fingerprint,
            spec=kept.model_dump(mode="json") if kept else None,
            student_layers=student.layers,
        )
        prepared = from_store(self.store, settings, wanted, student, self.task, self.train, derived)
        run = Run(
            self.dtype,
            self.device,
            checkpoints=False,
            begin_stage=lambda stage, steps: self.watcher.begin(f"{title}: {stage}", steps),
            advance=self.watcher.advance,
        )
        result = run_trial(
            settings,
            self.task,
            self.splits | {"train": self.train},
            student.model,
            prepared.teacher_width,
            prepared.source,
            self._folder("trials", **prepared.record, settings=settings.model_dump()),
            run,
            student_folder=self._student_folder,
            record=prepared.record,
        )
        return trial_row(result, self.plan, self.teacher_score)


def run_demo(plan: DemoPlan, seeds: int, work: Path, out: Path, watcher: Watcher, threads: int | None = None) -> Path:
    """Every trial of the plan for so many seeds; returns the table, ``<out>/trials.csv``. See :class:`Demo`."""
    demo = Demo(plan, work, watcher, threads)
    trials = list(plan.trials(seeds))
    rows = []
    for number, (settings, spec) in enumerate(trials, start=1):
        title = f"trial {number}/{len(trials)}: {spec or settings.arm}, seed {settings.seed}"
        rows.append(demo.trial(settings, spec, title))
        watcher.say(f"{title}: {100 * rows[-1]['score']:.1f} % on test")
    table = out / "trials.csv"
    with atomic_path(table) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return table


def trial_row(result: dict[str, Any], plan: DemoPlan, teacher_score: float) -> dict[str, Any]:
    """A trial's result as a row of the table. Scores are shares; the last epoch's test score is what is reported."""
    settings, sizes = result["settings"], plan.student
    stages = result["stages"]
    return {
        "task": result["task"],
        "student": f"rosita-{sizes.layers}l-{sizes.heads}h-{sizes.ffn}ffn",
        "train_examples": result["train_examples"],
        "arm": settings["arm"],
        "spec": result["spec"] if settings["arm"] == "spec" else "",
        "seed": settings["seed"],
        "fraction": result["fraction"],
        "fraction_padded": result["fraction_padded"],
        "kept_values": result["kept_values"],
        "bytes_per_example": result["bytes_per_example"],
        "score": result["metrics"]["test"]["score"],
        "score_split": "test",
        "dev_score": result["metrics"]["dev"]["score"],
        "best_dev_score": result["best_dev_score"],
        "teacher_score": teacher_score,
        "hsk_epochs": stages.get("hsk", {}).get("epochs", 0),
        "prediction_epochs": stages["prediction"]["epochs"],
        "hsk_lr": settings["hsk_lr"],
        "prediction_lr": settings["prediction_lr"],
        "hsk_seconds": stages.get("hsk", {}).get("seconds", 0.0),
        "prediction_seconds": stages["prediction"]["seconds"],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "dtype": result["dtype"],
        "threads": result["threads"],
    }
