"""One dataset in parts that never overlap: train, validation, calibration, test.

A part that the dataset gives is taken as it is; it may lack classes. The others are carved out of the training data
(training.data.division). Photographs in folders or manifests are looked at first, so that no series of them is divided;
CUB and Cars publish their test part, and the rest is divided image by image.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

from bundle.errors import DatasetError, OptionError
from bundle.false_alarms import ALPHA, needed, smallest_alpha
from bundle.formats import passed_over
from training.data import cars, cub, folder, manifest
from training.data.division import PARTS, Shares, divide, lacking
from training.data.index import Index, Sample
from training.data.look import Keys, Look, look
from training.data.series import find_series

NAMED = 3  # classes that a note names before it counts the others


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples of each part, sorted by key. Every class has images to train on; other parts may lack some."""

    name: str
    format: str
    """"cub", "cars", "folder" or "manifest"."""
    root: Path
    """The folder, or the manifest."""
    labels: tuple[str, ...]
    parts: dict[str, tuple[Sample, ...]]
    """By the names in PARTS."""
    digest: str
    """SHA-256 over part, key, label and box of every sample: a changed dataset or division changes it."""
    seed: int
    """Of the division, and of nothing else."""
    shares: Shares
    series: tuple[Keys, ...]
    """What was found to belong together and so was not divided; groups that a dataset gives are not in here."""
    division: str
    """How validation came about, to stand beside every figure on it."""
    notes: tuple[str, ...] = ()
    """A sentence each of what a user should know before training."""
    passed: dict[str, int] = field(default_factory=dict)
    """Files that are no readable images, counted by suffix."""
    bad: dict[str, str] = field(default_factory=dict)
    """Keys of images that were left out, and why."""
    looked: Look | None = None
    """What was seen of all images, where the division needed it."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Of all parts."""
        return tuple(chain.from_iterable(self.parts.values()))


def open_dataset(
    root: Path,
    *,
    seed: int = 0,
    validation: float | None = None,
    calibration: float | None = None,
    test: float | None = None,
    without: Mapping[str, str] | None = None,
    series: Sequence[Keys] | None = None,
) -> Dataset:
    """Read the dataset at `root`, whatever its format, and divide it.

    The shares are those of `Shares`; a calibration part of the default share grows until it supports an alpha of 0.05.
    `without` are keys of images to leave out, and why. `series` are images to keep together; None looks for them,
    which decodes every image once.
    """
    shares = Shares(validation=validation, calibration=calibration, test=test)
    _check_utf8(os.path.abspath(root), "the dataset folder")
    try:
        index, bad = _left(_read(root), without or {})
        name = index.root.resolve().stem if index.format == "manifest" else index.root.resolve().name
    except OSError as problem:
        raise DatasetError(
            f"{problem.filename or root} cannot be read: {problem.strerror or problem}",
            hint="Check the path and your permission to read it.",
        ) from None
    _check(index)
    wanted = {part: share for part, share in shares.wanted().items() if share > 0 and not index.given.get(part)}
    grouped = any(sample.group for sample in index.given["train"])
    looked = None
    if series is None:
        if wanted and index.format in ("folder", "manifest") and not grouped:
            looked = look(list(chain.from_iterable(index.given.values())))
        series = () if looked is None else find_series(index.given["train"], looked)
    least = needed(ALPHA) if calibration is None else 0
    parts = divide(index, seed, wanted, series, calibration=least)
    return Dataset(
        name=name,
        format=index.format,
        root=index.root,
        labels=index.labels,
        parts=parts,
        digest=_digest(index.labels, parts),
        seed=seed,
        shares=shares,
        series=tuple(series),
        division=_division(index, parts, wanted, series),
        notes=tuple(_notes(index, parts, wanted, shares)),
        passed=index.passed,
        bad=bad,
        looked=looked,
    )


def _read(root: Path) -> Index:
    if not root.exists():
        raise DatasetError(f"there is no folder {root}", hint="Check the path of the dataset.")
    if (file := manifest.find(root)) is not None:
        return manifest.read(file)
    if not root.is_dir():
        raise DatasetError(
            f"{root} is a file, not a dataset folder",
            hint="Unpack it and name the folder, or name a manifest (.csv, .parquet).",
        )
    if (place := cub.find(root)) is not None:
        return cub.read(place)
    if (place := cars.find(root)) is not None:
        return cars.read(place)
    return folder.read(root)


def _left(index: Index, without: Mapping[str, str]) -> tuple[Index, dict[str, str]]:
    """The index without some images, and those of them that it had."""
    if not without:
        return index, {}
    keys = [sample.key for samples in index.given.values() for sample in samples]
    given = {part: [each for each in samples if each.key not in without] for part, samples in index.given.items()}
    left = Index(format=index.format, root=index.root, labels=index.labels, given=given, passed=index.passed)
    return left, {key: without[key] for key in keys if key in without}


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
    for name in lacking(index.labels, index.given["train"]):
        raise DatasetError(
            f"{index.root}: the class {name!r} has no images in its train part",
            hint="Add images of it, or remove the class.",
        )


def _check_utf8(name: str, what: str) -> None:
    """Names go into JSON, CSV and the bundle, which are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{what} is called {name!r}, which is not UTF-8", hint="Rename it.") from None


def _division(
    index: Index,
    parts: Mapping[str, tuple[Sample, ...]],
    wanted: Mapping[str, float],
    series: Sequence[Keys],
) -> str:
    """How validation came about."""
    if index.given.get("validation"):
        classes = len(index.labels) - len(lacking(index.labels, parts["validation"]))
        return f"validation: given by the dataset ({classes} of {len(index.labels)} classes)"
    if "validation" not in wanted:
        return "validation: none"
    groups = len({sample.group for sample in index.given["train"]} - {""})
    how = "image by image"
    if groups:
        how = f"groups kept together ({groups} given)"
    elif index.format in ("folder", "manifest"):
        how = f"series kept together ({len(series)} found)"
    return f"validation: {100 * wanted['validation']:g} % of the training images, {how}"


def _notes(
    index: Index, parts: Mapping[str, tuple[Sample, ...]], wanted: Mapping[str, float], shares: Shares
) -> Iterable[str]:
    """What a user should know before training, a sentence each."""
    if index.passed:
        yield passed_over(index.passed)
    for part in PARTS[1:]:
        if part in index.given and not index.given[part] and part in wanted:
            yield f"{part}: the dataset gives no images, so they are taken from the training images"
        if index.given.get(part) and getattr(shares, part) is not None:
            yield f"{part}: given by the dataset, so its share of {getattr(shares, part):g} is not used"
        if not parts[part] and part in wanted:
            yield f"{part}: no images could be taken, because those of each class belong together"
        elif parts[part] and (names := lacking(index.labels, parts[part])):
            shown = ", ".join(map(repr, names[:NAMED]))
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            why = "" if index.given.get(part) else "; what they have belongs together"
            yield f"{part}: {len(names)} of {len(index.labels)} classes have no images ({shown}{more}){why}"
    yield from _calibration_notes(index, parts["calibration"], wanted)


def _calibration_notes(index: Index, calibration: Sequence[Sample], wanted: Mapping[str, float]) -> Iterable[str]:
    n, least = len(calibration), needed(ALPHA)
    if not n:
        yield "calibration: no images, so the run can be evaluated but not exported"
    elif n < least:
        yield (
            f"calibration: {n} image{'s' * (n != 1)} support no alpha below {smallest_alpha(n):g}, and the default "
            f"{ALPHA:g} needs {least}; add images, or export with --alpha {smallest_alpha(n):g}"
        )


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


def _digest(labels: tuple[str, ...], parts: dict[str, tuple[Sample, ...]]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for sample in parts[part]:
            row = [part, sample.key, sample.label, labels[sample.label], sample.box]
            digest.update(json.dumps(row).encode("ascii") + b"\n")
    return digest.hexdigest()
