"""One dataset in parts that never overlap: train, validation, calibration, test.

A part that the dataset publishes is taken as it is. The others are carved out of the training data, class by class, by
the order of a hash of seed and key: the result depends on nothing but the names of the images and the seed, and an
image added later moves few others.
"""

import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bundle.errors import DatasetError, OptionError
from training.data import cars, cub, folder
from training.data.index import Index, Sample

PARTS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples of each part, sorted by key. Every class is in every part, unless the part's fraction is 0."""

    name: str
    format: str
    """"cub", "cars" or "folder"."""
    root: Path
    labels: tuple[str, ...]
    parts: dict[str, tuple[Sample, ...]]
    """By the names in PARTS."""
    digest: str
    """SHA-256 over part, key, label and box of every sample: a changed dataset or division changes it."""


def open_dataset(
    root: Path, *, seed: int = 0, validation: float = 0.10, calibration: float = 0.19, test: float = 0.20
) -> Dataset:
    """Read the dataset at `root`, whatever its format; no image is decoded.

    `validation` and `calibration` are fractions of the training data. `test` is the fraction of all images that a
    plain folder without a test folder gives up first; CUB and Cars have their own test part.
    """
    _check_fractions(validation, calibration, test)
    _check_utf8(os.path.abspath(root), "the dataset folder")
    try:
        index = _read(root)
        name = index.root.resolve().name
    except OSError as problem:
        raise DatasetError(
            f"{problem.filename or root} cannot be read: {problem.strerror or problem}",
            hint="Check the path and your permission to read it.",
        ) from None
    _check(index)
    wanted = {"validation": validation, "calibration": calibration, "test": test}
    shares = {part: share for part, share in wanted.items() if share > 0 and part not in index.given}
    parts = divide(index, seed, shares)
    return Dataset(
        name=name,
        format=index.format,
        root=index.root,
        labels=index.labels,
        parts=parts,
        digest=_digest(index.labels, parts),
    )


def _read(root: Path) -> Index:
    if not root.exists():
        raise DatasetError(f"there is no folder {root}", hint="Check the path of the dataset.")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file, not a dataset folder", hint="Unpack it, and name the folder.")
    if (place := cub.find(root)) is not None:
        return cub.read(place)
    if (place := cars.find(root)) is not None:
        return cars.read(place)
    return folder.read(root)


def _check_fractions(validation: float, calibration: float, test: float) -> None:
    for name, value in (("validation", validation), ("calibration", calibration), ("test", test)):
        if not (math.isfinite(value) and 0 <= value < 1):
            raise OptionError(f"the {name} fraction {value} is not in 0..1", hint="Choose for example 0.1.")
    if validation + calibration >= 1:
        raise OptionError(
            f"validation {validation} and calibration {calibration} leave nothing to train on",
            hint="Together they must be below 1.",
        )


def _check(index: Index) -> None:
    """What must hold for every format before it is divided."""
    for label, times in Counter(index.labels).items():
        if times > 1:
            raise DatasetError(f"{index.root}: {times} classes have the name {label!r}", hint="Rename one of them.")
        _check_utf8(label, f"{index.root}: a class")
    keys: set[str] = set()
    for samples in index.given.values():
        for sample in samples:
            if sample.key in keys:
                raise DatasetError(
                    f"{index.root}: the image {sample.key} is listed twice, so it could be trained on and tested on",
                    hint="Remove one of the two entries.",
                )
            keys.add(sample.key)
            _check_utf8(sample.key, f"{index.root}: an image")
    if len(index.labels) < 2:
        names = f" ({index.labels[0]!r})" if index.labels else ""
        raise DatasetError(
            f"{index.root} has {len(index.labels)} class{'es' * (not index.labels)}{names}",
            hint="A classifier needs at least two.",
        )
    for part, samples in index.given.items():
        present = {sample.label for sample in samples}
        for code, name in enumerate(index.labels):
            if code not in present:
                raise DatasetError(
                    f"{index.root}: the class {name!r} has no images in its {part} part",
                    hint="Add images of it, or remove the class.",
                )


def _check_utf8(name: str, what: str) -> None:
    """Names go into JSON, CSV and the bundle, which are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{what} is called {name!r}, which is not UTF-8", hint="Rename it.") from None


def check_outside(dataset: Dataset, out: Path) -> None:
    """Refuse an output among a plain folder's class folders, where it would be read as a class the next time."""
    if dataset.format != "folder":
        return
    for sample in (samples[0] for samples in dataset.parts.values() if samples):
        first = PurePosixPath(sample.key).parts[0]
        place = dataset.root if first == dataset.labels[sample.label] else dataset.root / first
        if out.resolve().is_relative_to(place.resolve()):
            raise OptionError(
                f"{out} lies among the class folders of {place} and would be taken for a class",
                hint="Choose a folder outside the dataset.",
            )


def divide(index: Index, seed: int, shares: dict[str, float]) -> dict[str, tuple[Sample, ...]]:
    """Carve `shares` (part -> fraction above 0) out of the training data, class by class."""
    parts = {part: list(index.given.get(part, ())) for part in PARTS if part != "train"} | {"train": []}
    needed = 1 + len(shares)
    classes: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in index.given["train"]:
        classes[sample.label].append(sample)
    for label, samples in sorted(classes.items()):
        if len(samples) < needed:
            raise DatasetError(
                f"{index.root}: the class {index.labels[label]!r} has {len(samples)} training "
                f"image{'s' * (len(samples) != 1)}, but each class needs {needed}",
                hint=f"One each for {', '.join(['train', *shares])} is the least; more are much better.",
            )
        rest = sorted(samples, key=lambda sample: _rank(seed, sample.key))
        for part, size in _sizes(len(rest), shares).items():
            parts[part] += rest[:size]
            rest = rest[size:]
        parts["train"] += rest
    return {part: tuple(sorted(parts[part], key=lambda sample: sample.key)) for part in PARTS}


def _sizes(total: int, shares: dict[str, float]) -> dict[str, int]:
    """How many of a class's `total` images each part takes: rounded, at least one each, and at least one stays."""
    sizes: dict[str, int] = {}
    if "test" in shares:
        sizes["test"] = max(1, round(shares["test"] * total))
    rest = total - sum(sizes.values())
    sizes |= {part: max(1, round(share * rest)) for part, share in shares.items() if part != "test"}
    while sum(sizes.values()) >= total:
        sizes[max(sizes, key=lambda part: sizes[part])] -= 1
    return sizes


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()


def _digest(labels: tuple[str, ...], parts: dict[str, tuple[Sample, ...]]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for sample in parts[part]:
            row = [part, sample.key, sample.label, labels[sample.label], sample.box]
            digest.update(json.dumps(row).encode("ascii") + b"\n")
    return digest.hexdigest()
