"""Grid specs: YAML files that define the trials of a study."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hskd import safe_yaml
from hskd.compat import refuse_offline, require_regression
from hskd.errors import HskdError, brief, cut
from hskd.grid.rates import FamilyRates, Label, family_of_arm, rates_for, read_rates, spec_of
from hskd.hashing import content_fingerprint
from hskd.io import with_home
from hskd.plugins import load_plugins
from hskd.spec import DIMENSIONS, HSKSpec
from hskd.students.general.settings import GeneralSettings
from hskd.students.kinds import STUDENTS, AnyStudent
from hskd.students.rosita.settings import RositaSettings
from hskd.tasks.builtin.glue import GLUE_TASKS
from hskd.tasks.registry import TASKS
from hskd.trials.config import Machine, TaskPlan, TeacherPlan, TrialConfig
from hskd.trials.settings import Arm, DistillSettings

MOST_TRIALS, MOST_SPECS, MOST_VALUES = 10_000, 2_000, 500
"""The largest allowed grid: trials, specs, and values in a list of a sweep. All are counted before any is made."""
MOST_FILES = 10_000
"""The most files in a folder of data or of a model. A larger folder is probably a mistake, and slow to read."""
MOST_PROBLEMS = 10
"""The most mistakes of a grid file that one message reports."""
LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy accepts."""
PRESETS = Path(__file__).parent / "presets"
_ANY_TASK = "TASK"
"""Placeholder in the name and the text of a preset that exists for every GLUE task."""
_SHORT = {
    "n": ("depth", "n"),
    "l_top": ("depth", "l_top"),
    "k": ("length", "k"),
    "w": ("width", "w"),
    "e": ("examples", "e"),
}
"""Selector fields with a short name in sweeps. All others are written ``dimension.field``."""
_WHOLE = {
    "n": {"selector": "top_n"},
    "l_top": {"selector": "top_n"},
    "k": {"selector": "left"},
    "w": {"selector": "uniform"},
    "e": {"selector": "random"},
}
"""Selectors that accept any amount. Amounts are validated with them."""
_AMOUNTS = {"length": "k", "width": "w", "examples": "e"}
"""The amount of a dimension. If a sweep leaves it out, the dimension is kept whole, and its selector has no effect."""


class Sweep(BaseModel):
    """The product of the listed values; a dimension that is not listed is kept whole.

    One dimension alone: ``{k: [1, 3, all], length: [attention_no_sep, left]}``. Jointly: ``{n: [1, 2], k: [1, 3],
    w: [0.1], e: [0.25]}``. Any other field of a selector is written ``dimension.field``: ``{w: [0.1],
    width: [magnitude, random], width.seed: [0, 1]}``. A selector without that field occurs only once.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    n: Annotated[tuple[int | Literal["all"], ...], Field(max_length=MOST_VALUES, description="Top student layers.")] = (
        "all",
    )
    l_top: Annotated[
        tuple[int | float, ...], Field(max_length=MOST_VALUES, description="Teacher layer for the top, or a share.")
    ] = (1.0,)
    k: Annotated[tuple[int | Literal["all"], ...], Field(max_length=MOST_VALUES, description="Tokens per example.")] = (
        "all",
    )
    length: Annotated[tuple[str, ...], Field(max_length=MOST_VALUES, description="Selectors along length.")] = (
        "attention_no_sep",
    )
    w: Annotated[
        tuple[float | Literal["all"], ...], Field(max_length=MOST_VALUES, description="Share of the neurons.")
    ] = ("all",)
    width: Annotated[tuple[str, ...], Field(max_length=MOST_VALUES, description="Selectors along width.")] = (
        "magnitude",
    )
    precision: Annotated[tuple[str, ...], Field(max_length=MOST_VALUES, description="Precisions.")] = ("fp16",)
    depth: Annotated[
        tuple[str, ...],
        # Omitted from the file if it has the default, as in the committed grids, which predate other selectors.
        Field(
            max_length=MOST_VALUES, description="Selectors along depth.", exclude_if=lambda values: values == ("top_n",)
        ),
    ] = ("top_n",)
    e: Annotated[
        tuple[float | Literal["all"], ...],
        Field(
            max_length=MOST_VALUES,
            description="Share of the training examples.",
            exclude_if=lambda values: values == ("all",),
        ),
    ] = ("all",)
    examples: Annotated[
        tuple[str, ...],
        Field(
            max_length=MOST_VALUES,
            description="Selectors along examples.",
            exclude_if=lambda values: values == ("random",),
        ),
    ] = ("random",)
    __pydantic_extra__: dict[str, Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_VALUES)]] = Field(
        init=False
    )

    @field_validator(*DIMENSIONS)
    @classmethod
    def _are_known(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in names:
            _part(str(info.field_name), {"selector": name})
        return names

    @field_validator(*_SHORT, mode="before")
    @classmethod
    def _are_numbers(cls, values: Any) -> Any:
        return _without_booleans(values)

    @field_validator(*_SHORT)
    @classmethod
    def _are_amounts(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        dimension, field = _SHORT[str(info.field_name)]
        for value in values:
            _part(dimension, _WHOLE[field] | {field: value})
        return values

    @model_validator(mode="after")
    def _go_together(self) -> Sweep:
        for selector, amount in _AMOUNTS.items():
            if selector in self.model_fields_set and amount not in self.model_fields_set:
                raise ValueError(f"{selector} chooses nothing where all is kept; say how much with {amount}")
        for key in self.settings:
            self._require_field(key)
        if self.size > MOST_SPECS:
            raise ValueError(f"{self.size:,} specs in one sweep; a grid has at most {MOST_SPECS:,}")
        try:
            list(self.specs())
        except HskdError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def settings(self) -> dict[str, tuple[Any, ...]]:
        """The values of the keys ``dimension.field``."""
        return dict(self.__pydantic_extra__ or {})

    def _require_field(self, key: str) -> None:
        """Refuse a key that is not a field of a listed selector, or a value that the field does not accept."""
        dimension, dot, field = key.partition(".")
        short = next((name for name, full in _SHORT.items() if full == (dimension, field)), None)
        if not dot or dimension not in DIMENSIONS or field == "selector" or short:
            hint = f"write {short or dimension} instead; " if dot and dimension in DIMENSIONS else ""
            known = [*type(self).model_fields, *_swept_fields()]
            raise _at(key, f"unknown key; {hint}known here: {', '.join(known)}")
        listed: tuple[str, ...] = getattr(self, dimension)
        classes = {name: DIMENSIONS[dimension][name] for name in listed}
        owners = {name: cls for name, cls in classes.items() if field in cls.model_fields}
        if not owners:
            fields = [f"{dimension}.{name}" for cls in classes.values() for name in _fields(dimension, cls)]
            raise _at(
                key,
                f"none of the selectors along {dimension} ({', '.join(listed)}) has a field {field}; their fields are "
                f"{', '.join(dict.fromkeys(fields)) or 'none'}",
            )
        for value in self.settings[key]:
            for name in owners:
                try:
                    _part(dimension, {"selector": name, field: value})
                except ValueError as error:
                    raise _at(key, str(error)) from None

    def _swept(self, dimension: str) -> dict[str, tuple[Any, ...]]:
        """Return the values of each key of a dimension, except its selectors."""
        swept = {short: getattr(self, short) for short, (owner, _) in _SHORT.items() if owner == dimension}
        return swept | {key: values for key, values in self.settings.items() if key.partition(".")[0] == dimension}

    @property
    def size(self) -> int:
        """The largest possible number of specs: the size of the product, computed without building it."""
        lengths = [
            len(values)
            for dimension in DIMENSIONS
            for values in (getattr(self, dimension), *self._swept(dimension).values())
        ]
        return math.prod(lengths)

    def _choices(self, dimension: str) -> list[dict[str, Any]]:
        """Return the different settings of one dimension's selector that the sweep defines."""
        amount = _AMOUNTS.get(dimension)
        choices: dict[str, dict[str, Any]] = {}
        swept = self._swept(dimension)
        for values in itertools.product(*swept.values()):
            for name in getattr(self, dimension):
                known = DIMENSIONS[dimension][name].model_fields
                given = {key.rpartition(".")[2]: value for key, value in zip(swept, values, strict=True)}
                # Drop fields that only other selectors have, but always keep the amounts k, w and e.
                always = _AMOUNTS.values()
                given = {field: value for field, value in given.items() if field in known or field in always}
                choice = {"selector": name, **given}
                if amount is not None and amount not in self.model_fields_set:
                    choice = {**_WHOLE[amount], amount: "all"}
                choices.setdefault(repr(choice), choice)
        return list(choices.values())

    def specs(self) -> Iterator[HSKSpec]:
        """Yield the specs of the sweep."""
        parts = [self._choices(dimension) for dimension in DIMENSIONS]
        for choices in itertools.product(*parts):
            yield HSKSpec.parse(dict(zip(DIMENSIONS, choices, strict=True)))


def _part(dimension: str, fields: dict[str, Any]) -> None:
    spec_of({dimension: fields})


def _at(key: str, message: str) -> PydanticCustomError:
    """Return an error about one key of a mapping that pydantic validates as a whole."""
    return PydanticCustomError("key", "{message}", {"key": key, "message": message})


def _fields(dimension: str, selector: type[BaseModel]) -> list[str]:
    """Return the fields of a selector that have no short name."""
    return [
        field for field in selector.model_fields if field != "selector" and (dimension, field) not in _SHORT.values()
    ]


def _swept_fields() -> list[str]:
    """Return every key ``dimension.field`` that a registered selector allows."""
    return list(
        dict.fromkeys(
            f"{dimension}.{field}"
            for dimension, registry in DIMENSIONS.items()
            for name in registry
            for field in _fields(dimension, registry[name])
        )
    )


def _without_booleans(values: Any) -> Any:
    """Return ``values``, but refuse true and false, because pydantic would read ``yes`` as 1."""
    for value in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(value, bool):
            raise ValueError(f"expected a number, got {str(value).lower()}")
    return values


class MoreSeeds(BaseModel):
    """Further seeds, beyond the grid's, for *none*, every *full* and the specs whose difference must be settled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: Annotated[
        int, Field(ge=1, le=MOST_TRIALS, description="Seeds in all, from 0."), BeforeValidator(_without_booleans)
    ]
    specs: Annotated[tuple[Label, ...], Field(max_length=MOST_SPECS, description="Specs of the grid.")] = ()


class GridSpec(BaseModel):
    """A planned set of trials. It always contains *none* and *full* (one for each mapping)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[
        str, Field(max_length=100, description="Name of the grid; results lie in results/NAME.", pattern=r"^\w[\w.-]*$")
    ]
    # First, because other fields may use names that plug-ins register. Omitted if empty, as in the recorded grids.
    plugins: Annotated[
        tuple[str, ...],
        Field(
            max_length=MOST_VALUES,
            description="Modules that register selectors, students, heads or tasks.",
            exclude_if=lambda names: not names,
        ),
    ] = ()
    task: TaskPlan = TaskPlan()
    teacher: TeacherPlan = TeacherPlan()
    students: Annotated[tuple[AnyStudent, ...], Field(min_length=1, max_length=MOST_VALUES)] = (RositaSettings(),)
    online: Annotated[
        bool,
        Field(description="The teacher runs in the training loop of every trial, which some switches of compat need."),
    ] = False
    training: Annotated[
        DistillSettings, Field(description="Epochs, rates, batch size; arm and seed are set by the grid.")
    ] = DistillSettings()
    none_lr: Annotated[
        float | None, Field(gt=0, description="Learning rate of none and gold [default: training.prediction_lr].")
    ] = None
    rates: Annotated[
        tuple[FamilyRates, ...],
        # Omitted from the file if empty, as in the grids recorded so far.
        Field(
            max_length=MOST_SPECS,
            description="Learning rates of none, full and each family of specs, instead of those of training and "
            "none_lr; or a file of them.",
            exclude_if=lambda rates: not rates,
        ),
    ] = ()
    seeds: Annotated[
        Annotated[int, Field(ge=1, le=MOST_TRIALS)]
        | Annotated[
            tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...], Field(min_length=1, max_length=MOST_TRIALS)
        ],
        Field(description="Number of seeds, from 0, or a list of seeds."),
        BeforeValidator(_without_booleans),
    ] = 1
    more_seeds: Annotated[
        MoreSeeds | None, Field(description="Further seeds for none, full and some of the specs.")
    ] = None
    arms: Annotated[
        tuple[Literal["paper_none", "gold", "shuffled"], ...],
        Field(max_length=MOST_VALUES, description="Arms in addition to none and full."),
    ] = ()
    sweeps: Annotated[
        tuple[Sweep, ...], Field(max_length=MOST_VALUES, description="Products of amounts and selectors.")
    ] = ()
    include: Annotated[
        tuple[Label, ...], Field(max_length=MOST_SPECS, description="Further specs, such as 1l_3t_0.1w.")
    ] = ()
    exclude: Annotated[
        tuple[Label, ...],
        Field(
            max_length=MOST_SPECS,
            description="Specs to leave out, or full HSK in a precision, such as all_all_all,precision=int4.",
        ),
    ] = ()

    @field_validator("plugins")
    @classmethod
    def _are_loaded(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        try:
            load_plugins(modules)
        except HskdError as error:
            raise ValueError(str(error)) from None
        return modules

    @field_validator("rates", mode="before")
    @classmethod
    def _may_be_a_file(cls, rates: Any) -> Any:
        try:
            return read_rates(rates) if isinstance(rates, str) else rates
        except HskdError as error:
            raise ValueError(str(error)) from None

    @field_validator("training")
    @classmethod
    def _leaves_arm_and_seed(cls, training: DistillSettings) -> DistillSettings:
        written = [field for field in ("arm", "seed") if field in training.model_fields_set]
        if written:
            raise ValueError(f"{' and '.join(written)}: set by the grid; use the keys arms and seeds")
        return training

    @field_validator("arms")
    @classmethod
    def _can_be_run(cls, arms: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "gold" in arms and "task" in info.data and info.data["task"].augment is not None:
            raise ValueError("gold learns from labels, and the sentences of task.augment have none; leave one out")
        if "shuffled" in arms and info.data.get("online"):
            raise ValueError("shuffled reads the HSK of other examples from a store, and online there is none")
        return arms

    @field_validator("training")
    @classmethod
    def _comes_from_a_store(cls, training: DistillSettings, info: ValidationInfo) -> DistillSettings:
        task = info.data.get("task")
        try:
            if not info.data.get("online"):
                refuse_offline(training.compat, "A grid trains from one: leave it out, or set online: true.")
            if task is not None and (entry := TASKS.find(task.name)) is not None:
                require_regression(training.compat, entry.task)
        except HskdError as error:
            raise ValueError(str(error)) from None
        return training

    @model_validator(mode="after")
    def _is_small_and_finite(self) -> GridSpec:
        for where, value in _numbers(
            self.model_dump(mode="python", include={"task", "teacher", "students", "training"})
        ):
            if not math.isfinite(value):
                raise _at(where.partition(".")[0], f"{where}: expected a finite number, got {value}")
        size = sum(sweep.size for sweep in self.sweeps) + len(self.include)
        if size > MOST_SPECS:
            raise _at(
                "sweeps" if self.sweeps else "include",
                f"{size:,} specs in sweeps and include; a grid has at most {MOST_SPECS:,}",
            )
        specs, every_full = self.specs(), self.fulls()
        fulls, compared = len(every_full), {full.depth for full in every_full}
        alone = next((spec for spec in specs if spec.full().depth not in compared), None)
        if alone is not None:
            raise _at(
                "exclude",
                f"{alone.label} is compared with {alone.full().label}, which is left out in every precision of this "
                "grid; keep one",
            )
        written = {spec.canonical for spec in specs}
        more = self.more_seeds
        for label in more.specs if more else ():
            if HSKSpec.parse(label).canonical not in written:
                raise _at("more_seeds", f"{label} is not a spec of this grid; add it to sweeps or include")
        points = 1 + len(self.arms) + (2 if "shuffled" in self.arms else 1) * fulls + len(specs)
        trials = len(self.seed_list) * points + (more.seeds * (1 + fulls + len(more.specs)) if more else 0)
        trials *= len(self.students)
        if trials > MOST_TRIALS:
            raise _at("seeds", f"{trials:,} trials; a grid has at most {MOST_TRIALS:,}, so split it into several")
        if self.rates:
            for student, (arm, spec) in itertools.product(self.students, self._points()):
                self._settings(arm, spec, student)
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, without duplicates."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else tuple(dict.fromkeys(self.seeds))

    def _written(self) -> list[HSKSpec]:
        excluded = self._excluded()
        specs = [spec for sweep in self.sweeps for spec in sweep.specs()]
        specs += [HSKSpec.parse(label) for label in self.include]
        unique = {spec.canonical: spec for spec in specs}
        return [spec for text, spec in unique.items() if text not in excluded]

    def specs(self) -> list[HSKSpec]:
        """Return the different specs in the order written, without excluded specs and without full HSK."""
        return [spec for spec in self._written() if spec != spec.full()]

    def fulls(self) -> list[HSKSpec]:
        """Return full HSK for every mapping and precision that occurs; the default one if there are no specs.

        A full that ``exclude`` names is left out.
        """
        unique = {spec.full().canonical: spec.full() for spec in self._written()} or {"": HSKSpec()}
        excluded = self._excluded()
        return [full for text, full in unique.items() if text not in excluded]

    def _excluded(self) -> set[str]:
        return {HSKSpec.parse(label).canonical for label in self.exclude}

    def _points(self) -> list[tuple[Arm, HSKSpec | None]]:
        """Return every arm with the spec that it distils."""
        points: list[tuple[Arm, HSKSpec | None]] = [("none", None)]
        points += [(arm, None) for arm in self.arms if arm != "shuffled"]
        points += [("full", full) for full in self.fulls()]
        points += [("shuffled", full) for full in self.fulls() if "shuffled" in self.arms]
        return points + [("spec", spec) for spec in self.specs()]

    def _settings(self, arm: Arm, spec: HSKSpec | None, student: AnyStudent) -> DistillSettings:
        """Return the settings of a trial, except its seed.

        Raises:
            ValueError: the grid has rates, but none for this trial.
        """
        changes: dict[str, Any] = {"arm": arm}
        if spec is None and self.none_lr is not None:
            changes["prediction_lr"] = self.none_lr
        settings = self.training.model_copy(update=changes)
        if not self.rates:
            return settings
        chosen = rates_for(self.rates, settings, spec, student)
        if chosen is None:
            which = "" if spec is None or arm != "spec" else f", which {spec.label} belongs to"
            raise _at(
                "rates",
                f"no rates for the family {family_of_arm(settings, spec)}{which}; search them (hskd grid search), or "
                "add an entry",
            )
        return settings.model_copy(update=chosen.changes)

    def trials(self, machine: Machine) -> list[TrialConfig]:
        """Return the trials without duplicates, seed by seed, so that an interrupted grid has complete seeds."""
        shared = _fingerprints({"data": self.task.data, "augment": self.task.augment, "model": self.teacher.model})
        trials = []
        files = {student: shared | _fingerprints(student.files()) for student in self.students}
        more = self.more_seeds
        first = set(self.seed_list)
        further = {seed: None for seed in range(more.seeds) if seed not in first} if more else {}
        settled = {HSKSpec.parse(label).canonical for label in more.specs} if more else set()
        every = self._points()
        # Further seeds run only the arms that differences are computed from, and the specs to be settled.
        few = [(arm, spec) for arm, spec in every if arm in ("none", "full") or (spec and spec.canonical in settled)]
        for seed, student in itertools.product([*self.seed_list, *further], self.students):
            arms = few if seed in further else every
            for arm, spec in arms:
                trials.append(
                    TrialConfig(
                        task=self.task,
                        teacher=self.teacher,
                        student=student,
                        settings=self._settings(arm, spec, student).model_copy(update={"seed": seed}),
                        spec=spec,
                        online=self.online,
                        **asdict(machine),
                        files=files[student],
                    )
                )
        return list({trial.id: trial for trial in trials}.values())


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float in nested mappings and lists, with its dotted key."""
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{where}.{key}" if where else str(key))


def _fingerprints(paths: dict[str, Path | str | None]) -> dict[str, str]:
    """Return the fingerprint of each path that exists; hub names have none."""
    return {
        name: content_fingerprint(Path(path)) for name, path in paths.items() if path and _is_readable(name, Path(path))
    }


def _is_readable(name: str, path: Path) -> bool:
    """Return whether there is a file or folder at ``path`` that is small enough to read.

    Raises:
        HskdError: it is a pipe or a device, an impossible name, or a folder of more than ``MOST_FILES`` files.
    """
    try:
        if not path.exists():
            return False
        if path.is_file():
            return True
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HskdError(f"{name}: {cut(str(path))}: cannot be read ({reason}).") from None
    if not path.is_dir():
        raise HskdError(f"{name}: {path}: expected a file or a folder; this is a pipe or a device.")
    if name in ("model", "checkpoint") and not (path / "config.json").is_file():
        raise HskdError(f"{name}: {path}: no config.json there; expected the folder of a model.")
    count = 0
    for _, _, files in os.walk(path):
        count += 1 + len(files)
        if count > MOST_FILES:
            raise HskdError(
                f"{name}: {path}: holds more than {MOST_FILES:,} files; give a folder that contains only the "
                f"{'data' if name == 'data' else name}."
            )
    return True


def presets() -> dict[str, tuple[Path, str]]:
    """Return every preset's file, and the task that replaces ``TASK`` in it, by the preset's name."""
    files = {}
    for path in PRESETS.glob("*.yaml"):
        for task in GLUE_TASKS if _ANY_TASK in path.stem else ("",):
            files[path.stem.replace(_ANY_TASK, task)] = (path, task)
    return dict(sorted(files.items()))


def load_grid(name: str) -> GridSpec:
    """Read a grid spec from a preset's name or the path of a YAML file.

    Raises:
        HskdError: there is no such preset or file, or the file is not a valid grid. The message names file, line, key
            and what was expected.
    """
    path, task = Path(with_home(name)), ""
    if path.suffix not in (".yaml", ".yml"):
        known = presets()
        if name not in known:
            raise HskdError(
                f"grid {name!r}: no such preset (there are {', '.join(known)}), and not the path of a .yaml file."
            )
        path, task = known[name]
    text = safe_yaml.read(path)
    if task:
        text = text.replace(_ANY_TASK, task)
    try:
        content, node = safe_yaml.parse(text)
    except yaml.YAMLError as error:
        raise HskdError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise HskdError(f"{path}: expected keys such as name, task, sweeps; known: {', '.join(GridSpec.model_fields)}.")
    try:
        return GridSpec.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        located = dict.fromkeys(_located(path, node, problem) for problem in problems[:MOST_PROBLEMS])
        if len(problems) > MOST_PROBLEMS:
            located[f"{path}: and {len(problems) - MOST_PROBLEMS:,} more mistakes."] = None
        raise HskdError("\n".join(located)) from None


def _located(path: Path, node: Any, problem: Any) -> str:
    """Return a pydantic error as a message with the line that it is about and what is allowed there."""
    line, keys = 1, []
    model: Any = GridSpec
    named = problem.get("ctx", {}).get("key")  # a key that is validated together with its mapping
    for part in (*problem["loc"], *([named] if named else ())):
        child = _child(node, part)
        if child is None:
            continue  # a branch of a union, which is not part of the file
        line, node = child[0].start_mark.line + 1, child[1]
        keys.append(str(part))
        if isinstance(part, str) and model is not None:
            model = _model_of(model, part)
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list").removesuffix(".")
    if problem["type"] == "extra_forbidden":
        parent = _parent_model(problem["loc"])
        message = f"unknown key; known here: {', '.join(parent.model_fields)}"
    input_text = "" if problem["type"] in ("extra_forbidden", "missing", "key") else f" (got {brief(problem['input'])})"
    where = ".".join(keys) or ".".join(map(str, problem["loc"]))
    return f"{path}, line {line}: {cut(where)}: {message}{input_text}."


def _child(node: Any, part: str | int) -> tuple[Any, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


_NESTED: dict[str, type[BaseModel]] = {
    "task": TaskPlan,
    "teacher": TeacherPlan,
    "students": RositaSettings,
    "general": GeneralSettings,
    "training": DistillSettings,
    "sweeps": Sweep,
    "more_seeds": MoreSeeds,
    "rates": FamilyRates,
}


def _model_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else _nested(key)


def _nested(key: str) -> type[BaseModel] | None:
    return STUDENTS[key] if key in STUDENTS else _NESTED.get(key)


def _parent_model(loc: tuple[str | int, ...]) -> type[BaseModel]:
    model: type[BaseModel] = GridSpec
    for part in loc[:-1]:
        if isinstance(part, str):
            model = _model_of(model, part) or model
    return model
