"""Which inputs and outputs of an ONNX file have no rank: ONNX Runtime reports them as scalars.

Reads the few messages of the file that matter and skips all others, such as weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["without_rank"]

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_SHAPE = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED64: 8, _FIXED32: 4}

_ORT_FORMAT = b"ORTM"
"""Marks a file in ONNX Runtime's own format, which is not a list of fields."""

Span = tuple[int, int]
"""Where a message begins and ends."""


def without_rank(source: str | bytes) -> set[str]:
    """Name the inputs and outputs of a model whose type has no shape, not even one without dims.

    Parameters
    ----------
    source
        Path or content of a model that ONNX Runtime has loaded.
    """
    if isinstance(source, bytes):
        return _without_rank(source)
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _without_rank(content)


def _without_rank(content: bytes | mmap.mmap) -> set[str]:
    names: set[str] = set()
    if content[4:8] == _ORT_FORMAT:
        return names
    for graph in _messages(content, (0, len(content)), _MODEL_GRAPH):
        for value in _messages(content, graph, _GRAPH_INPUT, _GRAPH_OUTPUT):
            shapes = [
                shape
                for kind in _messages(content, value, _VALUE_TYPE)
                for tensor in _messages(content, kind, _TYPE_TENSOR)
                for shape in _messages(content, tensor, _TENSOR_SHAPE)
            ]
            if not shapes:
                names.update(content[start:end].decode() for start, end in _messages(content, value, _VALUE_NAME))
    return names


def _messages(content: bytes | mmap.mmap, within: Span, *numbers: int) -> Iterator[Span]:
    """Find the fields of these numbers, all of which hold messages or texts."""
    place, end = within
    while place < end:
        key, place = _varint(content, place)
        kind = key & 7
        if kind == _BYTES:
            length, place = _varint(content, place)
            if key >> 3 in numbers:
                yield place, place + length
            place += length
        elif kind == _VARINT:
            _, place = _varint(content, place)
        else:
            place += _WIDTH.get(kind, 0)  # the marks around a group have no content; its fields follow


def _varint(content: bytes | mmap.mmap, place: int) -> tuple[int, int]:
    """Read a number, seven bits a byte; returns the place behind it too."""
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
