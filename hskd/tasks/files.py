"""Read tables from a user's own files: CSV, TSV, JSON and Parquet. Any content must give a table or a clear error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hskd.errors import HskdError

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSED = ".gz"
FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz")
"""File name endings that can be read."""

_LARGEST_RATIO = 200
"""The largest believable expansion of compressed text: prose shrinks to a third, repeated lines to a tenth."""
_ALWAYS_EXPANDED = 64 * 2**20
_ROWS_A_BYTE = 100
"""The largest believable number of rows per byte of a Parquet file: a file with more repeats one row."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a file, converted to lists on access.

    Attributes:
        file: path of the file.
        names: column names, in file order.
        rows: number of rows.
        get: returns a column's values. In CSV and TSV files these are strings, with None for an empty field.
        is_text: whether every value is text, as in CSV and TSV files, so that ``1`` may be a number.
        class_names: class names of the columns that a schema of ``datasets`` declares as ``ClassLabel`` or as lists of
            ``ClassLabel``.
    """

    file: Path
    names: tuple[str, ...]
    rows: int
    get: Callable[[str], list[Any]]
    is_text: bool = False
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, one for each row.

        Raises:
            HskdError: there is no column of this name, or more than one.
        """
        if name not in self.names:
            raise HskdError(f"{self.file}: no column {short_repr(name)}; it has {listed(self.names)}.")
        if self.names.count(name) > 1:
            raise HskdError(
                f"{self.file}: {self.names.count(name)} columns are called {short_repr(name)}; expected one."
            )
        return self.get(name)

    def texts(self, names: Sequence[str]) -> list[list[str]]:
        """Return the columns ``names``, each as a list of texts.

        Raises:
            HskdError: a column is missing, or a row of it has no text.
        """
        columns = [self.column(name) for name in names]
        for name, values in zip(names, columns, strict=True):
            for row, text in enumerate(values):
                if not isinstance(text, str) or not text:
                    raise HskdError(
                        f"{self.file}, row {row}, column {short_repr(name)}: {short_repr(text)}; expected a text."
                    )
                if (fault := fault_of(text)) is not None:
                    raise HskdError(f"{self.file}, row {row}, column {short_repr(name)}: {fault}.")
        return columns


def fault_of(text: str) -> str | None:
    """Return what makes a string invalid text: a lone surrogate, which no encoding can write. None if it is valid."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"character {error.start} is a lone surrogate ({text[error.start]!r}), half of a character; "
            "expected Unicode text"
        )
    return None


def short_repr(value: object) -> str:
    """Return a short ``repr`` of a value, for messages."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHORT.maxstring else f"{value[: _SHORT.maxstring]!r}..."
    try:
        return _SHORT.repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return type(value).__name__


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names as a list of at most ``most`` entries, for messages."""
    names = list(names)
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return f"[{', '.join(map(short_repr, names[:most]))}{more}]"


def ending(path: Path) -> str:
    """Return the ending of a file name that gives its format, such as ``.csv`` or ``.csv.gz``, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [COMPRESSED] else "".join(suffixes[-1:])


def read_table(path: Path, kind: str | None = None) -> Table:
    """Read the table in a file of one of the :data:`FORMATS`, given by ``kind`` or else by the file name.

    ``.csv`` is read as Excel and pandas write it. ``.tsv`` is read as in GLUE: fields are not quoted, and every line is
    a row. ``.jsonl`` has one object per line. ``.json`` is an array of objects, or has one per line. Text is UTF-8.

    Raises:
        HskdError: the file has another format, cannot be read, is damaged, or has no rows.
    """
    import pyarrow as pa

    if path.is_dir():
        raise HskdError(f"{path}: is a folder; expected a file.")
    kind = kind or ending(path)
    if kind not in FORMATS:
        raise HskdError(f"{path}: unknown format {kind!r}; expected one of {', '.join(FORMATS)}.")
    readers: dict[str, Callable[[Path, str], Table]] = {
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
    }
    try:
        if kind == ".parquet":
            try:
                table = _read_parquet(path)
            except UnicodeDecodeError as error:
                raise HskdError(f"{path}: is damaged: a name in it is not UTF-8 ({error.reason}).") from None
        else:
            table = readers[kind.removesuffix(COMPRESSED)](path, read_text(path))
    except (OSError, pa.ArrowException) as error:
        raise HskdError(f"{path}: cannot be read: {str(error).splitlines()[0] if str(error) else error!r}.") from error
    if not table.names or not table.rows:
        raise HskdError(f"{path}: no rows.")
    return table


def read_text(path: Path) -> str:
    """Return the text of a file without a byte order mark; a file whose name ends in ``.gz`` is decompressed.

    Raises:
        HskdError: the file cannot be read, is not UTF-8, or is not a whole gzip file.
    """
    try:
        content = _decompressed(path) if ending(path).endswith(COMPRESSED) else path.read_bytes()
    except OSError as error:
        raise HskdError(f"{path}: cannot be read ({error.strerror or error}).") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = " It seems to be UTF-16; save it as UTF-8." if utf16 else ""
        raise HskdError(f"{path}, line {line}: byte {error.start} is not UTF-8.{hint}") from None


def _decompressed(path: Path) -> bytes:
    limit = max(_LARGEST_RATIO * path.stat().st_size, _ALWAYS_EXPANDED)
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise HskdError(f"{path}: is not a whole gzip file ({error}).") from None
    if len(content) > limit:
        raise HskdError(
            f"{path}: grows to more than {limit:,} bytes, {_LARGEST_RATIO} times its size, when decompressed. If the "
            "file is right, decompress it yourself."
        )
    return content


def _read_csv(path: Path, text: str) -> Table:
    rows: list[list[str]] = []
    header: list[str] | None = None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(len(text) + 1)  # a text may have any length
    start = 1
    try:
        for fields in reader:
            if header is None:
                header = fields
            elif fields:
                if len(fields) != len(header):
                    raise HskdError(
                        f"{path}, row {len(rows)} (line {start}): {len(fields)} fields; expected {len(header)}: "
                        f"{listed(header)}."
                    )
                rows.append(fields)
            start = reader.line_num + 1
    except csv.Error as error:
        where = "the header" if header is None else f"row {len(rows)}"
        cause = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
        raise HskdError(f"{path}, {where} (line {start}): {cause}; not a CSV row.") from None
    finally:
        csv.field_size_limit(limit)
    return _of_rows(path, tuple(header or ()), rows)


def _read_tsv(path: Path, text: str) -> Table:
    # Only "\n" ends a row: other line separators occur inside texts.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    header = tuple(lines[0].split("\t"))
    rows: list[list[str]] = []
    for number, line in enumerate(lines[1:], 2):
        if line:
            fields = line.split("\t")
            if len(fields) != len(header):
                raise HskdError(
                    f"{path}, row {len(rows)} (line {number}): {len(fields)} fields; expected {len(header)}: "
                    f"{listed(header)}."
                )
            rows.append([unquoted(value) for value in fields])
    return _of_rows(path, header, rows)


def _of_rows(path: Path, header: tuple[str, ...], rows: list[list[str]]) -> Table:
    # These formats have no null, so an empty field stands for a missing value.
    return Table(path, header, len(rows), lambda name: _field(rows, header.index(name)), is_text=True)


def _field(rows: list[list[str]], place: int) -> list[Any]:
    return [row[place] or None for row in rows]


def unquoted(value: str) -> str:
    """Return a field without the quotes of Python's ``csv``. Official files have none; files made from them may."""
    inner = value[1:-1]
    quoted = value[:1] == value[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else value


def _read_json_lines(path: Path, text: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_object(f"{path}, line {number}", _parsed(path, line, number)))
    return _of_objects(path, rows)


def _read_json(path: Path, text: str) -> Table:
    if text.lstrip()[:1] != "[":
        return _read_json_lines(path, text)
    rows = _parsed(path, text)
    return _of_objects(path, [_object(f"{path}, row {number}", row) for number, row in enumerate(rows)])


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    """Parse JSON; ``line`` is the line number of ``text`` if that is a single line of the file."""
    where = str(path) if line is None else f"{path}, line {line}"
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        at = f"{path}, line {line or error.lineno}"
        raise HskdError(f"{at}: not JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise HskdError(f"{where}: nested too deep; expected an object with texts and labels.") from None
    except ValueError as error:  # Python refuses to parse a number of more than 4,300 digits
        cause = str(error) if isinstance(error, _Repeated) else "a number has too many digits"
        raise HskdError(f"{where}: {cause}.") from None


class _Repeated(ValueError):
    """A JSON object contains a field twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _Repeated(f"an object has {count} fields {short_repr(name)}; expected one")
    return fields


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise HskdError(f"{where}: {type(row).__name__}; expected an object.")
    return row


def _of_objects(path: Path, rows: list[dict[str, Any]]) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(path, names, len(rows), lambda name: [row.get(name) for row in rows])


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    # Pass an open file: given a path, Arrow would add columns inferred from folder names.
    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > 10_000 + _ROWS_A_BYTE * size:
            raise HskdError(f"{path}: says that it has {rows:,} rows in {size:,} bytes; it is damaged.")
        table = file.read()
    names = tuple(table.column_names)
    return Table(
        path,
        names,
        table.num_rows,
        lambda name: _pythonic(path, table, name),
        class_names=dict(_class_names(table.schema.metadata or {})),
    )


def _pythonic(path: Path, table: pa.Table, name: str) -> list[Any]:
    import pyarrow as pa

    try:
        return table.column(name).to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        raise HskdError(f"{path}, column {short_repr(name)}: a text is not UTF-8 ({error.reason}).") from None
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise HskdError(f"{path}, column {short_repr(name)}: cannot be read: {error}.") from None


def _class_names(metadata: dict[bytes, bytes]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the columns that the metadata of a Parquet file declares as ``ClassLabel`` for ``datasets``."""
    try:
        info = json.loads(metadata[b"huggingface"])["info"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return  # not written by datasets, so the column holds plain whole numbers
    yield from class_names_of(info)


def class_names_of(info: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the columns that ``datasets`` declares as ``ClassLabel`` or as lists of it, with their class names.

    Args:
        info: a data set's description as JSON, with ``features``. Anything else yields nothing.
    """
    try:
        for name, feature in info["features"].items():
            inner = feature[0] if isinstance(feature, list) else feature
            inner = inner.get("feature", inner) if isinstance(inner, dict) else inner
            names = inner["names"] if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else ()
            whole = all(isinstance(text, str) and fault_of(text) is None for text in names)
            if names and whole and len(set(names)) == len(names):
                yield name, tuple(names)
    except (KeyError, IndexError, TypeError, AttributeError):
        return
