"""How a source is cut into shards: whatever came or went, every file once and in order, and near where it was."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.local.jobs import ShardRecord
from scoring.local.stretches import Stretch, digest_of, stretches
from scoring.sources import SourceFile

NAMES = st.lists(st.text("abc", min_size=1, max_size=3), max_size=40)


def files(names: Sequence[str]) -> list[SourceFile]:
    return [SourceFile(name, name) for name in names]


def cut(names: Sequence[str], old: Sequence[ShardRecord], rows: int) -> list[Stretch]:
    return list(stretches(iter(files(names)), old, rows))


def records(found: Sequence[Stretch]) -> list[ShardRecord]:
    """What a run that ended would have written of these stretches."""
    return [
        ShardRecord(
            number=number,
            sha256="",
            rows=len(stretch.files),
            errors=0,
            flagged=0,
            first=stretch.files[0].path,
            paths=digest_of(stretch.files),
            stamps="",
        )
        for number, stretch in enumerate(stretch for stretch in found if stretch.files)
    ]


def paths(found: Sequence[Stretch]) -> list[list[str]]:
    return [[file.path for file in stretch.files] for stretch in found]


def scored_again(old: Sequence[str], new: Sequence[str], rows: int) -> int:
    """How many files lie in stretches that are not just as they were."""
    found = cut(new, records(cut(old, (), rows)), rows)
    return sum(len(stretch.files) for stretch in found if not stretch.same)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(old=NAMES, new=NAMES, rows=st.integers(1, 6))
def test_every_file_once_and_in_order_and_every_old_shard_once(old: list[str], new: list[str], rows: int) -> None:
    before = records(cut(old, (), rows))
    found = cut(new, before, rows)
    assert list(itertools.chain(*paths(found))) == new
    assert [stretch.begin for stretch in found] == [0, *(stretch.end for stretch in found)][: len(found)]
    assert (found[-1].end if found else 0) == len(before), "what is not in place of something new is dropped"
    assert all(len(stretch.files) < 2 * rows or rows == 1 for stretch in found)
    for stretch in found:
        if stretch.same:
            assert digest_of(stretch.files) == before[stretch.begin].paths
            assert stretch.end == stretch.begin + 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names=NAMES, rows=st.integers(1, 6), edits=st.lists(NAMES, max_size=3))
def test_a_source_that_has_not_changed_is_cut_as_before(names: list[str], rows: int, edits: list[list[str]]) -> None:
    old: list[ShardRecord] = []
    for each in [*edits, names]:
        old = records(cut(each, old, rows))
    again = cut(names, old, rows)
    assert all(stretch.same for stretch in again)
    assert records(again) == old


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names=NAMES, rows=st.integers(1, 6), stop=st.integers(0, 10))
def test_a_first_run_that_was_stopped_is_cut_as_if_it_had_not_been(names: list[str], rows: int, stop: int) -> None:
    whole = records(cut(names, (), rows))
    resumed = cut(names, whole[:stop], rows)
    assert records(resumed) == whole
    assert [stretch.same for stretch in resumed[:stop]] == [True] * min(stop, len(whole))


def test_what_came_or_went_stays_in_its_shard() -> None:
    old = [f"{index:03}" for index in range(100)]
    for new in (
        [*old[:42], "041b", *old[42:]],  # added within a shard
        [*old[:40], "039b", *old[40:]],  # added between two
        ["0", *old],
        [*old[:42], *old[43:]],  # removed within a shard
        [*old[:40], *old[41:]],  # the first of a shard
        old[1:],
        old[:-1],
    ):
        assert scored_again(old, new, 10) < 20, set(old) ^ set(new)
    assert scored_again(old, [*old, "a", "b"], 10) == 2
    assert scored_again(old[:95], old, 10) == 10, "the last shard has room for what comes behind it"
    assert scored_again(old, old[:30] + old[70:], 10) == 0, "whole shards just go"
    assert scored_again(old, [*old[:50], *(f"049-{index:03}" for index in range(70)), *old[50:]], 10) < 70 + 10


def test_small_additions_night_after_night_do_not_make_small_shards() -> None:
    names = [f"{index:04}" for index in range(100)]
    old = records(cut(names, (), 10))
    for night in range(200):
        names = sorted([*names, f"0042-{night:03}", f"9{night:03}"])
        old = records(cut(names, old, 10))
    assert len(old) < 2 * len(names) / 10
