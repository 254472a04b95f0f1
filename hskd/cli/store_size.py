"""``hskd store size``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from hskd.cli.progress import tables
from hskd.errors import HskdError
from hskd.io import format_bytes

KNOWN = {
    "bert-base-uncased": (12, 768, 30_522),
    "bert-large-uncased": (24, 1024, 30_522),
    "distilbert-base-uncased": (6, 768, 30_522),
    "roberta-base": (12, 768, 50_265),
    "roberta-large": (24, 1024, 50_265),
}
"""Layers, width and vocabulary of teachers on the hub, so that their store size needs no download."""


def size(
    teacher: Annotated[str, typer.Option(help="Folder, hub name, or offline:minilm; only its sizes are read.")],
    spec: Annotated[str, typer.Option(help="What to keep, such as 1l_10t_0.1w.")],
    task: Annotated[str, typer.Option(help="Determines labels and maximum length.")],
    student_layers: Annotated[int, typer.Option(min=1, help="Layers of the student.")] = 4,
    data: Annotated[str | None, typer.Option(help="Count the real tokens of these training examples.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Instead of --data: number of examples.")] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="With --examples: mean real tokens per example.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-9, help="Real tokens per second of the teacher (see hskd bench).")
    ] = None,
) -> None:
    """Show the size of a store, from counts alone: bytes, passes of the teacher, hours. Downloads nothing."""
    from hskd.spec import HSKSpec, Shape
    from hskd.tasks.builtin.glue import GLUE_TASKS

    if (data is None) == (examples is None) or (examples is None) != (mean_tokens is None):
        raise HskdError("give either --data, or --examples and --mean-tokens.")
    parsed = HSKSpec.parse(spec)
    if examples is not None and task not in GLUE_TASKS:
        raise HskdError(f"--task {task}: with --examples, expected one of {', '.join(GLUE_TASKS)}.")
    from hskd.heads.scores import require_ranks
    from hskd.store.size import size_of, size_of_many
    from hskd.tasks import load_task, tokenize
    from hskd.teachers.loading import load_tokenizer
    from hskd.trials.data import for_teacher

    shape = Shape(student_layers, *_sizes(teacher))
    if examples is not None and mean_tokens is not None:
        kind = GLUE_TASKS[task].task
        require_ranks(parsed, kind.head)
        store_size = size_of_many(parsed, shape, examples, mean_tokens, kind.max_length, kind.head.target())
    else:
        loaded = load_task(task, data)
        with TemporaryDirectory() as folder:
            train = tokenize(loaded, load_tokenizer(teacher), Path(folder))["train"]
            head = for_teacher(loaded.task, teacher).head
            require_ranks(parsed, head)
            store_size = size_of(parsed, shape, train.tokens, train.max_length, head.target())
    table = Table(show_header=False, title=f"{parsed.label} of {teacher} on {task}")
    for name, text in {
        "examples": f"{store_size.examples:,}",
        "real tokens": f"{store_size.tokens:,}",
        "kept tokens a layer": f"{store_size.kept_tokens:,}",
        "share of full HSK": f"{100 * store_size.fraction:.3g} % of its values, "
        f"{100 * store_size.derived_bytes / store_size.full_bytes:.3g} % of its bytes in fp16",
        "store": f"{format_bytes(store_size.derived_bytes)} in {store_size.shards:,} shards, "
        f"{store_size.derived_bytes / store_size.examples:,.0f} bytes an example",
        "superset, until derived": format_bytes(store_size.superset_bytes),
        "passes of the teacher": "1",
        "hours": f"{store_size.tokens / tokens_per_second / 3600:,.2f} at {tokens_per_second:,.0f} tokens a second"
        if tokens_per_second
        else "unknown: give --tokens-per-second",
    }.items():
        table.add_row(name, text)
    tables().print(table)


def _sizes(teacher: str) -> tuple[int, int, int]:
    if teacher in KNOWN:
        return KNOWN[teacher]
    from transformers import AutoConfig

    from hskd.teachers.loading import resolve_model

    try:
        config = AutoConfig.from_pretrained(resolve_model(teacher), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        raise HskdError(
            f"--teacher {teacher}: no configuration is on this disk; give a folder, or one of {', '.join(KNOWN)}."
        ) from None
    return config.num_hidden_layers, config.hidden_size, config.vocab_size
