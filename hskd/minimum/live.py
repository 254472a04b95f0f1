"""A search on real trials, which run like those of a grid and write the same files.

A search keeps only results, and a file that records the question. A killed search starts over: it reads the results
that exist, so it makes the same decisions, and continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from hskd.artifacts import read_record, write_record
from hskd.errors import HskdError, MismatchError, brief
from hskd.grid.changes import differences
from hskd.grid.executors import Executor
from hskd.grid.record import ensure_error, grid_content
from hskd.grid.run import GridProgress
from hskd.grid.spec import GridSpec, load_grid, presets
from hskd.heads.metrics import in_unit
from hskd.minimum.search import Batch, Outcome, Rates, Scored, Search, SearchSettings, Sent, Trial
from hskd.minimum.space import PAPER, Candidate, Space, candidates, default_space, load_space, paper_space
from hskd.results import ResultsFolder, pack
from hskd.runtime import StoreOnDevice
from hskd.spec import HSKSpec, Shape
from hskd.store.amount import measure
from hskd.store.extract import Superset
from hskd.tasks.registry import TASKS
from hskd.teachers.loading import load_config
from hskd.trials.config import Machine, TrialConfig
from hskd.trials.result import TrialResult
from hskd.trials.workspace import Workspace

FIND_FILE = "find.json"
"""File beside the results that records the question of the search."""
RATES_FOLDER = "rates"
"""Folder of the trials that choose rates. It is separate, because they include several trials per point and seed."""
PRESET_OF = {"mr": "mr-joint"}
"""Tasks with a preset whose teacher, student and rates suit them."""


class Watcher(GridProgress, Protocol):
    """Progress reports that also cover a search: what it knows, and what it runs next and why."""

    def next_batch(self, batch: Batch, search: Search, waiting: int) -> None:
        """Report the start of a batch; ``waiting`` of its trials have no result yet."""


@dataclass(frozen=True, eq=False)
class Question:
    """The question of a search: everything that determines the answer, apart from the scores.

    Attributes:
        grid: task, teacher, one student and settings; its specs and seeds are ignored.
        space: the specs to search.
        settings: settings of the search, such as the tolerance.
        machine: precision, device and threads of the trials.
    """

    grid: GridSpec
    space: Space
    settings: SearchSettings
    machine: Machine

    @property
    def content(self) -> dict[str, Any]:
        """The question as JSON."""
        grid = grid_content(self.grid)
        for key in ("name", "seeds", "more_seeds", "arms", "sweeps", "include", "exclude"):
            grid.pop(key, None)
        return {
            "grid": grid,
            "space": self.space.model_dump(mode="json", exclude_unset=True),
            "settings": asdict(self.settings),
            "machine": asdict(self.machine),
        }


def grid_of(name: str) -> GridSpec:
    """Return the grid of a task, a preset, or a YAML file.

    Raises:
        HskdError: the name is none of these.
    """
    name = PRESET_OF.get(name, name)
    if name in presets() or Path(name).suffix in (".yaml", ".yml"):
        return load_grid(name)
    if TASKS.find(name) is None:
        raise HskdError(
            f"{name}: expected a task ({', '.join(TASKS)}), a preset ({', '.join(presets())}) or the path of a grid's "
            ".yaml file."
        )
    return GridSpec.model_validate({"name": name, "task": {"name": name}})


def has_rates(grid: GridSpec) -> bool:
    """Return whether a grid gives the learning rates of all specs, so that no search for them is needed."""
    return {"hsk_lr", "prediction_lr"} <= grid.training.model_fields_set and not grid.rates


class Trials:
    """The trials of a search, and the artifacts that they share.

    Args:
        grid: task, teacher, one student and settings.
        machine: precision, device and threads.
        work: folder of artifacts, shared by all grids.
    """

    def __init__(self, grid: GridSpec, machine: Machine, work: Path) -> None:
        [self.student] = grid.students
        self.grid = grid
        self.machine = machine
        self.work = work
        plain = grid.model_copy(update={"sweeps": (), "include": (), "arms": (), "more_seeds": None, "seeds": (0,)})
        self._none, self._full = (
            next(trial for trial in plain.trials(machine) if trial.settings.arm == arm) for arm in ("none", "full")
        )
        self._first = Workspace(work, [self._none, self._full])
        teacher = load_config(self._first.shared.teacher_plan.model)
        self.shape = Shape.of(teacher, self.student.layers)

    @property
    def full_spec(self) -> HSKSpec:
        """The spec that all candidates are compared with: full HSK of the grid's default mapping."""
        assert self._full.spec is not None
        return self._full.spec

    @property
    def tokens(self) -> float:
        """The mean number of tokens of a training example."""
        train = self._first.train
        return float(train.lengths.mean())

    def size_of(self, spec: HSKSpec) -> float:
        """Return the size of a spec's store in bytes per example."""
        train, target = self._first.train, self._first.task.head.target()
        return measure(spec, train.tokens, self.shape, train.max_length, target).bytes_per_example

    def space(self, name: str | None) -> Space:
        """Return the space with that name or file, or else the default space for this student and data.

        Raises:
            HskdError: the file cannot be read.
        """
        if name is None:
            return default_space(self.shape, self.tokens)
        return paper_space(self.shape) if name == PAPER else load_space(name)

    def candidates(self, space: Space) -> list[Candidate]:
        """Return the candidates of a space.

        Raises:
            HskdError: no spec satisfies its constraints.
        """
        return candidates(space, self.shape, self.size_of)

    def workspace(self, chosen: Sequence[Candidate], store_on_device: StoreOnDevice = "auto") -> Workspace:
        """Return the artifacts of all trials that a search among these candidates may need."""
        covering: dict[Any, TrialConfig] = {}
        for one in chosen:
            covering.setdefault(Superset.of([one.spec], self.shape), self._of_spec(one.spec))
            covering.setdefault(one.spec.full().canonical, self._of_spec(one.spec.full()))
        return Workspace(self.work, [self._none, self._full, *covering.values()], store_on_device=store_on_device)

    def _of_spec(self, spec: HSKSpec) -> TrialConfig:
        """Return a trial of a spec. A spec that keeps everything has the arm *full* in any precision, as in a grid."""
        arm = "full" if spec == spec.full() else "spec"
        settings = self._full.settings.model_copy(update={"arm": arm})
        return self._full.model_copy(update={"settings": settings, "spec": spec})

    def config(self, trial: Trial, chosen: Sequence[Candidate]) -> TrialConfig:
        """Return the config of a trial that a search requests."""
        base = self._none if trial.arm == "none" else self._full
        if trial.candidate is not None:
            base = self._of_spec(chosen[trial.candidate].spec)
        changes: dict[str, Any] = {"seed": trial.seed}
        if trial.rates is not None:
            changes["prediction_lr"] = trial.rates.prediction
            if trial.arm != "none":
                changes["hsk_lr"] = trial.rates.hsk
        return base.model_copy(update={"settings": base.settings.model_copy(update=changes)})

    def scored_examples(self) -> int:
        """Return how many examples the reported score is computed on; 0 if unknown before a trial is run."""
        splits = self._first.splits
        split = splits.get("test")
        return len(split if split is not None and split.labels is not None else splits["dev"])


class Runner:
    """Runs the trials that a search requests.

    Args:
        trials: makes the configs.
        chosen: the candidates.
        out: folder of the results.
        executor: runs the trials.
        watcher: receives progress reports.
        seconds: time after which no further batch begins; None for no limit.
        clock: returns a time in seconds, from any origin.
    """

    def __init__(
        self,
        trials: Trials,
        chosen: Sequence[Candidate],
        out: Path,
        executor: Executor,
        watcher: Watcher,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials = trials
        self._chosen = chosen
        self._out = out
        self._executor = executor
        self._watcher = watcher
        self._workspace = trials.workspace(chosen, executor.store_on_device)
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self._failed = 0

    def run(self, search: Search) -> Outcome:
        """Run a search to its end, and pack the results.

        Raises:
            HskdError: no trial of a batch could be run.
        """
        asking = search.run()
        with self._executor.keep():  # starting a process or a cluster takes seconds, and a search has many batches
            try:
                batch = next(asking)
                while True:
                    batch = asking.send(self._evaluate(batch, search))
            except StopIteration as stop:
                outcome: Outcome = stop.value
        for folder in (self._out, self._out / RATES_FOLDER):
            if ResultsFolder(folder).exists:
                pack(folder)
        return outcome

    def _evaluate(self, batch: Batch, search: Search) -> Sent:
        out = self._out / RATES_FOLDER if batch.stage == "rates" else self._out
        configs = [self._trials.config(trial, self._chosen) for trial in batch.trials]
        results = self._kept(configs, out)
        waiting = [config for config in configs if config.id not in results]
        if waiting and self._end is not None and self._clock() >= self._end:
            return []
        self._watcher.next_batch(batch, search, len(waiting))
        self._plan(configs, out)
        errors: dict[str, str] = {}
        if waiting:
            self._workspace.ensure_shared(self._watcher)
            left = len(waiting)
            for config, result, error in self._executor.run(self._workspace, waiting, out, self._watcher):
                left -= 1
                if result is None:
                    errors[config.id] = error or "failed"
                    ensure_error(out, config, errors[config.id])
                    news = f"{config.title}: failed: {error}"
                else:
                    results[config.id] = result
                    news = f"{config.title}: {in_unit(_reported(result), result.score_unit)} on {result.scored_split}"
                self._failed += result is None
                running = min(self._executor.slots, left)
                total = search.settings.budget
                known = search.known.trials + len(batch.trials) - left
                self._watcher.trials(known - self._failed, self._failed, total, news, running)
        if not results:
            raise HskdError(
                f"no trial of a batch could be run ({batch.why}); the first error: {next(iter(errors.values()))}"
            )
        return [_scored(results[config.id]) if config.id in results else None for config in configs]

    def _kept(self, configs: Sequence[TrialConfig], out: Path) -> dict[str, TrialResult]:
        """Return the existing results whose data and models have not changed since."""
        folder = ResultsFolder(out)
        kept = {}
        for config in configs:
            result = folder.result(config.id)
            if result is not None and not (result.inputs and self._workspace.inputs(config).changes(result.inputs)):
                kept[config.id] = result
        return kept

    def _plan(self, configs: Sequence[TrialConfig], out: Path) -> None:
        folder = ResultsFolder(out)
        planned = folder.planned() or []
        more = [config.id for config in configs if config.id not in set(planned)]
        if more:
            out.mkdir(parents=True, exist_ok=True)
            folder.write_plan([*planned, *more])


def _reported(result: TrialResult) -> float:
    return result.metrics[result.scored_split]["score"]


def _scored(result: TrialResult) -> Scored:
    return Scored(_reported(result), result.metrics["dev"]["score"])


def record(out: Path, question: Question) -> None:
    """Record the question of a search beside its results.

    An earlier search in ``out`` may have had another space or other settings; its results are used again. Its task,
    teacher, student and training must be the same.

    Raises:
        MismatchError: ``out`` holds a search, or a grid, of another task, teacher, student or training.
        CorruptionError: the existing record cannot be read.
    """
    file, content = out / FIND_FILE, question.content
    before = read_record(file, "Delete it, and run the search again.")["grid"] if file.is_file() else None
    if before is None and (written := ResultsFolder(out).grid()) is not None:
        try:
            grid = GridSpec.model_validate(written)
        except ValidationError:
            raise MismatchError(f"{out}: holds a grid that this version cannot read; choose another --out.") from None
        if question.grid.students[0] in grid.students:
            grid = grid.model_copy(update={"students": question.grid.students})
        before = replace(question, grid=grid).content["grid"]
    if before is not None and (changes := differences(before, content["grid"])):
        key, value = next(iter(changes.items()))
        raise MismatchError(
            f"{out}: holds trials with another {key} than now ({brief(value)}). Choose another --out, or use the value "
            "of these trials."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_record(file, content)


def settings_for(trials: Trials, settings: SearchSettings, search_rates: bool) -> SearchSettings:
    """Return the settings of a search, completed by its grid's rates and by the resolution of scores on its data."""
    training = trials.grid.training
    examples = trials.scored_examples()
    return replace(
        settings,
        search_rates=search_rates,
        rates=Rates(training.hsk_lr, training.prediction_lr),
        none_lr=trials.grid.none_lr or training.prediction_lr,
        # The resolution of a score: a difference changes in steps of whole examples.
        least_spread=0.5 / examples if examples else 0.0,
    )
