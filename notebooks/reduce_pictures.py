"""Rewrite the pictures in notebooks with a palette, as in reports. They take a third of the bytes and look the same.

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


def reduced(picture: str) -> str:
    """Return a PNG in base64 with at most 256 colours, or the same PNG if that is not smaller."""
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    file = BytesIO()
    palette.save(file, format="PNG", optimize=True)
    smaller = base64.b64encode(file.getvalue()).decode()
    return min(picture, smaller, key=len)


def main() -> None:
    """Reduce the notebooks that the command line names."""
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = reduced(data["image/png"])
        with atomic_path(path) as temporary:
            nbformat.write(notebook, temporary)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
