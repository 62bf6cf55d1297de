"""Frozen dataclasses to JSON and back: what goes out comes in equal, and nothing else comes in."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.records import KEY, RecordError, from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.number == 13:
            raise ValueError("13 is refused")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    flag: bool
    inner: Inner
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    maybe: str | None = None
    free: Any = None


inners = st.builds(Inner, number=st.integers(14), share=st.floats(allow_nan=False, allow_infinity=False))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
outers = st.builds(
    Outer,
    name=st.text(),
    flag=st.booleans(),
    inner=inners,
    many=st.lists(inners, max_size=3).map(tuple),
    named=st.dictionaries(st.text(), inners, max_size=3),
    maybe=st.none() | st.text(),
    free=plain,
)
GOOD: dict[str, Any] = {"name": "a", "flag": True, "inner": {"number": 1}}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(outers)
def test_what_goes_out_comes_in_equal(record: Outer) -> None:
    assert from_plain(Outer, json.loads(json.dumps(to_plain(record)))) == record


@settings(max_examples=300, deadline=None, derandomize=True)
@given(plain)
def test_any_document_is_a_record_or_a_record_error(document: Any) -> None:
    try:
        record = from_plain(Outer, document)
    except RecordError:
        return
    assert isinstance(record, Outer)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(GOOD)), plain)
def test_a_value_of_any_type_in_any_place(key: str, value: Any) -> None:
    kinds = {"name": str, "flag": bool}
    try:
        record = from_plain(Outer, GOOD | {key: value})
    except RecordError as problem:
        place = problem.place
    else:
        assert key not in kinds or type(getattr(record, key)) is kinds[key]
        place = key
    assert place.startswith(key)


def test_defaults_fill_what_is_absent() -> None:
    assert from_plain(Outer, GOOD) == Outer(name="a", flag=True, inner=Inner(number=1, share=0.5))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": 1}, "document: unknown key 'colour'"),
        ({"inner": {"number": 1, "x": 2}}, "inner: unknown key 'x'"),
        ({"inner": {}}, "inner: missing key 'number'"),
        ({"inner": {"number": True}}, "inner.number: expected int, found bool"),
        ({"inner": {"number": 1.0}}, "inner.number: expected int, found float"),
        ({"inner": {"number": "1"}}, "inner.number: expected int, found str"),
        ({"inner": {"number": 13}}, "inner: 13 is refused"),
        ({"inner": {"number": 1, "share": True}}, "inner.share: expected float, found bool"),
        ({"inner": {"number": 1, "share": None}}, "inner.share: expected float, found null"),
        ({"inner": {"number": 1, "share": math.nan}}, "inner.share: expected a finite number, found nan"),
        ({"inner": {"number": 1, "share": -math.inf}}, "inner.share: expected a finite number, found -inf"),
        ({"inner": {"number": 1, "share": 10**400}}, "inner.share: the number is too large"),
        ({"inner": []}, "inner: expected an object, found list"),
        ({"flag": 1}, "flag: expected bool, found int"),
        ({"name": None}, "name: expected str, found null"),
        ({"many": {}}, "many: expected a list, found dict"),
        ({"many": [{"number": 1}, {"number": 13}]}, r"many[1]: 13 is refused"),
        ({"named": []}, "named: expected an object, found list"),
        ({"named": {"a.b": {"number": "x"}}}, "named.a.b.number: expected int, found str"),
        ({"maybe": 3}, "maybe: expected str, found int"),
    ],
)
def test_each_mistake_is_named_with_its_place(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_plain(Outer, GOOD | change)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("document", [None, [], "text", 3, True, [GOOD]])
def test_only_an_object_is_a_record(document: Any) -> None:
    with pytest.raises(RecordError, match="document: expected an object"):
        from_plain(Outer, document)


def test_an_absurd_key_does_not_fill_the_screen() -> None:
    with pytest.raises(RecordError) as caught:
        from_plain(Outer, GOOD | {"k" * 10**6: 1})
    assert len(str(caught.value)) < 200
    with pytest.raises(RecordError) as caught:
        from_plain(Outer, GOOD | {"named": {"k" * 10**6: 1}})
    assert len(str(caught.value)) < 400


def test_whole_numbers_may_stand_for_floats() -> None:
    share = from_plain(Inner, {"number": 1, "share": 2}).share
    assert (share, type(share)) == (2.0, float)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    columns: tuple[int, ...] = field(metadata={KEY: "layers"})


def test_a_field_may_have_another_name_in_the_format() -> None:
    record = Renamed(columns=(1, 2))
    assert to_plain(record) == {"layers": [1, 2]}
    assert from_plain(Renamed, {"layers": [1, 2]}) == record
    for document, sentence in (
        ({"columns": [1]}, "document: unknown key 'columns'"),
        ({}, "document: missing key 'layers'"),
        ({"layers": [1, "x"]}, "layers[1]: expected int, found str"),
    ):
        with pytest.raises(RecordError) as caught:
            from_plain(Renamed, document)
        assert str(caught.value) == sentence


def test_to_plain_leaves_nothing_but_json() -> None:
    record = Outer(name="a", flag=False, inner=Inner(number=1), many=(Inner(number=2),), free={"t": (1, 2)})
    assert to_plain(record) == {
        "name": "a",
        "flag": False,
        "inner": {"number": 1, "share": 0.5},
        "many": [{"number": 2, "share": 0.5}],
        "named": {},
        "maybe": None,
        "free": {"t": [1, 2]},
    }
