"""Make notebooks smaller: reduce pictures to a palette, as in reports, and remove widgets, which need a running kernel.

A picture then takes a third of the bytes and looks the same. The text beside a widget is shown in its place.

Run ``python notebooks/reduce_pictures.py notebooks/*.ipynb`` after running the notebooks.
"""

from __future__ import annotations

import base64
import sys
from io import BytesIO
from pathlib import Path

import nbformat
from PIL import Image

from hskd.io import atomic_path

WIDGET = "application/vnd.jupyter.widget-view+json"


def reduced(picture: str) -> str:
    """Return a PNG in base64 with at most 64 colours, or the same PNG if that is not smaller."""
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        palette = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    file = BytesIO()
    palette.save(file, format="PNG", optimize=True)
    smaller = base64.b64encode(file.getvalue()).decode()
    return min(picture, smaller, key=len)


def main() -> None:
    """Reduce the notebooks that the command line names."""
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if data.pop(WIDGET, None):
                    data.pop("text/html", None)
                if "image/png" in data:
                    data["image/png"] = reduced(data["image/png"])
        with atomic_path(path) as temporary:
            nbformat.write(notebook, temporary)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
