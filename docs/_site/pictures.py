"""Draw the pictures of the documentation: ``python docs/_site/pictures.py`` writes them to ``docs/img``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parents[1] / "img"
INK, KEPT, LEFT_OUT, LINE = "#4a4a4a", "#0072b2", "#d9dee3", "#9aa4ad"
STYLE = "font-family: system-ui, sans-serif"


def svg(width: int, height: int, label: str, parts: list[str]) -> str:
    """Return a picture on white, so that it is readable on a dark page too."""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" style="{STYLE}">'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([opening, f"<title>{escape(label)}</title>", paper, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", color: str = INK) -> str:
    """Return words at a place; from size 14 up they are a bold heading."""
    weight = ' font-weight="600"' if size >= 14 else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{color}"{weight}>{escape(words)}</text>'
    )


def spec() -> str:
    """Draw the part of a sentence that ``2l_3t_0.2w`` keeps: layers up, tokens to the right, neurons within a token."""
    tokens = ["[CLS]", "a", "quiet", "and", "moving", "triumph", "[SEP]"]
    kept = {(2, 2): (1, 7), (2, 4): (0, 4), (2, 5): (4, 8), (1, 2): (3, 7), (1, 4): (0, 5), (1, 5): (2, 8)}
    left, top, cell, row, neurons = 130, 56, 82, 64, 10
    parts = [text(left + cell * len(tokens) / 2, 26, "2l_3t_0.2w: 2 layers, 3 tokens, 20 % of the neurons", 16)]
    for layer in range(3):
        y = top + (2 - layer) * row
        parts.append(text(left - 14, y + 28, f"layer {layer + 1}", anchor="end"))
        for column in range(len(tokens)):
            for neuron in range(neurons):
                chosen = neuron in kept.get((layer, column), ())
                x = left + column * cell + 6 + neuron * 7
                color = KEPT if chosen else LEFT_OUT
                parts.append(f'<rect x="{x}" y="{y + 6}" width="5" height="36" rx="1" fill="{color}"/>')
    for column, word in enumerate(tokens):
        parts.append(text(left + column * cell + cell / 2, top + 3 * row + 12, word))
    end = top + 3 * row + 40
    parts += [
        f'<rect x="{left}" y="{end - 11}" width="12" height="12" fill="{KEPT}"/>',
        text(left + 18, end, "kept: 12 of 210 numbers, 5.7 %", anchor="start"),
        f'<rect x="{left + 250}" y="{end - 11}" width="12" height="12" fill="{LEFT_OUT}"/>',
        text(left + 268, end, "left out", anchor="start"),
    ]
    return svg(left + cell * len(tokens) + 20, end + 18, "What a spec keeps of a sentence", parts)


def box(x: int, y: int, width: int, title: str, lines: list[str], color: str = "#fff") -> list[str]:
    """Return a frame with a heading and lines of text."""
    height = 34 + 18 * len(lines)
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{color}" stroke="{LINE}"/>',
        text(x + width / 2, y + 23, title, 14),
    ]
    return parts + [text(x + width / 2, y + 42 + 18 * i, line, 12) for i, line in enumerate(lines)]


def arrow(x1: int, y1: int, x2: int, y2: int, label: str = "") -> list[str]:
    """Return an arrow with a label above its middle."""
    parts = [
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'
    ]
    return [*parts, text((x1 + x2) / 2, (y1 + y2) / 2 - 8, label, 12, color=KEPT)] if label else parts


def flow() -> str:
    """Draw the way from a model and texts to an answer, with the command on each arrow."""
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    shade = "#eaf3f9"
    parts = [
        tip,
        *box(20, 30, 150, "model and texts", ["a Hub name or a folder", "CSV, JSON, Parquet"]),
        *arrow(170, 65, 280, 65, "hskd teacher"),
        *box(280, 30, 150, "teacher", ["fine-tuned", "runs once more"]),
        *arrow(430, 65, 570, 65, "hskd store extract"),
        *box(570, 30, 170, "superset", ["hidden states that", "several specs need"], shade),
        *arrow(655, 100, 655, 170),
        text(645, 140, "hskd store derive", 12, "end", KEPT),
        *box(570, 170, 170, "store", ["what one spec keeps", "a few bytes a token"], shade),
        *arrow(355, 100, 355, 170),
        text(365, 140, "hskd student", 12, "start", KEPT),
        *box(280, 170, 150, "student", ["pruned or narrower", "not trained yet"]),
        *arrow(570, 205, 430, 205),
        *arrow(280, 205, 170, 205, "hskd distill"),
        *box(20, 170, 150, "trained student", ["an ordinary model", "of transformers"]),
        text(500, 195, "no teacher in memory", 12, color=KEPT),
        *box(20, 290, 720, "hskd grid run, hskd report", ["the same for many specs and seeds: how little is enough"]),
        *arrow(95, 240, 95, 290),
    ]
    return svg(760, 360, "The way data takes", parts)


COMMANDS = (
    "hskd store size --task mnli --teacher offline:minilm --spec 2l_8t_0.1w --examples 392702 --mean-tokens 39",
    "hskd recommend results/demo-3-seeds --tolerance 2",
)


def terminal() -> str:
    """Draw the output of two real commands; the picture loads no fonts."""
    console = Console(record=True, width=110, file=StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), command))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("hskd")), *command.split()[1:]],
            cwd=IMAGES.parents[1],
            env=os.environ | {"COLUMNS": "110", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        console.print(Text.from_ansi(done.stdout.rstrip()))
    picture = console.export_svg(title="hskd")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, picture in (("spec", spec()), ("flow", flow()), ("terminal", terminal())):
        path = IMAGES / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
