"""The command ``hskd knowledge``: figures and tables of a teacher's knowledge, from a superset store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.cli.plugin_option import plugin_option
from hskd.errors import HskdError


@plugin_option
def knowledge(
    store: Annotated[str, typer.Argument(help="Folder of a superset store, or a URL.")],
    out: Annotated[Path, typer.Option(help="Folder for figures (PNG, SVG) and their tables (CSV).")],
    tokenizer: Annotated[
        str | None, typer.Option(help="The teacher's folder or name. With it, one sentence is drawn token by token.")
    ] = None,
    example: Annotated[int | None, typer.Option(help="Id of that sentence's example (default: the first).")] = None,
    spec: Annotated[str | None, typer.Option(help="Mark the tokens that a spec keeps, such as 2l_8t_0.1w.")] = None,
    student_layers: Annotated[int | None, typer.Option(min=1, help="Layers of the student; needs --spec.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples to average over.")] = 500,
) -> None:
    """Show which tokens and neurons hold a teacher's knowledge, and how much of it a share of them keeps."""
    from hskd.analysis.figures import style
    from hskd.analysis.figures.knowledge import energy_figure, magnitude_figure, token_figure
    from hskd.analysis.stats import knowledge as views
    from hskd.results import spreadsheet
    from hskd.spec import HSKSpec
    from hskd.store.reader import Store
    from hskd.teachers.loading import load_tokenizer

    if (spec is None) != (student_layers is None):
        raise HskdError("--spec and --student-layers go together: which tokens are kept depends on both.")
    if tokenizer is None and (spec is not None or example is not None):
        raise HskdError("--spec and --example are about one sentence, which needs --tokenizer: the teacher's folder.")
    opened = Store.open(store)
    magnitude = views.neuron_magnitude(opened, examples=examples)
    by_neurons = views.energy_by_neurons(opened, examples)
    by_tokens = views.energy_by_tokens(opened, examples)
    tables = {"magnitude": magnitude, "energy_by_neurons": by_neurons, "energy_by_tokens": by_tokens}
    figures = {"magnitude": magnitude_figure(magnitude), "energy": energy_figure(by_neurons, by_tokens)}
    if tokenizer is not None:
        chosen = int(opened.example_ids[0]) if example is None else example
        importance = views.token_importance(opened, chosen, load_tokenizer(tokenizer))
        kept = None
        if spec is not None and student_layers is not None:
            kept = views.kept_tokens(opened, chosen, HSKSpec.parse(spec), student_layers)
            tables["kept_tokens"] = kept
        tables["tokens"] = importance
        figures["tokens"] = token_figure(importance, kept)
    for name, table in tables.items():
        spreadsheet.write(table, out / f"{name}.csv", "%.6g")
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            path = style.save(figure, out / f"{name}.{kind}")
        print(f"figure: {path}")
