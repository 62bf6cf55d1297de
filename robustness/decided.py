"""Attacks that came as files: what somebody found and decided, or what `fieldmark attack` wrote; each named attack of
such a folder is a family of its own for the detector.

Nobody knows what is true of pictures that were found, nor what they were made of: so all of a family are positives,
and clean test images the negatives. Left out, the detector knows nothing of them; taught, it has learnt from four
fifths and is judged on the fifth that it has not seen.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bundle.errors import DatasetError, ImageError, printable
from bundle.files import open_regular
from bundle.image import ImageSpec
from detector.combination import Combination
from detector.conformal import p_values, p_values_per_class
from detector.model import Detector
from robustness.fitting import Images, Lessons, Taught, features_of
from robustness.metrics import FEW, RESAMPLES, share
from training.networks import Network

INDEX = "index.csv"
COLUMNS = {"network", "attack", "path", "source", "label"}
MOST_ROWS, MOST = 1_000_000, 2000  # of an index; images of a family that are judged, evenly over it
FOLDS = 5
OWN = "these"  # the family among the lessons
LEFT_OUT, TAUGHT, ATTACK_FREE = "left_out", "taught", "attack_free"
WORDS = {LEFT_OUT: "left out", TAUGHT: "taught", ATTACK_FREE: "no attack taught"}
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Attacked `images` : (n, H, W, 3) uint8 of one name; of the `total` that the folder lists `unread` are gone
    or no images.
    """

    images: Images
    total: int
    unread: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one detector says of images: `evidence` : (n, columns), and the classes that were `predicted` : (n,)."""

    evidence: Scores
    predicted: npt.NDArray[np.int64]

    def __getitem__(self, picked: npt.NDArray[Any]) -> "Judged":
        return Judged(evidence=self.evidence[picked], predicted=self.predicted[picked])

    @classmethod
    def of(cls, network: Network, head: str, detector: Detector, images: Images) -> "Judged":
        """Of (n, H, W, 3) uint8."""
        features, predicted = features_of(network, head, images)
        return cls(evidence=detector.layer_scores(features, predicted), predicted=predicted)


def read_families(folder: Path, spec: ImageSpec) -> dict[str, Family]:
    """The families of a folder with an index, by the name of their attack; raises DatasetError where it is none, or
    holds no image that can be read.
    """
    listed: dict[str, list[str]] = {}
    for row in _rows(folder):
        listed.setdefault(row["attack"], []).append(row["path"])
    families = {name: _family(folder, paths, spec) for name, paths in listed.items()}
    if not any(len(family.images) for family in families.values()):
        raise DatasetError(
            f"{folder} holds no attacked image that can be read", hint="Export the decided attacks again."
        )
    return {name: family for name, family in families.items() if len(family.images)}


def judge(
    network: Network,
    head: str,
    taught: Taught,
    clean: Images,
    calibration: Images | None,
    families: Mapping[str, Family],
    seed: int = 0,
) -> dict[str, Any]:
    """By family: AUROC against `clean` test images and the share flagged at the detector's alpha, left out, taught, and
    where no attack taught. `calibration` are the images behind its p-values, unless it knows their evidence itself.
    """
    detector, lessons = taught
    bench = _Bench(
        detector=detector,
        lessons=lessons,
        clean=Judged.of(network, head, detector, clean),
        calibration=_calibration(network, head, detector, calibration),
        rng=np.random.default_rng(seed),
    )
    return {name: bench.family(Judged.of(network, head, detector, family.images)) for name, family in families.items()}


def sentences(families: Mapping[str, Family]) -> list[str]:
    """What must be said beside the figures."""
    told = [
        "found attacks are those that somebody looked at, mostly because they were flagged: their flagged share says "
        "nothing of those that nobody found",
        f"taught: by the other {FOLDS - 1} of {FOLDS} parts of the same folder; images of one campaign resemble each "
        "other, so it says how well more of the same is found",
    ]
    for name, family in families.items():
        count = len(family.images)
        if count < FEW:
            told.append(f"{printable(name)}: {count} images are too few to tell anything; {FEW} are the least")
        if family.unread:
            told.append(f"{printable(name)}: {family.unread:,} of {family.total:,} images are gone, or are none")
        elif family.total > count:
            told.append(f"{printable(name)}: {count:,} of {family.total:,} images, evenly over them")
    return told


def table(heads: Mapping[str, Mapping[str, Any]]) -> Table:
    """For a terminal: a row a family and way of teaching."""
    found = Table("network", "attack", "images", "lessons", "AUROC", "95 %", "flagged", "95 %", box=SIMPLE_HEAD)
    for head, families in heads.items():
        for name, measured in families.items():
            for way, words in WORDS.items():
                if (each := measured[way]) is None:
                    continue
                area, flagged = each["auroc"], each["flagged"]
                cells = [f"{area:.3f}", "{:.2f} to {:.2f}".format(*each["interval"])]
                cells += ["–", ""] if flagged is None else _share(flagged)
                found.add_row(head, escape(printable(name)), f"{measured['images']:,}", words, *cells)
    return found


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """One detector, its lessons, the evidence of clean images, and where p-values come from."""

    detector: Detector
    lessons: Lessons
    clean: Judged
    calibration: Judged | None
    rng: np.random.Generator

    def family(self, own: Judged) -> dict[str, Any]:
        names = tuple(self.lessons.fooled)
        count = len(own.predicted)
        return {
            "images": count,
            LEFT_OUT: self._figures([(self.detector.combination, own)]),
            TAUGHT: self._taught(names, own),
            ATTACK_FREE: self._figures([(self.lessons.combination(()), own)]),
        }

    def _taught(self, names: Sequence[str], own: Judged) -> dict[str, Any] | None:
        """None where too few images would be left to learn from."""
        count = len(own.predicted)
        if count < FOLDS:
            return None
        part = self.rng.permutation(count) % FOLDS
        judged = []
        for fold in range(FOLDS):
            others = own[part != fold].evidence
            more = replace(
                self.lessons,
                fooled={**self.lessons.fooled, OWN: others},
                every={**self.lessons.every, OWN: others},
            )
            judged.append((more.combination((*names, OWN)), own[part == fold]))
        return self._figures(judged)

    def _figures(self, judged: Sequence[tuple[Combination, Judged]]) -> dict[str, Any]:
        """Of images, each part with the combination that judges it. Scores of two combinations cannot be compared, so
        each image is asked which share of clean ones it scores above: the mean of that is the AUROC.
        """
        above = np.concatenate(
            [_above(each.score(self.clean.evidence), each.score(part.evidence)) for each, part in judged]
        )
        values = [found for each, part in judged if (found := self._p_values(each, part)) is not None]
        flags = np.concatenate(values) <= np.float32(self.detector.alpha) if values else None
        return {
            "auroc": round(float(above.mean()), 4),
            "interval": self._interval(above),
            "flagged": None if flags is None else share(flags.sum(), len(above)),
        }

    def _p_values(self, combination: Combination, part: Judged) -> Scores | None:
        scores = combination.score(part.evidence)
        if combination is self.detector.combination:
            return self.detector.p_values(scores, part.predicted)
        if self.calibration is None:
            return None
        behind = combination.score(self.calibration.evidence)
        order = np.argsort(behind, kind="stable")
        if self.detector.calibration_classes is None:
            return p_values(scores, behind[order])
        return p_values_per_class(scores, part.predicted, behind[order], self.calibration.predicted[order])

    def _interval(self, above: npt.NDArray[np.float64]) -> list[float]:
        """95 % by resampling the attacked images; all that there can be of fewer than FEW."""
        if len(above) < FEW:
            return [0.0, 1.0]
        drawn = self.rng.integers(0, len(above), (RESAMPLES, len(above)))
        low, high = np.percentile(above[drawn].mean(axis=1), (2.5, 97.5))
        return [round(float(low), 4), round(float(high), 4)]


def _calibration(network: Network, head: str, detector: Detector, images: Images | None) -> Judged | None:
    rows, classes = detector.calibration_layers, detector.calibration_classes
    if rows is not None:
        return Judged(evidence=rows, predicted=np.zeros(len(rows), np.int64) if classes is None else classes)
    return None if images is None else Judged.of(network, head, detector, images)


def _above(negatives: Scores, positives: Scores) -> npt.NDArray[np.float64]:
    """For each positive, the share of negatives that it scores above, ties counting half : (m,)."""
    ascending = np.sort(negatives)
    below, upto = np.searchsorted(ascending, positives, "left"), np.searchsorted(ascending, positives, "right")
    found: npt.NDArray[np.float64] = (below + upto) / (2 * len(negatives))
    return found


def _rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the index, every column there."""
    path = folder / INDEX
    hint = "Give a folder that 'fieldmark review --export attacks' or 'fieldmark attack' wrote."
    try:
        with open_regular(path) as stream:
            lines = stream.read().decode("utf-8").splitlines()
        reader = csv.DictReader(lines, strict=True)
        rows = [row for _, row in zip(range(MOST_ROWS), reader, strict=False)]
    except OSError as problem:
        raise DatasetError(f"{path} cannot be read ({(problem.strerror or 'unreadable').lower()})", hint=hint) from None
    except (ValueError, csv.Error) as problem:
        raise DatasetError(f"{path} is no list of attacked images ({problem})", hint=hint) from None
    if not COLUMNS.issubset(reader.fieldnames or ()):
        raise DatasetError(f"{path} has not the columns {', '.join(sorted(COLUMNS))}", hint=hint)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DatasetError(f"{path}:{number} has too few or too many cells", hint=hint)
    return rows


def _family(folder: Path, paths: Sequence[str], spec: ImageSpec) -> Family:
    """At most MOST images of a list, evenly over it; those that lie outside the folder are not opened."""
    count = min(MOST, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]
    root, found = folder.resolve(), []
    for name in chosen:
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                continue
            with open_regular(path) as stream:
                found.append(spec.decode(stream.read(spec.max_bytes + 1)))
        except (OSError, ValueError, ImageError):
            continue
    images = np.stack(found) if found else np.empty((0, spec.height, spec.width, 3), np.uint8)
    return Family(images=images, total=len(paths), unread=len(chosen) - len(found))


def _share(flagged: Mapping[str, Any]) -> list[str]:
    low, high = flagged["interval"]
    return [f"{flagged['count']:,} of {flagged['of']:,}", f"{100 * low:.0f} to {100 * high:.0f} %"]
