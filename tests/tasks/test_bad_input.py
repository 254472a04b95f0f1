"""Any user file is read correctly or rejected with our own errors, quickly and in little memory.

200 inputs for each format, from a fixed seed; ``HSKD_TORTURE=50`` makes it 10,000.
"""

from __future__ import annotations

import decimal
import gzip
import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.mutations import times

from hskd.errors import HskdError
from hskd.tasks import TaskData, load_task
from hskd.tasks.builtin.glue import GLUE_TASKS
from hskd.tasks.choices import LABEL_TYPES
from hskd.tasks.files import fault_of

COUNT = times(200)
SECONDS = 1.0
MEMORY = 512 * 2**20

WORDS = [
    "a film",
    "b",
    "",
    " ",
    "good, bad",
    'the "x"',
    "né",
    "\u2028",
    "nul\0",
    "tab\tbed",
    "cr\rlf\n",
    "\ufeff",
    "😀",
    "1",
]
LABELS = [
    "0",
    "1",
    "pos",
    "nan",
    "N/A",
    "",
    "0.0",
    "1.0",
    "007",
    "7",
    "٣",
    "1e999",
    "-1",
    "9" * 5000,
    "9" * 100_000 + "x",
    "1_0",
    "inf",
    "true",
]
NASTY = [b'"', b'""', b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\t", b",", b"\r", b"\n", b"\r\n",
         b"{", b"[" * 1500, b'{"a":' * 1500, b"9" * 100_000, b"1e99999", b"NaN", b"null", rb'"\ud800"', rb'\u0000',
         b"x" * 200_000, b"\xe2\x80\xa8", b"\\"]  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Return ``content`` with some bytes removed, changed, repeated or inserted."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.choice((1, 4, 50))]
            case 2:
                data[at:at] = data[at : at + rng.choice((1, 10, 100))]
            case 3:
                del data[at:]
            case _:
                data[at:at] = rng.choice(NASTY)
    return bytes(data)


def rows(rng: random.Random, style: int) -> list[list[str]]:
    """Return rows of a text and a label; with an even ``style`` most are valid."""
    labels = (["0", "1"], LABELS, ["pos", "neg"], LABELS[:7], ["0.5", "2"])[style % 5]
    words = WORDS if style % 2 and rng.random() < 0.5 else ["a film", "b", "c d"]
    return [[rng.choice(words), rng.choice(labels)] for _ in range(rng.randrange(2 if style % 2 else 8, 12))]


def delimited(rng: random.Random, style: int, separator: str) -> bytes:
    """Return a CSV or TSV file."""
    header = ["text", "label"]
    if style % 2 and rng.random() < 0.2:
        header = rng.choice((["label", "text"], ["text", "text"], ["text"], ["", "label"], []))
    quoted = separator == ","

    def field(value: str) -> str:
        if quoted and (rng.random() < 0.2 or any(c in value for c in ',"\n\r')) and rng.random() < 0.95:
            return '"' + value.replace('"', '""') + '"'
        return value

    lines = [separator.join(header), *(separator.join(map(field, row)) for row in rows(rng, style))]
    return rng.choice(("\n", "\n", "\r\n")).join(lines).encode("utf-8", "surrogatepass")


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return a random JSON value."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(WORDS), lambda: rng.choice(LABELS), lambda: rng.randrange(-3, 4), lambda: rng.random(),
        lambda: 10 ** rng.choice((1, 20, 400)), lambda: None, lambda: rng.random() < 0.5, lambda: "\ud800x",
        lambda: float("nan"), lambda: float("-inf"),
    ]  # fmt: skip
    if depth < 3:
        kinds += [lambda: [value(rng, depth + 1)], lambda: {"k": value(rng, depth + 1)}]
    return rng.choice(kinds)()


def objects(rng: random.Random, style: int) -> list[Any]:
    """Return rows as JSON objects, most of which are valid."""
    found: list[Any] = []
    for text, label in rows(rng, style):
        row: dict[str, Any] = {"text": text or "x", "label": rng.randrange(2) if style % 3 else label}
        if style % 2 and rng.random() < 0.1:
            row[rng.choice(("text", "label", "more", "\udfff"))] = value(rng)
        found.append(value(rng) if style % 2 and rng.random() < 0.03 else row)
    return found


def json_file(rng: random.Random, style: int, lines: bool) -> bytes:
    """Return a JSON file: a row per line, or an array."""
    texts = [json.dumps(row, ensure_ascii=True) for row in objects(rng, style)]
    return ("\n".join(texts) if lines or style % 3 == 0 else f"[{', '.join(texts)}]").encode()


def parquet_file(rng: random.Random, style: int, folder: Path) -> bytes:
    """Return a Parquet file with columns of any type, and perhaps with features of ``datasets``."""
    count = rng.randrange(8) if style % 2 else 8
    columns: list[Callable[[], pa.Array]] = [
        lambda: pa.array([rng.choice(WORDS if style % 2 else WORDS[:2]) for _ in range(count)]),
        lambda: pa.array([rng.choice(["a", "b", None]) for _ in range(count)], pa.string()),
        lambda: pa.array([rng.choice("ab") for _ in range(count)]).dictionary_encode(),
        lambda: pa.array([rng.randrange(-1, 3) for _ in range(count)], pa.int64()),
        lambda: pa.array([rng.choice((0.0, 1.0, 2.5, float("nan"), 1e300)) for _ in range(count)], pa.float64()),
        lambda: pa.array([rng.random() < 0.5 for _ in range(count)]),
        lambda: pa.array([[1, 2]] * count, pa.list_(pa.int8())),
        lambda: pa.array([{"a": 1}] * count, pa.struct([("a", pa.int8())])),
        lambda: pa.array([decimal.Decimal("1.5")] * count, pa.decimal128(5, 1)),
        lambda: pa.array([10**9] * count, pa.timestamp("ns", tz=rng.choice((None, "UTC", "Mars/Base")))),
        lambda: pa.array([b"\xff\xfe"] * count, pa.binary()),
        lambda: pa.array([b"\xff\xfe"] * count, pa.binary()).cast(pa.string(), safe=False),
        lambda: pa.nulls(count),
    ]
    odd = style % 2 == 1 and rng.random() < 0.3
    text = columns[rng.randrange(len(columns)) if odd else 2 * (style % 4 // 2)]()
    label = columns[rng.randrange(len(columns)) if odd else (2, 5, 3)[style % 3]]()
    names = rng.choice((["text", "text"], ["x", "label"])) if odd and rng.random() < 0.2 else ["text", "label"]
    table = pa.table([text, label], names=names)
    feature = rng.choice(
        (
            None,
            None,
            style % 2 and {"_type": "ClassLabel", "names": rng.choice((["n", "p"], ["n"], "np", None, [1, 2]))},
        )
    )
    if feature:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": feature}}})})
    elif rng.random() < 0.2:
        table = table.replace_schema_metadata({"huggingface": rng.choice(("[", "[]", '{"info": 3}', "[" * 3000))})
    pq.write_table(table, folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


MAKERS: dict[str, Callable[[random.Random, int, Path], bytes]] = {
    "csv": lambda rng, style, _: delimited(rng, style, ","),
    "tsv": lambda rng, style, _: delimited(rng, style, "\t"),
    "jsonl": lambda rng, style, _: json_file(rng, style, True),
    "json": lambda rng, style, _: json_file(rng, style, False),
    "parquet": parquet_file,
}


def require_whole(data: TaskData) -> None:
    """Check that every example has a text and, if labelled, a label."""
    for split in data.splits.values():
        for texts in split.texts:
            assert len(texts) == len(split) == len(set(split.ids.tolist()))
            assert all(isinstance(text, str) and fault_of(text) is None for text in texts)
        if split.labels is not None:
            array = data.task.head.label_array(split.labels)
            assert len(array) == len(split)
            if not data.task.head.fits_numbers:
                assert ((array >= 0) & (array < len(data.task.label_names))).all()


def torture(load: Callable[[random.Random, int], TaskData]) -> None:
    """Load ``COUNT`` inputs; only our own errors may be raised."""
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(COUNT):
        started = time.process_time()
        try:
            require_whole(load(random.Random(number), number))
            read += 1
        except HskdError as error:
            assert len(str(error)) < 2000, (number, str(error)[:500])
        except Exception as error:
            raise AssertionError(f"input {number}: {type(error).__name__}: {error}") from error
        assert time.process_time() - started < SECONDS, f"input {number} takes too long"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"{grown} bytes"
    assert COUNT // 10 < read < COUNT, f"{read} of {COUNT} inputs were read: they are all alike"
    print(f"{COUNT} inputs, {read} read, the others refused; {grown / 2**20:.0f} MiB")


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("kind", MAKERS)
def test_own_files(tmp_path: Path, kind: str) -> None:
    def load(rng: random.Random, number: int) -> TaskData:
        style = rng.randrange(60)
        (tmp_path / f"test.{kind}").unlink(missing_ok=True)
        for split in ("train", "dev", "test")[: 2 + style % 2]:
            content = MAKERS[kind](rng, style, tmp_path)
            if rng.random() < (0.4 if split == "train" else 0.1):
                content = mutated(rng, content)
            (tmp_path / f"{split}.{kind}").write_bytes(content)
        if number % 10 == 1 and kind != "parquet":
            content = gzip.compress((tmp_path / f"train.{kind}").read_bytes() * 20)
            file = tmp_path / f"one.{kind}.gz"
            file.write_bytes(mutated(rng, content))
            return load_task("custom", str(file), "text", "label")
        extra = tmp_path / f"extra.{rng.choice(('txt', kind))}"
        extra.write_bytes(mutated(rng, MAKERS[kind](rng, style, tmp_path)))
        augment = str(extra) if number % 5 == 2 else None
        chosen = LABEL_TYPES[style % 2] if number % 4 == 3 else None
        return load_task("custom", str(tmp_path), rng.choice((["text"], "text")), "label", augment, chosen)

    torture(load)


def glue_table(rng: random.Random, columns: list[str], labels: tuple[str, ...], header: bool) -> bytes:
    lines = ["\t".join(columns)] if header else []
    for _ in range(rng.randrange(1, 8)):
        row = [rng.choice(WORDS) if rng.random() < 0.1 else "a film" for _ in columns[:-1]]
        lines.append("\t".join([*row, rng.choice(labels) if rng.random() < 0.98 else rng.choice(LABELS)]))
    return "\n".join(lines).encode()


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:.*rows lack fields")
def test_glue_files(tmp_path: Path) -> None:
    def load(rng: random.Random, number: int) -> TaskData:
        name = rng.choice(list(GLUE_TASKS))
        glue = GLUE_TASKS[name]
        folder = tmp_path / str(number % 20) / name
        folder.mkdir(parents=True, exist_ok=True)
        labels = ("0.5", "5") if glue.task.head.fits_numbers else glue.tsv_labels
        for _, source in glue.sources:
            texts = list(glue.tsv_texts or glue.task.text_columns)
            columns = (
                [*texts, glue.tsv_label or glue.task.label_column] if source.header is None else list(source.header)
            )
            if source.header:  # there the label is the second column
                content = "\n".join(f"s\t{rng.choice(labels)}\t*\ta film {i}" for i in range(4)).encode()
            else:
                content = glue_table(rng, columns, labels, header=True)
            (folder / source.tsv).write_bytes(mutated(rng, content) if rng.random() < 0.3 else content)
        return load_task(name, str(folder))

    torture(load)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:.*rows lack fields")
def test_copies_of_the_hub(tmp_path: Path) -> None:
    def load(rng: random.Random, number: int) -> TaskData:
        name = rng.choice(("cola", "stsb", "mnli"))
        glue = GLUE_TASKS[name]
        folder = tmp_path / str(number % 20) / name
        folder.mkdir(parents=True, exist_ok=True)
        for _, source in glue.sources:
            last = rng.choice(("c", None, "", "\0")) if rng.random() < 0.1 else "c"
            columns = {text: ["a film", "b", last] for text in glue.task.text_columns}
            labels: list[Any] = [rng.choice((0, 1, 1, 0, -1)) for _ in range(3)] if rng.random() < 0.1 else [0, 1, 1]
            if rng.random() < 0.05:
                labels = [rng.choice((None, 0.5, float("nan"))) for _ in range(3)]
            table = pa.table({**columns, rng.choice(("label",) * 40 + ("x",)): labels})
            file = folder / f"{source.hub}-00000-of-00001.parquet"
            pq.write_table(table, file)
            if rng.random() < 0.1:
                file.write_bytes(mutated(rng, file.read_bytes()))
        return load_task(name, str(folder))

    torture(load)
