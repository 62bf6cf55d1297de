"""Parts never overlap, lose nothing, hold every class, keep series whole, and depend on nothing but names and seed."""

import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundle.errors import DatasetError, OptionError
from bundle.false_alarms import ALPHA, needed, smallest_alpha
from training.data import Sample, open_dataset
from training.data.dataset import Dataset
from training.data.division import PARTS, Shares, divide
from training.data.index import Index

DEFAULT = {"validation": 0.10, "calibration": 0.19, "test": 0.20}

class_sizes = st.lists(st.integers(4, 60), min_size=2, max_size=6)
fractions = st.fixed_dictionaries(
    {}, optional={part: st.floats(0.01, 0.49, exclude_max=True) for part in ("validation", "calibration", "test")}
)
seeds = st.integers(-(2**40), 2**40)
repeatable = settings(derandomize=True, deadline=None)


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


@repeatable
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


@repeatable
@given(sizes=class_sizes, shares=fractions, seed=seeds, random=st.randoms(use_true_random=False))
def test_parts_depend_on_names_and_seed_alone(
    sizes: list[int], shares: dict[str, float], seed: int, random: Random
) -> None:
    index = index_of(sizes)
    assert divide(index, seed, shares) == divide(shuffled(index, random), seed, shares)


@repeatable
@given(size=st.integers(20, 60), seed=seeds, other=seeds)
def test_another_seed_gives_other_parts(size: int, seed: int, other: int) -> None:
    if seed == other:
        return
    index = index_of([size, size, size])
    first, second = divide(index, seed, DEFAULT), divide(index, other, DEFAULT)
    assert first["train"] != second["train"]
    assert first["calibration"] != second["calibration"]


@repeatable
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


@repeatable
@given(seed=seeds, label=st.integers(0, 1))
def test_one_more_image_moves_few_others(seed: int, label: int) -> None:
    before, after = index_of([40, 40]), index_of([40, 40])
    after.given["train"].append(Sample(key="one more.jpg", path=Path("one more.jpg"), label=label, box=None))
    was, now = (
        {sample.key: part for part in PARTS for sample in divide(index, seed, DEFAULT)[part]}
        for index in (before, after)
    )
    assert sum(now[key] != part for key, part in was.items()) <= 4


@repeatable
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


def image_by_image(index: Index, seed: int, shares: dict[str, float]) -> dict[str, list[str]]:
    """The naive twin: in the order of a hash, each part takes its number of a class, one after the other."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for label in range(len(index.labels)):
        keys = [sample.key for sample in index.given["train"] if sample.label == label]
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
        total, sizes = len(keys), {}
        if "test" in shares:
            sizes["test"] = max(1, round(shares["test"] * total))
        rest = total - sum(sizes.values())
        sizes |= {part: max(1, round(share * rest)) for part, share in shares.items() if part != "test"}
        while sum(sizes.values()) >= total:
            sizes[max(sizes, key=lambda part: sizes[part])] -= 1
        for part, size in sizes.items():
            parts[part] += keys[:size]
            keys = keys[size:]
        parts["train"] += keys
    return {part: sorted(found) for part, found in parts.items()}


@repeatable
@given(sizes=class_sizes, shares=fractions, seed=seeds)
def test_images_of_their_own_are_divided_as_ever(sizes: list[int], shares: dict[str, float], seed: int) -> None:
    """CUB, Cars and the built-in birds: a run of an earlier version finds the same parts."""
    index = index_of(sizes)
    divided = divide(index, seed, shares)
    assert {part: [sample.key for sample in divided[part]] for part in PARTS} == image_by_image(index, seed, shares)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Index, list[list[str]]]:
    """An index, and series of its images: of one class or of several, of any size."""
    index = index_of(draw(class_sizes))
    keys = [sample.key for sample in index.given["train"]]
    order = draw(st.permutations(keys))
    cuts = sorted(draw(st.lists(st.integers(0, len(keys)), max_size=12)))
    edges = [0, *cuts, len(keys)]
    series = [order[low:high] for low, high in itertools.pairwise(edges) if 1 < high - low < 20]
    return index, series


@repeatable
@given(of=grouped(), shares=fractions, seed=seeds, random=st.randoms(use_true_random=False))
def test_no_series_is_divided_and_every_class_keeps_images_to_train_on(
    of: tuple[Index, list[list[str]]], shares: dict[str, float], seed: int, random: Random
) -> None:
    index, series = of
    parts = divide(index, seed, shares, series)
    part_of = {sample.key: part for part in PARTS for sample in parts[part]}
    assert len(part_of) == len(index.given["train"]) == sum(map(len, parts.values()))
    for keys in series:
        assert len({part_of[key] for key in keys}) == 1
    assert {sample.label for sample in parts["train"]} == set(range(len(index.labels)))
    assert divide(shuffled(index, random), seed, shares, [sorted(keys, reverse=True) for keys in series]) == parts


def test_groups_of_the_dataset_are_kept_together_and_come_in_every_part() -> None:
    """Four films of fifty frames a class: a part's share is less than half a film, and it gets one all the same."""
    given = [
        Sample(key=f"{label}/{n}.jpg", path=Path("x"), label=label, box=None, group=f"{label} film {n // 50}")
        for label in range(3)
        for n in range(200)
    ]
    index = Index(format="manifest", root=Path("x"), labels=("a", "b", "c"), given={"train": given})
    parts = divide(index, 0, DEFAULT)
    films = {part: {sample.group for sample in parts[part]} for part in PARTS}
    assert sum(map(len, films.values())) == 12
    assert all(Counter(name[0] for name in films[part]) == {"0": 1, "1": 1, "2": 1} for part in PARTS)
    assert [len(parts[part]) for part in PARTS] == [150, 150, 150, 150]


def test_shares_are_met_with_series_as_far_as_their_sizes_allow() -> None:
    index = index_of([120, 120])
    series = [[f"train/{label}/{n + k}.jpg" for k in range(3)] for label in (0, 1) for n in range(0, 120, 3)]
    parts = divide(index, 0, DEFAULT, series)
    for part, share in (("test", 0.2 * 120), ("validation", 0.1 * 96), ("calibration", 0.19 * 96)):
        for count in Counter(sample.label for sample in parts[part]).values():
            assert abs(count - share) <= 2


def test_a_class_that_is_one_series_stays_in_training() -> None:
    index = index_of([20, 20])
    parts = divide(index, 0, DEFAULT, [[f"train/1/{n}.jpg" for n in range(20)]])
    assert [{sample.label for sample in parts[part]} for part in PARTS] == [{0, 1}, {0}, {0}, {0}]


@pytest.mark.parametrize(
    ("classes", "images", "calibrated"), [(6, 20, 19), (2, 60, 19), (7, 15, 19), (20, 10, 40), (3, 12, 6), (2, 20, 6)]
)
def test_few_images_calibrate_the_default_alpha_where_training_keeps_as_many(
    classes: int, images: int, calibrated: int
) -> None:
    """6 classes of 20: 18 images by their share, and 19 are needed. 3 classes of 12 cannot give that many."""
    index = index_of([images] * classes)
    parts = divide(index, 0, DEFAULT, calibration=needed(ALPHA))
    usual = divide(index, 0, DEFAULT)
    assert (parts["test"], parts["validation"]) == (usual["test"], usual["validation"])
    counts = {part: Counter(sample.label for sample in parts[part]) for part in PARTS}
    assert len(parts["calibration"]) == calibrated
    if calibrated >= needed(ALPHA):
        assert all(counts["calibration"][label] <= counts["train"][label] for label in range(classes))
        assert max(counts["calibration"].values()) - min(counts["calibration"].values()) <= 1
    else:
        assert parts == usual


@repeatable
@given(n=st.integers(1, 5000))
def test_the_smallest_alpha_that_is_told_is_supported_and_a_smaller_one_hardly(n: int) -> None:
    alpha = smallest_alpha(n)
    assert needed(alpha) <= n
    assert 1 / (n + 1) <= alpha <= 1.11 / (n + 1)
    assert float(f"{alpha:g}") == alpha
    assert math.isclose(alpha, float(f"{alpha:.2g}"))


def photographs(root: Path, classes: int, images: int) -> Dataset:
    for label in range(classes):
        (root / f"c{label}").mkdir(parents=True)
        for number in range(images):
            (root / f"c{label}" / f"{number}.jpg").write_text(f"{label} {number}")  # unreadable, and no two the same
    return open_dataset(root)


def test_what_calibration_supports_is_said_before_training(tmp_path: Path) -> None:
    enough = photographs(tmp_path / "enough", 6, 20)
    assert len(enough.parts["calibration"]) == 19
    assert not [note for note in enough.notes if "alpha" in note]
    few = photographs(tmp_path / "few", 3, 12)
    (note,) = (note for note in few.notes if "alpha" in note)
    assert note == (
        "calibration: 6 images support no alpha below 0.15, and the default 0.05 needs 19; add images, or export with "
        "--alpha 0.15"
    )
    chosen = open_dataset(tmp_path / "enough", calibration=0.1)
    assert len(chosen.parts["calibration"]) == 12  # who asks for a share gets it
    assert any("--alpha 0.077" in note for note in chosen.notes)
    none = open_dataset(tmp_path / "few", calibration=0)
    assert "calibration: no images, so the run can be evaluated but not exported" in none.notes


def test_shares_are_checked_together_with_the_defaults() -> None:
    assert Shares().wanted() == DEFAULT
    with pytest.raises(OptionError, match=r"validation 0.85 and calibration 0.19 leave nothing"):
        Shares(validation=0.85)
