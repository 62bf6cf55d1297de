"""Other calibration scores in a served graph: an ONNX file's initializers are replaced in place, and nothing else.

ONNX is Protocol Buffers, and what changes lies at known field numbers, so that the file is edited without the `onnx`
package: every other byte stays, and with it every output but the p-value and the flag.

    ModelProto.graph = 7; GraphProto.node = 1, .initializer = 5; NodeProto.input = 1, .output = 2
    TensorProto.dims = 1, .data_type = 2, .name = 8, .raw_data = 9
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import BundleUnsupported

GRAPH, NODE, INITIALIZER, INPUT, OUTPUT = 7, 1, 5, 1, 2
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}  # TensorProto.DataType
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
BY_CLASS = "calibration_classes"
NAMED = {tensors.P_VALUE: "calibration_total", tensors.IS_ADVERSARIAL: "alpha"}  # where a constant has other uses, too

Array = npt.NDArray[Any]


class Field(NamedTuple):
    """One field of a message: its number, its content (of length-delimited fields), and all its bytes as they stand."""

    number: int
    content: bytes
    whole: bytes


def recalibrated(model: bytes, rows: Mapping[str, Array], alpha: float) -> bytes:
    """The ONNX file with the initializers `rows` : [1, n] each, n + 1 as what a marginal p-value is divided by, and
    `alpha` as what it is compared with; raises BundleUnsupported for a graph that is not built like ours.
    """
    try:
        return b"".join(
            _field(GRAPH, _graph(field.content, rows, alpha)) if field.number == GRAPH else field.whole
            for field in _fields(model)
        )
    except ValueError as problem:
        raise BundleUnsupported(
            f"the graph cannot be calibrated ({problem})", hint="Export the run again with this version."
        ) from None


def _graph(graph: bytes, rows: Mapping[str, Array], alpha: float) -> bytes:
    fields = list(_fields(graph))
    wanted: dict[str, Array] = dict(rows)
    constants = {tensors.IS_ADVERSARIAL: np.array(alpha, np.float32)}
    if BY_CLASS not in rows:  # per class, the graph counts the scores of a class itself
        constants[tensors.P_VALUE] = np.array(next(iter(rows.values())).shape[1] + 1, np.float32)
    initializers = {_name(field.content): place for place, field in enumerate(fields) if field.number == INITIALIZER}
    for output, value in constants.items():
        place, name = _operand(fields, output)
        if name not in initializers:
            raise ValueError(f"{output} is not made with a constant")
        if sum(_inputs(field.content).count(name) for field in fields if field.number == NODE) > 1:
            node, name = fields[place].content, NAMED[output]
            fields[place] = _made(NODE, _with_operand(node, name))
            initializers[name] = len(fields)
            fields.append(_made(INITIALIZER, _tensor(name, value)))
        wanted[name] = value
    for name, value in wanted.items():
        if name not in initializers:
            raise ValueError(f"it has no initializer {name!r}")
        fields[initializers[name]] = _made(INITIALIZER, _tensor(name, value))
    return b"".join(field.whole for field in fields)


def _operand(fields: list[Field], output: str) -> tuple[int, str]:
    """Place of the node that makes `output`, and the name of its second input."""
    for place, field in enumerate(fields):
        if field.number == NODE and output.encode() in [
            each.content for each in _fields(field.content) if each.number == OUTPUT
        ]:
            inputs = _inputs(field.content)
            if len(inputs) == 2:
                return place, inputs[1]
    raise ValueError(f"no node makes {output} of two inputs")


def _inputs(node: bytes) -> list[str]:
    return [field.content.decode() for field in _fields(node) if field.number == INPUT]


def _with_operand(node: bytes, name: str) -> bytes:
    """The node with another second input."""
    found, seen = [], 0
    for field in _fields(node):
        seen += field.number == INPUT
        found.append(_field(INPUT, name.encode()) if field.number == INPUT and seen == 2 else field.whole)
    return b"".join(found)


def _name(tensor: bytes) -> str:
    return next((field.content.decode() for field in _fields(tensor) if field.number == NAME), "")


def _tensor(name: str, value: Array) -> bytes:
    dims = b"".join(_varint(DIMS << 3 | VARINT) + _varint(size) for size in value.shape)
    kind = _varint(DATA_TYPE << 3 | VARINT) + _varint(TYPES[value.dtype])
    data = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return dims + kind + _field(NAME, name.encode()) + _field(RAW_DATA, data)


def _made(number: int, content: bytes) -> Field:
    return Field(number, content, _field(number, content))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _fields(message: bytes) -> Iterator[Field]:
    """Every field of a message in its order; raises ValueError where it is no message."""
    place = 0
    while place < len(message):
        begin = place
        tag, place = _read_varint(message, place)
        number, kind, content = tag >> 3, tag & 7, b""
        if kind == VARINT:
            _, place = _read_varint(message, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            length, place = _read_varint(message, place)
            content, place = message[place : place + length], place + length
        else:
            raise ValueError("it is no ONNX file")
        if place > len(message):
            raise ValueError("it ends too early")
        yield Field(number, content, message[begin:place])


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it ends too early")
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it is no ONNX file")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
