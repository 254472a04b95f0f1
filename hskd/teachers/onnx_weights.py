"""Read the weights of a BERT encoder from an ONNX file, under the names that ``transformers`` gives them.

An ONNX file is one protobuf message. Only its tensors and the names of its nodes are read, so no package is needed
(wire format: https://protobuf.dev/programming-guides/encoding; fields: onnx.proto of https://github.com/onnx/onnx).
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
"""Field number of the graph in a model."""
_NODE, _INITIALIZER = 1, 5
"""Field numbers in a graph."""
_INPUT, _OUTPUT, _OPERATION = 1, 2, 4
"""Field numbers in a node."""
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
"""Field numbers in a tensor."""
_FLOAT = 1
"""Number of the data type fp32."""
_BODY = re.compile(r"(?:^|[./])(?=(?:embeddings|encoder)[./])")
"""Matches where the name of an encoder's part begins, after the names of the modules that contain the encoder."""

_Field = tuple[int, int | memoryview]


def bert_weights(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of the BERT encoder that was exported from PyTorch to ``path``.

    An export keeps the names of embeddings, biases and LayerNorms. It transposes the matrix of a linear layer and drops
    its name. Such a matrix is transposed back, and named after the node that multiplies by it.

    Returns:
        Name in ``BertModel`` -> fp32 array, with PyTorch's shape.

    Raises:
        CorruptionError: the file is not an ONNX model of an encoder, or a tensor is not fp32 or does not have the size
            that it declares.
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
        raise ValueError("none of its tensors belongs to one")
    return weights


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    import numpy as np

    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for field, value in _fields(message):
        if field == _DIMS and isinstance(value, int):
            dims.append(value)
        elif field == _DIMS:  # a packed list of numbers
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
        raise ValueError(f"the tensor {name[:100]} is not fp32")
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a protobuf message: the field number, and an integer or bytes."""
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
    """Return an integer with seven bits per byte, lowest bits first, and the position after it."""
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
