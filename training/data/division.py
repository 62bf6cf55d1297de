"""Dividing training data into parts, class by class, by the order of a hash of seed and key.

What is divided are groups: an image of its own, or what was taken together. A part takes the next group as long as that
brings it nearer to its share; an image added later moves few others. The result depends on nothing but names, groups,
shares and seed.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bundle.errors import DatasetError, OptionError
from training.data.index import Index, Sample

PARTS = ("train", "validation", "calibration", "test")
Targets = dict[str, dict[int, int]]
"""Images by part and class."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of the training data for validation and calibration; of all images for a test part that a dataset does not give.
    None is the default share.
    """

    validation: float | None = None
    calibration: float | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.wanted().items():
            if not (math.isfinite(value) and 0 <= value < 1):
                raise OptionError(f"the {name} fraction {value} is not in 0..1", hint="Choose for example 0.1.")
        wanted = self.wanted()
        if wanted["validation"] + wanted["calibration"] >= 1:
            raise OptionError(
                f"validation {wanted['validation']} and calibration {wanted['calibration']} leave nothing to train on",
                hint="Together they must be below 1.",
            )

    def wanted(self) -> dict[str, float]:
        """The share of each part, by its name."""
        return {
            "validation": 0.10 if self.validation is None else self.validation,
            "calibration": 0.19 if self.calibration is None else self.calibration,
            "test": 0.20 if self.test is None else self.test,
        }


def divide(
    index: Index, seed: int, shares: Mapping[str, float], series: Iterable[Sequence[str]] = (), *, calibration: int = 0
) -> dict[str, tuple[Sample, ...]]:
    """Carve `shares` (part -> fraction above 0) out of the training data, class by class, and no series in two.

    `calibration` images are taken at least, if that leaves each class as many to train on as it gives to calibration;
    else their number is what the shares say. Classes of too few groups are left out of parts, but never of training.
    """
    parts = {part: list(index.given.get(part, ())) for part in PARTS if part != "train"} | {"train": []}
    targets = _targets(index, shares)
    groups = _groups(index.given["train"], seed, series)
    carved = _carve(groups, targets)
    if "calibration" in shares:
        for aim in range(calibration, 2 * calibration):  # groups do not come in every size
            if len(carved["calibration"]) >= calibration or (grown := _grown(targets, aim)) is None:
                break
            if len((attempt := _carve(groups, grown))["calibration"]) >= calibration:
                carved = attempt
    for part, found in carved.items():
        parts[part] += found
    return {part: tuple(sorted(parts[part], key=lambda sample: sample.key)) for part in PARTS}


Group = tuple[Sample, ...]
"""Samples that stay together."""


def _groups(samples: Iterable[Sample], seed: int, series: Iterable[Sequence[str]]) -> list[Group]:
    """In the order in which they are dealt out. A found series has the name of its first image."""
    names = {key: min(keys) for keys in series for key in keys}
    members: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[f"\0{sample.group}" if sample.group else names.get(sample.key, sample.key)].append(sample)
    return [tuple(members[name]) for name in sorted(members, key=lambda name: _rank(seed, name))]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


def _targets(index: Index, shares: Mapping[str, float]) -> Targets:
    targets: Targets = {part: {} for part in ("train", *shares)}
    for label, total in sorted(Counter(sample.label for sample in index.given["train"]).items()):
        if total < 1 + len(shares):
            raise DatasetError(
                f"{index.root}: the class {index.labels[label]!r} has {total} training "
                f"image{'s' * (total != 1)}, but each class needs {1 + len(shares)}",
                hint=f"One each for {', '.join(['train', *shares])} is the least; more are much better.",
            )
        sizes = _sizes(total, shares)
        for part, size in {**sizes, "train": total - sum(sizes.values())}.items():
            targets[part][label] = size
    return targets


def _sizes(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of a class's `total` images each part takes: rounded, at least one each, and at least one stays."""
    sizes: dict[str, int] = {}
    if "test" in shares:
        sizes["test"] = max(1, round(shares["test"] * total))
    rest = total - sum(sizes.values())
    sizes |= {part: max(1, round(share * rest)) for part, share in shares.items() if part != "test"}
    while sum(sizes.values()) >= total:
        sizes[max(sizes, key=lambda part: sizes[part])] -= 1
    return sizes


def _grown(targets: Targets, calibration: int) -> Targets | None:
    """`calibration` images in all, one by one from the class that has most to train on; None where a class would have
    to give more than half of what it has for both.
    """
    train, grown = dict(targets["train"]), dict(targets["calibration"])
    for _ in range(calibration - sum(grown.values())):
        label = max(train, key=lambda label: (train[label] - grown[label], -label))
        if grown[label] + 1 > train[label] - 1:
            return None
        grown[label] += 1
        train[label] -= 1
    return {**targets, "train": train, "calibration": grown}


def _carve(groups: Sequence[Group], targets: Targets) -> dict[str, list[Sample]]:
    """Deal the groups out: to the first part that gets nearer to its targets by it, else to training."""
    dealt = _Dealt(groups, targets)
    for number in range(len(groups)):
        dealt.add(number)
    for label in targets["train"]:
        dealt.keep_in_training(label)
    for part in dealt.order:
        for label in targets["train"]:
            dealt.give_one(part, label)
    return {part: [sample for number in each for sample in groups[number]] for part, each in dealt.parts.items()}


class _Dealt:
    """Which groups, by number, each part has, and how many images of each class."""

    def __init__(self, groups: Sequence[Group], targets: Targets) -> None:
        self.counts = [Counter(sample.label for sample in group) for group in groups]
        self.targets = targets
        self.order = sorted((part for part in targets if part != "train"), key=lambda part: part != "test")
        self.parts: dict[str, list[int]] = {part: [] for part in targets}
        self.held: dict[str, Counter[int]] = {part: Counter() for part in targets}

    def add(self, number: int) -> None:
        """Deal out one group."""
        self._put(number, next((part for part in self.order if self._gain(part, number) > 0), "train"))

    def keep_in_training(self, label: int) -> None:
        """A class that has nothing to train on gets its smallest group back."""
        if self.held["train"][label]:
            return
        held = [(part, number) for part in self.order for number in self.parts[part] if label in self.counts[number]]
        part, number = min(held, key=lambda each: self.counts[each[1]].total())
        self._take(number, part)
        self._put(number, "train")

    def give_one(self, part: str, label: int) -> None:
        """A part without this class gets the smallest group of it that training can spare."""
        if self.held[part][label]:
            return
        spare = [number for number in self.parts["train"] if label in self.counts[number] and self._spared(number)]
        if spare:
            number = min(spare, key=lambda each: self.counts[each].total())
            self._take(number, "train")
            self._put(number, part)

    def _gain(self, part: str, number: int) -> int:
        """By how many images the part comes nearer to its targets."""
        gain = 0
        for label, count in self.counts[number].items():
            missing = self.targets[part][label] - self.held[part][label]
            gain += abs(missing) - abs(missing - count)
        return gain

    def _spared(self, number: int) -> bool:
        return all(self.held["train"][label] > count for label, count in self.counts[number].items())

    def _put(self, number: int, part: str) -> None:
        self.parts[part].append(number)
        self.held[part].update(self.counts[number])

    def _take(self, number: int, part: str) -> None:
        self.parts[part].remove(number)
        self.held[part].subtract(self.counts[number])


def lacking(labels: Sequence[str], samples: Iterable[Sample]) -> list[str]:
    """Names of the classes that a part has no images of."""
    present = {sample.label for sample in samples}
    return [name for code, name in enumerate(labels) if code not in present]
