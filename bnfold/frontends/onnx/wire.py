"""The bytes of a serialised model, so far as the numbers of large tensors can stay where they are in them.

A parsed `ModelProto` holds every tensor a second time, and gives one more copy whenever a tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
LARGE_BYTES = 1 << 16
"""Tensors of so many bytes are not copied to be parsed or written."""
FIELDS_OF_A_TENSOR = 100

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


def without_numbers(data: bytes) -> tuple[bytes, dict[int, memoryview]]:
    """The model without the numbers of large initializers, and these by the position of the initializer.

    Where anything is not as every writer has it, the model is given back as it is.
    """
    try:
        return _without_numbers(memoryview(data))
    except ValueError:
        return data, {}


def _without_numbers(data: memoryview) -> tuple[bytes, dict[int, memoryview]]:
    numbers: dict[int, memoryview] = {}
    model: list[memoryview | bytes] = []
    for number, field, content in fields(data):
        if number != GRAPH:
            model.append(field)
            continue
        if any(isinstance(piece, bytes) for piece in model):
            raise ValueError("a graph in two pieces")
        graph = _graph(content, numbers)
        model += [begins(GRAPH, sum(map(len, graph))), *graph]
    return b"".join(model), numbers


def _graph(data: memoryview, numbers: dict[int, memoryview]) -> list[memoryview | bytes]:
    pieces: list[memoryview | bytes] = []
    position = 0
    for number, field, content in fields(data):
        if number == INITIALIZER:
            if field[0] & 7 != _BYTES:
                raise ValueError("an initializer that is no message")
            if len(content) >= LARGE_BYTES:
                rest, raw = _tensor(content)
                if len(raw) >= LARGE_BYTES:
                    numbers[position] = raw
                    field = memoryview(begins(INITIALIZER, len(rest)) + rest)
            position += 1
        pieces.append(field)
    return pieces


def _tensor(data: memoryview) -> tuple[bytes, memoryview]:
    raw = memoryview(b"")
    rest: list[memoryview] = []
    for number, field, content in fields(data):
        if len(rest) > FIELDS_OF_A_TENSOR or (number == RAW_DATA and len(raw)):
            raise ValueError("numbers in pieces")
        if number == RAW_DATA:
            raw = content
        else:
            rest.append(field)
    return b"".join(rest), raw


def fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """The fields of a message in order: number, all its bytes, and those of its content, empty for a number.

    Raises `ValueError` where the bytes are no message (https://protobuf.dev/programming-guides/encoding).
    """
    position = 0
    while position < len(data):
        start = position
        tag, position = varint(data, position)
        kind, length = tag & 7, 0
        if kind == _VARINT:
            _, position = varint(data, position)
        elif kind == _BYTES:
            length, position = varint(data, position)
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            raise ValueError(f"a field of kind {kind}")
        content = data[position : position + length]
        position += length
        if position > len(data):
            raise ValueError("a field ends behind the message")
        yield tag >> 3, data[start:position], content


def varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and where it ends. Raises `ValueError` where there is none."""
    found = 0
    for index in range(10):
        if position + index >= len(data):
            break
        byte = data[position + index]
        found |= (byte & 127) << 7 * index
        if byte < 128:
            return found, position + index + 1
    raise ValueError("no number")


def begins(field: int, size: int) -> bytes:
    """The key and the length in front of a field of so many bytes."""
    return encoded(field << 3 | _BYTES) + encoded(size)


def encoded(number: int) -> bytes:
    """A number as a varint."""
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
