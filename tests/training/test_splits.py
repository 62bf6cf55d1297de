"""Parts never overlap, lose nothing, hold every class, and depend on nothing but names and seed."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bundle.errors import DatasetError, OptionError
from training.data import Sample, open_dataset
from training.data.division import PARTS, divide
from training.data.index import Index

DEFAULT = {"validation": 0.10, "calibration": 0.19, "test": 0.20}

class_sizes = st.lists(st.integers(4, 60), min_size=2, max_size=6)
fractions = st.fixed_dictionaries(
    {}, optional={part: st.floats(0.01, 0.49, exclude_max=True) for part in ("validation", "calibration", "test")}
)
seeds = st.integers(-(2**40), 2**40)


def index_of(sizes: list[int], *, prefix: str = "", own_test: int = 0) -> Index:
    def samples(part: str, label: int, count: int) -> list[Sample]:
        keys = [f"{prefix}{part}/{label}/{number}.jpg" for number in range(count)]
        return [Sample(key=key, path=Path(key), label=label, box=None) for key in keys]

    given = {"train": [sample for label, size in enumerate(sizes) for sample in samples("train", label, size)]}
    if own_test:
        given["test"] = [sample for label in range(len(sizes)) for sample in samples("test", label, own_test)]
    labels = tuple(f"class {label}" for label in range(len(sizes)))
    return Index(format="folder", root=Path("somewhere"), labels=labels, given=given)


def shuffled(index: Index, random: Random) -> Index:
    given = {part: list(samples) for part, samples in index.given.items()}
    for samples in given.values():
        random.shuffle(samples)
    return Index(format=index.format, root=index.root, labels=index.labels, given=given)


@given(sizes=class_sizes, shares=fractions, seed=seeds, own_test=st.integers(0, 5))
@example(sizes=[4, 4], shares={"validation": 0.49, "calibration": 0.49}, seed=0, own_test=0)
@example(sizes=[4, 5], shares={"validation": 0.49, "calibration": 0.49, "test": 0.99}, seed=0, own_test=0)
def test_parts_are_disjoint_complete_and_hold_every_class(
    sizes: list[int], shares: dict[str, float], seed: int, own_test: int
) -> None:
    index = index_of(sizes, own_test=own_test)
    shares = {part: share for part, share in shares.items() if part not in index.given}
    parts = divide(index, seed, shares)
    assert tuple(parts) == PARTS
    everything = [sample for part in PARTS for sample in parts[part]]
    assert len(everything) == len({sample.key for sample in everything}) == sum(sizes) + own_test * len(sizes)
    for part in PARTS:
        counts = Counter(sample.label for sample in parts[part])
        used = part == "train" or part in shares or part in index.given
        assert set(counts) == (set(range(len(sizes))) if used else set())
    if own_test:
        assert set(parts["test"]) == set(index.given["test"])


@given(sizes=class_sizes, shares=fractions, seed=seeds, random=st.randoms(use_true_random=False))
def test_parts_depend_on_names_and_seed_alone(
    sizes: list[int], shares: dict[str, float], seed: int, random: Random
) -> None:
    index = index_of(sizes)
    assert divide(index, seed, shares) == divide(shuffled(index, random), seed, shares)


@given(size=st.integers(20, 60), seed=seeds, other=seeds)
def test_another_seed_gives_other_parts(size: int, seed: int, other: int) -> None:
    if seed == other:
        return
    index = index_of([size, size, size])
    first, second = divide(index, seed, DEFAULT), divide(index, other, DEFAULT)
    assert first["train"] != second["train"]
    assert first["calibration"] != second["calibration"]


@given(sizes=class_sizes, shares=fractions, seed=seeds)
def test_each_part_has_its_share_of_each_class_to_the_rounding(
    sizes: list[int], shares: dict[str, float], seed: int
) -> None:
    parts = divide(index_of(sizes), seed, shares)
    counts = {part: Counter(sample.label for sample in parts[part]) for part in PARTS}
    for label, size in enumerate(sizes):
        rest = size - counts["test"][label]
        for part, share in shares.items():
            exact = share * (size if part == "test" else rest)
            # At least one each; only the smallest classes with the largest fractions give less than the rounded share.
            assert counts[part][label] <= max(1, exact + 0.5)
            assert counts[part][label] >= min(exact - 0.5, 1) or counts["train"][label] == 1
            if size >= 12 and sum(shares.values()) < 0.9:
                assert abs(counts[part][label] - max(1, exact)) <= 0.5


def test_the_default_division_of_a_class_of_150_and_of_thirty() -> None:
    parts = divide(index_of([150, 150], own_test=7), 0, {"validation": 0.10, "calibration": 0.19})
    assert [len(parts[part]) // 2 for part in PARTS] == [107, 15, 28, 7]
    parts = divide(index_of([30, 30]), 0, DEFAULT)
    assert [len(parts[part]) // 2 for part in PARTS] == [17, 2, 5, 6]


@given(seed=seeds, label=st.integers(0, 1))
def test_one_more_image_moves_few_others(seed: int, label: int) -> None:
    before, after = index_of([40, 40]), index_of([40, 40])
    after.given["train"].append(Sample(key="one more.jpg", path=Path("one more.jpg"), label=label, box=None))
    was, now = (
        {sample.key: part for part in PARTS for sample in divide(index, seed, DEFAULT)[part]}
        for index in (before, after)
    )
    assert sum(now[key] != part for key, part in was.items()) <= 4


@given(size=st.integers(1, 5), shares=fractions)
def test_too_few_images_of_a_class_say_how_many_are_needed(size: int, shares: dict[str, float]) -> None:
    needed = 1 + len(shares)
    index = index_of([9, size])
    if size >= needed:
        assert all(len(divide(index, 0, shares)[part]) >= 2 for part in ("train", *shares))
        return
    with pytest.raises(DatasetError, match=f"'class 1' has {size} .* needs {needed}") as caught:
        divide(index, 0, shares)
    assert all(part in caught.value.hint for part in ("train", *shares))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("warbler", "finch", "bunting"):
        (tmp_path / name).mkdir()
        for number in range(12):
            (tmp_path / name / f"{number}.jpg").touch()
    return tmp_path


def test_a_folder_is_divided_alike_whatever_order_the_disk_lists_it_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_dataset(folder, seed=3)
    listed: list[list[str]] = []
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)
            listed.append([entry.name for entry in self.entries])

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert open_dataset(folder, seed=3) == before
    assert ["warbler", "finch", "bunting"] in listed


def test_a_fraction_of_zero_leaves_its_part_empty_and_others_whole(folder: Path) -> None:
    dataset = open_dataset(folder, validation=0.0, test=0.25)
    assert {part: len(samples) for part, samples in dataset.parts.items()} == {
        "train": 21,
        "validation": 0,
        "calibration": 6,
        "test": 9,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": -0.1},
        {"calibration": 1.0},
        {"test": 1.0},
        {"test": 1.5},
        {"test": float("nan")},
        {"validation": 0.5, "calibration": 0.5},
    ],
)
def test_impossible_fractions_are_refused(folder: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError) as caught:
        open_dataset(folder, **wrong)
    assert all(name in str(caught.value) for name in wrong)
    assert caught.value.hint
