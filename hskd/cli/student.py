"""``hskd student``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from hskd.cli.options import MachineOptions, TaskOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display
from hskd.cli.setting import Machine, load_examples, require_local, require_task, task_plan
from hskd.errors import HskdError, cut
from hskd.io import read_json
from hskd.students.base import STUDENT_FILE, StudentContext, StudentKind
from hskd.students.kinds import STUDENTS

if TYPE_CHECKING:
    from hskd.tasks import TokenizedSplit
    from hskd.teachers.loading import Teacher


def _fields(cls: type[StudentKind]) -> dict[str, tuple[str, FieldInfo]]:
    """Return the fields of a kind that are options, as name and field by option. Nested settings are left to grids."""
    return {
        str((field.json_schema_extra or {}).get("option", name)): (name, field)  # type: ignore[union-attr]
        for name, field in cls.model_fields.items()
        if name != "kind" and "Settings" not in str(field.annotation)
    }


def _kind_options() -> type[BaseModel]:
    """Return a model with an option for each field of the registered kinds; None or empty if not given."""
    options: dict[str, Any] = {}
    for kind in STUDENTS:
        for option, (_, field) in _fields(STUDENTS[kind]).items():
            several = get_origin(field.annotation) is tuple
            default = "" if several or field.default is None else f" [default: {field.default}]"
            described = f"{kind}: {field.description or option}{default}"
            if option in options:
                described = f"{options[option][1].description} {described}"
            empty: Any = () if several else None
            annotation: Any = field.annotation if several else field.annotation | None  # type: ignore[operator]
            options[option] = (annotation, FieldInfo(default=empty, description=described))
    model = create_model("KindOptions", __config__=ConfigDict(extra="forbid", frozen=True, defer_build=True), **options)
    model.__doc__ = "Options of the student's kind."
    return model


KindOptions = _kind_options()


@plugin_option
@with_settings(task=TaskOptions, options=KindOptions, run=MachineOptions)
def command(
    teacher: Annotated[str, typer.Option(help="Folder of the fine-tuned teacher, or a URL.")],
    out: Annotated[str, typer.Option(help="Folder of the student, or a URL.")],
    kind: Annotated[
        str,
        typer.Option(
            help="rosita: the teacher, pruned. tinybert: a narrower encoder, from --checkpoint. Or a kind of a plug-in."
        ),
    ] = "rosita",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the kind, named as in a grid; repeatable."),
    ] = None,
    *,
    task: TaskOptions,
    options: BaseModel,
    run: MachineOptions,
) -> None:
    """Initialise a student: prune a fine-tuned encoder by Taylor importance, or give a pretrained encoder a head.

    A student of kind tinybert has its checkpoint's sizes, and may learn from any teacher that shares its tokenizer.
    """
    # Validate as much as possible before the slow import of PyTorch.
    student = _student(kind, options, settings or [], task.work)
    require_task(task.task)
    require_local("--teacher", teacher, "hskd teacher")
    from hskd.artifacts import ArtifactFolders
    from hskd.teachers.loading import Teacher
    from hskd.trials.data import for_teacher, load_data

    machine = Machine.of(run)
    output = Output.of(out, task.work)
    teacher = str(readable("--teacher", teacher, task.work, "hskd teacher"))
    data = load_data(task_plan(task), task.work, augmented=False)
    data = replace(data, task=for_teacher(data.task, teacher))

    @cache
    def load_teacher() -> Teacher:
        loaded = Teacher.load(teacher, data.task)
        loaded.model.to(machine.device)
        return loaded

    def load_train() -> TokenizedSplit:
        return load_examples(task, teacher).train

    context = StudentContext(
        task=data.task,
        model=teacher,
        teacher=load_teacher,
        teacher_key=lambda: load_teacher().fingerprint,
        train=load_train,
        artifact_folder=ArtifactFolders(task.work).folder,
        device=machine.device,
        machine={"dtype": machine.dtype, "device": str(machine.device), "build_threads": machine.threads},
    )
    with display() as progress:
        student.create(context, output.folder, progress)
    output.publish()
    print(f"{read_json(output.folder / STUDENT_FILE)['parameters']:,} parameters")
    print(f"student: {out}")


def _student(kind: str, options: BaseModel, settings: list[str], work: Path) -> StudentKind:
    """Return the student settings that the options describe.

    Raises:
        HskdError: there is no such kind, or it has no such option or value.
    """
    cls = STUDENTS[kind]
    known, fields = _fields(cls), {}
    for option, value in options:
        if value is None or value == ():
            continue
        if option not in known:
            owners = " or ".join(name for name in STUDENTS if option in _fields(STUDENTS[name]))
            raise HskdError(
                f"{_flag(option)} is for students of kind {owners}; kind {kind} has "
                f"{', '.join(map(_flag, known)) or 'no options'}."
            )
        name, field = known[option]
        artifact = (field.json_schema_extra or {}).get("artifact")  # type: ignore[union-attr]
        fields[name] = str(readable(_flag(option), value, work)) if artifact else value
    for text in settings:
        name, equals, written = text.partition("=")
        if not equals or name not in cls.model_fields:
            raise HskdError(
                f"--set {text}: expected KEY=VALUE with a setting of kind {kind}: "
                f"{', '.join(field for field in cls.model_fields if field != 'kind')}."
            )
        fields[name] = _value(text, written)
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = next((_flag(option) for option, (name, _) in known.items() if name in first["loc"][:1]), "")
        message = first["msg"].removeprefix("Value error, ")
        raise HskdError(f"--kind {kind}: {where + ': ' if where else ''}{message} (got {first['input']!r}).") from None


def _value(setting: str, written: str) -> Any:
    """Parse the YAML value of ``--set KEY=VALUE``.

    Raises:
        HskdError: it is not valid YAML.
    """
    import yaml

    from hskd import safe_yaml

    try:
        return safe_yaml.parse(written)[0]
    except yaml.YAMLError as error:
        raise HskdError(f"--set {cut(setting)}: the value is not valid YAML: {error}") from None


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
