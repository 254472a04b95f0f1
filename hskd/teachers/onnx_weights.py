"""The weights of a BERT encoder in an ONNX file, under the names that ``transformers`` gives them.

An ONNX file is one protobuf message. Of it, only the tensors and the names of the nodes are read, so no package is
needed (wire format: https://protobuf.dev/programming-guides/encoding; fields: onnx.proto of https://github.com/onnx/onnx).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hskd.errors import CorruptionError

if TYPE_CHECKING:
    import numpy as np

_GRAPH = 7
"""The field of a model that holds its graph."""
_NODE, _INITIALIZER = 1, 5
"""Fields of a graph."""
_INPUT, _OUTPUT, _OPERATION = 1, 2, 4
"""Fields of a node."""
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
"""Fields of a tensor."""
_FLOAT = 1
"""The data type fp32."""
_BODY = re.compile(r"(?:^|[./])(?=(?:embeddings|encoder)[./])")
"""Where the name of a part of the encoder begins, behind the modules that it lies in."""

_Field = tuple[int, int | memoryview]


def bert_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights of the BERT encoder that was exported from PyTorch to ``path``.

    An export keeps the names of embeddings, biases and LayerNorms. A linear layer's matrix is transposed and loses its
    name; it gets that of the node that multiplies by it.

    Returns:
        Name in ``BertModel`` -> fp32 array, as PyTorch has it.

    Raises:
        CorruptionError: the file is no ONNX model, or a tensor is not of fp32 or of another size than it says.
    """
    try:
        return _weights(memoryview(path.read_bytes()))
    except (IndexError, ValueError, TypeError, StopIteration) as error:
        raise CorruptionError(f"{path}: not an ONNX file of a BERT encoder ({error}); get it again.") from None


def _weights(model: memoryview) -> dict[str, np.ndarray]:
    graph = next((value for field, value in _fields(model) if field == _GRAPH), None)
    if not isinstance(graph, memoryview):
        raise ValueError("it has no graph")
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, str] = {}
    for field, value in _fields(graph):
        if field == _INITIALIZER:
            name, array = _tensor(_message(value))
            tensors[name] = array
        elif field == _NODE:
            node = list(_fields(_message(value)))
            inputs, outputs, operations = (
                [_text(part) for number, part in node if number == kind] for kind in (_INPUT, _OUTPUT, _OPERATION)
            )
            if operations == ["MatMul"]:
                modules.update((name, outputs[0].rpartition("/")[0]) for name in inputs)
    weights = {}
    for name, array in tensors.items():
        is_matrix = name.startswith("onnx::MatMul") and name in modules
        full_name = f"{modules[name]}/weight" if is_matrix else name
        start = _BODY.search(full_name)
        if start is not None:
            weights[full_name[start.end() :].replace("/", ".")] = array.T.copy() if is_matrix else array
    if not weights:
        raise ValueError("none of its tensors is of one")
    return weights


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    import numpy as np

    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for field, value in _fields(message):
        if field == _DIMS and isinstance(value, int):
            dims.append(value)
        elif field == _DIMS:  # several numbers in one
            packed, place = _message(value), 0
            while place < len(packed):
                number, place = _varint(packed, place)
                dims.append(number)
        elif field == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif field == _NAME:
            name = _text(value)
        elif field == _RAW_DATA:
            raw = _message(value)
    if kind != _FLOAT:
        raise ValueError(f"the tensor {name[:100]} is not of fp32")
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _fields(message: memoryview) -> Iterator[_Field]:
    """The fields of a protobuf message: number, and a whole number or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of the unknown type {kind}")
        size, place = _varint(message, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
        if place + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, lowest first, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a number of more than ten bytes")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where bytes are expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
