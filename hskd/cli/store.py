"""``hskd store``: extract, derive, inspect, verify, size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hskd.cli.launch import leave_to_main
from hskd.cli.options import SPEC_HELP, MachineOptions, TaskOptions, with_settings
from hskd.cli.places import Output, readable
from hskd.cli.plugin_option import plugin_option
from hskd.cli.progress import display, tables
from hskd.cli.setting import Machine, load_examples, require_local, require_task
from hskd.cli.store_size import size
from hskd.errors import HskdError
from hskd.io import format_bytes
from hskd.remote.place import is_url

if TYPE_CHECKING:
    from hskd.store_format.manifest import AlignmentNote

app = typer.Typer(help="The teacher's knowledge on disk: extract once, derive many.", no_args_is_help=True)
app.command()(plugin_option(size))

WORK = Path("work")
Work = Annotated[Path, typer.Option(help="Folder for what can be made again, such as copies of URLs.")]


@app.callback()
def _divide(context: typer.Context) -> None:
    if context.invoked_subcommand != "extract":
        leave_to_main()


@app.command()
@plugin_option
@with_settings(task=TaskOptions, run=MachineOptions)
def extract(
    teacher: Annotated[str, typer.Option(help="Folder of the fine-tuned teacher, or a URL.")],
    out: Annotated[str, typer.Option(help="Folder of the store, or a URL.")],
    spec: Annotated[list[str] | None, typer.Option(help="Store what this spec needs; repeatable. " + SPEC_HELP)] = None,
    student_layers: Annotated[int | None, typer.Option(min=1, help="Layers of the student; goes with --spec.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Instead of --spec: teacher layers to store, such as 0,2,4,6.")
    ] = None,
    attention_layers: Annotated[
        str | None, typer.Option(help="Instead of --spec: attention layers (1-based) whose CLS row to store, or none.")
    ] = None,
    gradient_layers: Annotated[
        str | None,
        typer.Option(
            help="Teacher layers for which to store how much the prediction depends on each token, for length=gradient "
            "(default: none; it takes a backward pass)."
        ),
    ] = None,
    received_layers: Annotated[
        str | None,
        typer.Option(
            help="Attention layers (1-based) for which to store how much attention each token receives, for "
            "length=received (default: none)."
        ),
    ] = None,
    gold_losses: Annotated[
        bool,
        typer.Option(
            "--gold-losses",
            help="Store the loss of each example's gold label under the teacher, for examples=disagree.",
        ),
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="fp32 serves every spec; fp16 takes half (default: the specs', else fp16).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a forward pass.")] = 32,
    extend: Annotated[
        str | None,
        typer.Option(
            help="A superset of some of the examples: its shards are reused, and the teacher runs only on the others."
        ),
    ] = None,
    student_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="For students with another tokenizer: the model that has it (folder, URL or hub name). The store uses "
            "its tokens, and the teacher's tokens are aligned with them (docs/tokenizers.md)."
        ),
    ] = None,
    *,
    task: TaskOptions,
    run: MachineOptions,
) -> None:
    """Run the teacher over the training examples once and write a superset store. Run again to resume.

    Without --spec and --layers, it holds every layer and every attention row; with --extend, the same as that store.
    """
    # Validate as much as possible before the slow import of PyTorch.
    from hskd.selectors import PRECISION
    from hskd.spec import HSKSpec

    require_task(task.task)
    require_local("--teacher", teacher, "hskd teacher")
    if precision is not None:
        PRECISION[precision]
    parts_given = bool(layers or attention_layers or gradient_layers or received_layers or gold_losses)
    if spec and (student_layers is None or parts_given):
        raise HskdError(
            "--spec goes with --student-layers, and without --layers, --attention-layers, --gradient-layers, "
            "--received-layers and --gold-losses."
        )
    specs = [HSKSpec.parse(text) for text in spec or ()]
    from hskd import processes
    from hskd.heads.scores import require_ranks
    from hskd.store.extract import ExtractOptions, Superset
    from hskd.store.extract import extract as extract_store
    from hskd.store.reader import Store
    from hskd.teachers.loading import Teacher

    machine = Machine.of(run)
    output = Output.of(out, task.work)
    teacher = str(readable("--teacher", teacher, task.work, "hskd teacher"))
    if student_tokenizer is None:
        examples = load_examples(task, teacher, augmented=True)
    else:
        if is_url(student_tokenizer):
            student_tokenizer = str(readable("--student-tokenizer", student_tokenizer, task.work))
        examples = load_examples(task, student_tokenizer, augmented=True, teacher=teacher)
    old = Store.open(readable("--extend", extend, task.work)) if extend else None
    loaded = Teacher.load(teacher, examples.task)
    loaded.model.to(machine.device)
    depth = loaded.model.config.num_hidden_layers
    if student_layers is not None and specs:
        for parsed in specs:
            require_ranks(parsed, examples.task.head)
        superset = Superset.of(specs, loaded.shape(student_layers))
        superset = replace(superset, precision=precision or superset.precision)
    elif old and not (parts_given or precision):
        superset = Superset.held_by(old.manifest)
    else:
        superset = Superset(
            _numbers("--layers", layers, range(depth + 1)),
            _numbers("--attention-layers", attention_layers, range(1, depth + 1)),
            precision or "fp16",
            _numbers("--gradient-layers", gradient_layers or "", range(depth + 1)),
            _numbers("--received-layers", received_layers or "", range(1, depth + 1)),
            gold_losses,
        )
    options = ExtractOptions(machine.dtype, batch_size, extend=old)
    with display() as progress:
        extract_store(loaded, examples.task, examples.train, superset, output.folder, options, progress)
    output.publish()
    if processes.is_main():
        print(f"store: {out}")


@app.command()
@plugin_option
def derive(
    superset: Annotated[str, typer.Argument(help="Folder of the superset store, or a URL.")],
    spec: Annotated[str, typer.Option(help=SPEC_HELP)],
    student_layers: Annotated[int, typer.Option(min=1, help="Layers of the student.")],
    out: Annotated[str, typer.Option(help="Folder of the new store, or a URL.")],
    work: Work = WORK,
) -> None:
    """Write the part of a superset that one spec keeps, without running the teacher."""
    from hskd.spec import HSKSpec

    parsed = HSKSpec.parse(spec)
    from hskd.store.derive import derive as derive_store
    from hskd.store.reader import Store

    output = Output.of(out, work)
    source = Store.open(readable("SUPERSET", superset, work))
    with display() as progress:
        derive_store(source, parsed, student_layers, output.folder, progress=progress)
    output.publish()
    print(f"store: {out}")


@app.command()
@plugin_option
def inspect(
    path: Annotated[str, typer.Argument(help="Folder of a store, or a URL; only its manifest is read.")],
) -> None:
    """Show what a store holds and what it was made from."""
    from rich.table import Table

    from hskd.remote import contents_of
    from hskd.spec import HSKSpec
    from hskd.store_format.layout import MANIFEST
    from hskd.store_format.manifest import Manifest

    manifest = contents_of(path).manifest if is_url(path) else Manifest.read(Path(path))
    if manifest is None:
        raise HskdError(f"{path}: is no store (there is no {MANIFEST}).")
    spec = HSKSpec.parse(manifest.spec) if manifest.spec else None
    student_layers = ", ".join(map(str, manifest.layers)) if spec and not spec.depth.draws else "drawn for each batch"
    tokens, kept = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("tokens", "kept"))
    table = Table(show_header=False, title=path)
    rows = {
        "kind": manifest.kind,
        "spec": spec.label if spec else None,
        "task": manifest.origin.task,
        "labels": ", ".join(manifest.origin.label_names) or None,
        "teacher layers": ", ".join(map(str, manifest.mapped)),
        "student layers": student_layers if spec else None,
        "attention layers": ", ".join(map(str, manifest.attention_layers)) or None,
        "gradient layers": ", ".join(map(str, manifest.gradient_layers)) or None,
        "layers of attention received": ", ".join(map(str, manifest.received_layers)) or None,
        "losses of gold labels": "held" if manifest.kind == "superset" and manifest.gold_labels else None,
        "width": manifest.teacher_width,
        "precision": manifest.precision,
        "examples": f"{manifest.examples:,}",
        "real tokens": f"{tokens:,}",
        "tokens with a target": _aligned(manifest.origin.alignment),
        "kept tokens a layer": f"{kept:,}",
        "on disk": f"{format_bytes(manifest.bytes)} in {len(manifest.shards)} shards",
        "held once for all": manifest.codec and f"{format_bytes(manifest.codec.bytes)} in {manifest.codec.file}",
        "bytes an example": f"{manifest.bytes / manifest.examples:,.0f}",
        "maximum length": manifest.origin.max_length,
        "teacher computed in": manifest.origin.dtype,
        "teacher fingerprint": manifest.origin.teacher,
        "tokenizer fingerprint": manifest.origin.tokenizer,
        "teacher's tokenizer": manifest.origin.alignment and manifest.origin.alignment.teacher_tokenizer,
        "data fingerprint": manifest.origin.data,
        "made by": ", ".join(f"{name} {value}" for name, value in manifest.made_by.items() if value is not None),
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, str(value))
    tables().print(table)


@app.command()
@plugin_option
def verify(
    path: Annotated[str, typer.Argument(help="Folder of a store; or a URL of anything published, which is read back.")],
) -> None:
    """Compare every file with its checksum."""
    from hskd.remote import verify as verify_url
    from hskd.store.reader import Store

    if is_url(path):
        with display() as progress:
            contents = verify_url(path, progress)
        manifest = contents.manifest
        what = (
            f"{len(contents.files)} shards, {manifest.examples} examples"
            if manifest
            else f"{len(contents.files)} files"
        )
        print(f"{path}: {what}: as written")
        return
    store = Store.open(path)
    store.verify()
    print(f"{path}: {len(store.manifest.shards)} shards, {len(store)} examples: as written")


def _aligned(note: AlignmentNote | None) -> str | None:
    """Return how many tokens have a target; None if the teacher has the same tokenizer."""
    if note is None:
        return None
    share = 100 * note.with_target / note.tokens
    return f"{note.with_target:,} ({share:.2f} %), {note.means:,} of them the mean of several of the teacher's"


def _numbers(flag: str, text: str | None, every: range) -> tuple[int, ...]:
    if text is None:
        return tuple(every)
    if text == "none":
        return ()
    try:
        numbers = {int(part) for part in text.split(",") if part.strip()}
    except ValueError:
        raise HskdError(f"{flag} {text}: expected whole numbers separated by commas, such as 0,2,4,6.") from None
    if not numbers <= set(every):
        raise HskdError(f"{flag} {text}: the teacher has {every.start}..{every.stop - 1}.")
    return tuple(sorted(numbers))
