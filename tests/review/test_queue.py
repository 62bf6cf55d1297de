"""The queue against a naive twin: the same items, in the same order, whatever is asked."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import OptionError
from review.store.database import Database
from review.store.decisions import decide
from review.store.groups import BY_LABEL, CAMPAIGNS, COPIES, groups
from review.store.item import Item
from review.store.queue import Filter, add, after, choices, counts, get, window, windows
from tests.review.items import make_item, make_items, members


@pytest.fixture
def items() -> list[Item]:
    random = np.random.default_rng(0)
    return [
        make_item(
            number,
            p_value=float(random.choice([0.001, 0.002, 0.01, 0.04])),
            score=float(random.choice([1.5, 3.5, np.nan, np.inf, -2.0])),
            label=str(random.choice(["Wren", "Lark"])),
            origin=str(random.choice(["", "shop", "<script>alert(1)</script>"])),
            received=f"2026-11-2{random.integers(1, 4)}T0{random.integers(0, 3)}:00:00.000+00:00",
            reason=str(random.choice(["flagged", "sample"])),
        )
        for number in range(1, 351)
    ]


@pytest.fixture
def review(tmp_path: Path, items: list[Item]) -> Database:
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    assert add(opened, items) == len(items)
    assert add(opened, items) == 0
    with opened.writing() as connection:
        connection.execute("UPDATE items SET layer = CASE id % 3 WHEN 0 THEN 'deep' ELSE 'early' END")
        connection.execute("UPDATE items SET copies = 1 + id % 7 WHERE id % 2")
    decide(opened, list(range(1, 40)), "attack", "ada")
    decide(opened, list(range(30, 60)), "clean", "bob")
    return opened


def naive(items: list[Item], numbers: list[int]) -> list[int]:
    def place(number: int) -> tuple[float, float, int]:
        item = items[number - 1]
        return item.p_value, -(math.inf if math.isnan(item.score) else item.score), number

    return sorted(numbers, key=place)


@pytest.mark.parametrize(
    ("wanted", "keep"),
    [
        (Filter(state="any"), lambda number, item: True),
        (Filter(), lambda number, item: number >= 60),
        (Filter(state="decided"), lambda number, item: number < 60),
        (Filter(state="disputed"), lambda number, item: 30 <= number < 40),
        (Filter(state="attack"), lambda number, item: number < 30),
        (Filter(state="any", label="Wren", most=0.01),
         lambda number, item: item.label == "Wren" and item.p_value <= 0.01),
        (Filter(state="any", origin=""), lambda number, item: item.origin == ""),
        (Filter(state="any", origin="<script>alert(1)</script>"), lambda number, item: "<" in item.origin),
        (Filter(state="any", day="2026-11-22", layer="deep"),
         lambda number, item: item.received[:10] == "2026-11-22" and number % 3 == 0),
        (Filter(state="any", hour="2026-11-22T01"), lambda number, item: item.received[:13] == "2026-11-22T01"),
        (Filter(state="any", reason="sample"), lambda number, item: item.reason == "sample"),
        (Filter(state="any", copies=3), lambda number, item: number % 2 == 1 and number % 7 == 2),
        (Filter(state="decided", second="bob"), lambda number, item: number < 30),
    ],
)  # fmt: skip
def test_windows_hold_every_wanted_item_once_in_order(
    review: Database, items: list[Item], wanted: Filter, keep
) -> None:  # type: ignore[no-untyped-def]
    expected = naive(items, [number for number, item in enumerate(items, start=1) if keep(number, item)])
    assert expected, "the case asks for nothing"
    blocks = windows(review, wanted)
    found = [row["id"] for block in blocks for row in window(review, wanted, block.first, block.rows)]
    assert found == expected
    assert [block.rows for block in blocks] == [100] * (len(expected) // 100) + [len(expected) % 100] * bool(
        len(expected) % 100
    )
    assert members(review, wanted) == expected
    assert Filter.of(dict(wanted.given())) == wanted
    for here, following in itertools.pairwise(expected):
        row, back = get(review, here), get(review, following)
        assert row is not None
        assert back is not None
        assert after(review, wanted, row) == following
        assert after(review, wanted, back, before=True) == here


def test_what_was_decided_meanwhile_moves_no_window(review: Database) -> None:
    wanted = Filter()
    blocks = windows(review, wanted)
    before = [row["id"] for row in window(review, wanted, blocks[1].first)]
    decide(review, [row["id"] for row in window(review, wanted, blocks[0].first)], "clean", "ada")
    assert [row["id"] for row in window(review, wanted, blocks[1].first)] == before


def test_counts_and_choices(review: Database, items: list[Item]) -> None:
    found = counts(review)
    assert (found.total, found.decided) == (350, 59)
    assert found.flagged == sum(item.reason == "flagged" for item in items)
    assert dict(choices(review)["label"]) == {
        label: sum(item.label == label for item in items) for label in ("Wren", "Lark")
    }
    assert [day for day, _ in choices(review)["day"]] == ["2026-11-23", "2026-11-22", "2026-11-21"]


@pytest.mark.parametrize(
    "query", [{"state": "guilty"}, {"most": "many"}, {"most": "2"}, {"most": "nan"}, {"copies": "x"}, {"reason": "r"}]
)
def test_a_filter_that_is_none_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(OptionError):
        Filter.of(query)


@pytest.mark.parametrize("kind", [BY_LABEL, CAMPAIGNS, COPIES])
def test_groups_are_those_of_a_naive_count(review: Database, items: list[Item], kind: str) -> None:
    keys = {
        CAMPAIGNS: lambda number, item: (item.origin, item.received[:13]),
        BY_LABEL: lambda number, item: (
            item.origin, item.label, item.received[:13], "deep" if number % 3 == 0 else "early",
        ),
        COPIES: lambda number, item: (1 + number % 7,) if number % 2 else None,
    }  # fmt: skip
    expected: dict[object, list[int]] = {}
    for number, item in enumerate(items, start=1):
        if (kind == COPIES or item.reason == "flagged") and (key := keys[kind](number, item)):
            expected.setdefault(key, []).append(number)
    sizes = [len(own) for own in expected.values() if len(own) > 1 and any(number >= 60 for number in own)]
    found = groups(review, kind, most=1000)
    assert sorted(group.items for group in found) == sorted(sizes)
    assert [group.waiting for group in found] == sorted((group.waiting for group in found), reverse=True)
    for group in found:
        own = members(review, group.wanted)
        assert len(own) == group.items
        assert tuple(own[:8]) == group.shown
        assert len(members(review, dataclasses.replace(group.wanted, state="waiting"))) == group.waiting


def test_a_name_that_is_not_utf8_is_kept_to_the_byte(tmp_path: Path) -> None:
    import os

    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(opened, [make_item(1, image=os.fsdecode(b"\xff\xfe/x.png"), origin=os.fsdecode(b"\xff"))])
    row = get(opened, 1)
    assert row is not None
    assert row["image"] == b"\xff\xfe/x.png"
    assert row["origin"] == "\\xff"


def test_ten_thousand_fill_a_hundred_windows(tmp_path: Path) -> None:
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(opened, make_items(10_000))
    assert len(windows(opened, Filter())) == 100
