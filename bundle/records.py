"""Frozen dataclasses to JSON and back, strictly: an unknown or missing key or a wrong type is an error with its place.

Understands str, int, float, bool, None, `X | None`, tuple[X, ...], dict[str, X], Any and nested dataclasses. A bool is
no int, and a float is finite. A field is named in JSON as it is here, or as its metadata says: {KEY: "name"}.
docs/decisions/023 says why no library does this.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
KEY = "key"  # in the metadata of a field whose key in a format was not named as well as the field


class RecordError(ValueError):
    """`place` is a dotted path into the document, such as `networks.full.detector.alpha`."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place[:200] or 'document'}: {problem}")
        self.place = place


def to_plain(record: Any) -> Any:
    """Dataclasses, tuples and dicts as JSON's own types."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {_key(field): to_plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (tuple, list)):
        return [to_plain(value) for value in record]
    return record


def from_plain(kind: type[T], value: Any, place: str = "") -> T:
    """Build `kind` from JSON types; raises RecordError."""
    result: T = _convert(kind, value, place)
    return result


def _convert(kind: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        (inner,) = [option for option in options if option is not type(None)]
        return _convert(inner, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(place, f"expected a list, found {_name(value)}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, element, f"{place}[{index}]") for index, element in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(place, f"expected an object, found {_name(value)}")
        item = typing.get_args(kind)[1]
        return {key: _convert(item, element, _join(place, key)) for key, element in value.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_record(kind, value, place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise RecordError(place, "the number is too large") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecordError(place, f"expected {kind.__name__}, found {_name(value)}")
    if kind is float and not math.isfinite(value):
        raise RecordError(place, f"expected a finite number, found {value}")
    return value


def _convert_record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(place, f"expected an object, found {_name(value)}")
    hints = typing.get_type_hints(kind)
    fields = {_key(field): field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise RecordError(place, f"unknown key {unknown[0][:80]!r}")
    arguments = {}
    for key, field in fields.items():
        if key in value:
            arguments[field.name] = _convert(hints[field.name], value[key], _join(place, key))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(place, f"missing key {key!r}")
    try:
        return kind(**arguments)
    except ValueError as problem:  # a __post_init__ that refuses its values
        raise RecordError(place, str(problem)) from None


def _key(field: "dataclasses.Field[Any]") -> str:
    key: str = field.metadata.get(KEY, field.name)
    return key


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
