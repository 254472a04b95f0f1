"""Command-line options made from settings classes: each field is declared once, and its description is the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from rich.markup import escape

from hskd.cli.plugin_option import split_names
from hskd.errors import HskdError
from hskd.runtime import check_device
from hskd.tasks.choices import MAX_TOKENS, LabelType

if TYPE_CHECKING:
    from typing import Self

    from hskd.grid.executors import Executor
    from hskd.trials.config import Machine

ON_DEVICE_HELP = (
    "Whether the store lies in the memory of the training device. auto: on a CUDA device if it takes at most half of "
    "the free memory there (docs/processes.md)."
)
OnDevice = Annotated[Literal["auto", "always", "never"], typer.Option(help=ON_DEVICE_HELP)]
SPEC_HELP = (
    "What to keep: layers_tokens_width such as 1l_10t_0.1w or all_all_all, optionally with a share of the examples "
    "(1l_10t_0.1w_0.25e), then changes after commas, such as length=left, l_top=5, examples=entropy, "
    "width=pca (principal components in place of neurons) or precision=int4 (docs/selectors.md); or a .json file."
)

Work = Annotated[Path, typer.Option(help="Folder of artifacts, shared by all grids and searches.")]
GridData = Annotated[str | None, typer.Option(help="Other data than the grid's: a folder or file (task.data).")]
GridTeacher = Annotated[
    str | None, typer.Option("--teacher", help="Another model to make the teacher from (teacher.model).")
]
GridCheckpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="Another checkpoint for students of kind tinybert.")
]
GridChanges = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.hsk_epochs=3; repeatable."),
]


class TaskOptions(BaseModel):
    """Task and data."""

    # Help and usage errors need only the fields, and building validators takes as long as all imports together.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    task: Annotated[
        str,
        Field(
            description="mr; cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb (GLUE); banking77 (intents); wnut17 (named "
            "entities); trecqa (reranking); imdb_sick (sentence embeddings); your own data: custom, tagging (words "
            "with tags), reranking (queries and passages), embedding (texts)."
        ),
    ] = "mr"
    data: Annotated[
        str | None,
        Field(
            description="Folder of official files, or a URL of one. custom, reranking: a folder with train and dev "
            "(or validation) and optionally test; one CSV, TSV, JSON or Parquet file; or a data set of the hub, "
            "owner/name or owner/name:config, with ?dev=NAME if a split has another name there. tagging, wnut17: a "
            "folder of CoNLL-style, JSON Lines or Parquet files, or the hub. embedding: a file of texts; a folder with "
            "train and texts, rated pairs or a corpus with queries; or the hub. imdb_sick: the folder of SICK."
        ),
    ] = None
    text_columns: Annotated[
        str | None,
        Field(
            description="custom, reranking: the text column, or two, separated by a comma [default: inferred if "
            "unambiguous; the command says which]."
        ),
    ] = None
    label_column: Annotated[
        str | None,
        Field(
            description="custom, reranking: the label column [default: inferred if unambiguous]; with "
            "--label-type multilabel also several of 0 and 1, separated by commas."
        ),
    ] = None
    label_type: Annotated[
        LabelType | None,
        Field(description="custom: kind of the labels [default: inferred; the command says which and why]."),
    ] = None
    max_length: Annotated[
        int | None,
        Field(
            ge=3,
            le=MAX_TOKENS,
            description="Tokens that an example is truncated to, at most the model's positions [default: the task's].",
        ),
    ] = None
    train_examples: Annotated[
        int | None, Field(ge=1, description="Use a fixed random subset of the training examples [default: all].")
    ] = None
    augment: Annotated[
        str | None,
        Field(
            description="File of further sentences (.csv, .tsv, .json, .jsonl, .parquet, .txt) for the student to "
            "train on beside the training examples; the teacher gives their targets, and labels are ignored."
        ),
    ] = None
    work: Annotated[Path, Field(description="Folder for what can be made again, such as tokenised examples.")] = Path(
        "work"
    )


class MachineOptions(BaseModel):
    """Machine and precision."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 autocast where it is native, else fp32.")
    ] = "auto"
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; results depend on them in the last bits.")] = (
        None
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        try:
            return check_device(device)
        except HskdError as error:
            raise ValueError(str(error).partition(": ")[2].removesuffix(".")) from None


class TrainingOptions(MachineOptions):
    """Machine and precision."""

    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="Number of parts that each batch of --batch-size is processed in, one after the other: saves "
            "memory, and gives the same loss up to rounding.",
        ),
    ] = 1


class TrialOptions(BaseModel):
    """Machine and precision of trials."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    threads: Annotated[
        int, Field(ge=1, description="CPU threads of a trial; results depend on them in the last bits.")
    ] = 1
    dtype: Annotated[Literal["auto", "fp32", "bf16"], Field(description="auto: bf16 where it is native.")] = "auto"

    def machine(self) -> Machine:
        """Return the settings of this machine for trials.

        Raises:
            HskdError: the machine cannot compute in this precision.
        """
        from hskd.trials.config import Machine

        return Machine.here(self.threads, self.dtype)


class ExecutorOptions(BaseModel):
    """Where trials run."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    workers: Annotated[int, Field(ge=1, description="Trials at a time, each in a process of its own if above 1.")] = 1
    ray: Annotated[bool, Field(description="Run trials as tasks on a Ray cluster.")] = False
    ray_address: Annotated[str | None, Field(description="The cluster's address [default: one started here].")] = None
    num_cpus: Annotated[float, Field(ge=0, description="Ray: CPUs of a trial.")] = 1
    num_gpus: Annotated[float, Field(ge=0, description="Ray: GPUs of a trial.")] = 0
    store_on_device: Annotated[Literal["auto", "always", "never"], Field(description=ON_DEVICE_HELP)] = "auto"

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.workers > 1 and (self.ray or self.ray_address):
            raise ValueError("give --workers or --ray, not both")
        return self

    def executor(self) -> Executor:
        """Return the executor that the options describe. A Ray address implies Ray."""
        from hskd.grid.executors import InProcess, RayCluster, Workers

        if self.ray or self.ray_address:
            return RayCluster(self.ray_address, self.num_cpus, self.num_gpus, store_on_device=self.store_on_device)
        return Workers(self.workers, self.store_on_device) if self.workers > 1 else InProcess(self.store_on_device)


def with_settings(**models: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for every field of ``models``, and pass it the validated objects by name.

    Args:
        models: settings class by parameter name of the command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in models
        ]
        for model in models.values():
            for name, field in model.model_fields.items():
                several = get_origin(field.annotation) is tuple
                repeated = " Repeat it, or separate by commas." if several else ""
                option = typer.Option(
                    help=escape((field.description or "") + repeated),
                    rich_help_panel=(model.__doc__ or "").splitlines()[0],
                    show_default=not several,
                    metavar="NAME" if several else None,
                    callback=split_names if several else None,
                )
                kind: Any = list[str] if several else field.annotation
                parameters.append(
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=list(field.default) if several else field.default,
                        annotation=Annotated[kind, option],
                    )
                )

        @wraps(command)
        def run(**given: Any) -> None:
            objects = {
                parameter: _validated(model, {name: given.pop(name) for name in model.model_fields})
                for parameter, model in models.items()
            }
            command(**given, **objects)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _validated(model: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # several options contradict each other
            raise HskdError(f"{message}.") from None
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise HskdError(f"{flag} {first['input']}: {message}.") from None
