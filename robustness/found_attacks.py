"""What a detector makes of attacks that came as files: found and decided by somebody, or written by `fieldmark attack`.

Nobody knows what is true of pictures that were found, nor what they were made of: so all of a family are positives.
Left out, no lesson of the family's name teaches the detector; taught, it has learnt from four fifths of the family and
is judged on the fifth that it has not seen. Images of one source stay together: in one fifth, and when resampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.combination import Combination
from detector.conformal import p_values, p_values_per_class
from detector.model import Detector
from robustness.attack_files import Family
from robustness.fitting import Images, Lessons, Taught, features_of
from robustness.metrics import FEW, RESAMPLES, share
from training.networks import Network

FOLDS = 5
LEFT_OUT, TAUGHT, ATTACK_FREE = "left_out", "taught", "attack_free"
Scores = npt.NDArray[np.float32]
Sources = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one detector says of n images: `evidence` : (n, columns), and the classes that were `predicted` : (n,);
    images with one number in `sources` : (n,) are one picture.
    """

    evidence: Scores
    predicted: npt.NDArray[np.int64]
    sources: Sources

    def __getitem__(self, picked: npt.NDArray[Any]) -> "Judged":
        return Judged(evidence=self.evidence[picked], predicted=self.predicted[picked], sources=self.sources[picked])

    @classmethod
    def of(cls, network: Network, head: str, taught: Taught, images: Images, sources: Sources) -> "Judged":
        """Of (n, H, W, 3) uint8."""
        features, predicted = features_of(network, head, images)
        return cls(evidence=taught.detector.layer_scores(features, predicted), predicted=predicted, sources=sources)


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Clean `images` : (n, H, W, 3) uint8, which `sources` : n they are, and whether they came in the same `folder`."""

    images: Images
    sources: tuple[str, ...]
    folder: bool


def judge(
    network: Network,
    head: str,
    taught: Taught,
    negatives: Negatives,
    calibration: Images,
    families: Mapping[str, Family],
    seed: int = 0,
) -> dict[str, Any]:
    """By family: AUROC against clean images and the share flagged at the detector's alpha, left out, taught, and where
    no attack taught. `calibration` are the images behind its p-values, unless it knows their evidence itself.
    """
    numbers: dict[str, int] = {}
    sources = _numbered(negatives.sources, numbers)
    bench = _Bench(
        detector=taught.detector,
        lessons=taught.lessons,
        clean=Judged.of(network, head, taught, negatives.images, sources),
        calibration=_calibration(network, head, taught, calibration),
    )
    found = {}
    for name, family in families.items():
        if len(family.images):
            # Seed and numbers of its own, so that no other family in the folder changes these figures.
            rng = np.random.default_rng([seed, *name.encode("utf-8", "surrogateescape")])
            own = Judged.of(network, head, taught, family.images, _numbered(family.sources, dict(numbers)))
            found[name] = bench.family(name, own, rng)
    return found


def others_than(name: str, lessons: Lessons) -> tuple[str, ...]:
    """The attacks that taught a detector but for those of this name."""
    return tuple(each for each in lessons.fooled if each != name)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where m positives of `sources` : (m,) lie among negatives, whose ascending `order` : (n,) is, by one combination:
    `below` : (m,) of them score less and `upto` : (m,) not more.
    """

    order: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    upto: npt.NDArray[np.int64]
    sources: Sources

    @classmethod
    def of(cls, combination: Combination, clean: Judged, part: Judged) -> "_Place":
        negatives, positives = combination.score(clean.evidence), combination.score(part.evidence)
        order = np.argsort(negatives, kind="stable")
        below, upto = (np.searchsorted(negatives[order], positives, side) for side in ("left", "right"))
        return cls(order=order, below=below, upto=upto, sources=part.sources)

    def above(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """For each positive, the share of negatives that it scores above, each of these counting as often as `weights`
        : (n,) say, ties half : (m,).
        """
        sums = np.concatenate([[0], np.cumsum(weights[self.order])])
        found: npt.NDArray[np.float64] = (sums[self.below] + sums[self.upto]) / (2 * sums[-1])
        return found


def interval(clean: Judged, places: Sequence[_Place], rng: np.random.Generator) -> list[float]:
    """95 % of the AUROC by resampling the sources of clean and of attacked images; (0, 1) of fewer than FEW of either.

    An attacked image whose clean one is among the negatives is drawn with it. What was all right or all wrong may
    still have an exception: so one image above all clean ones and one below are imagined, drawn like the others.
    """
    known, own = clean.sources, np.concatenate([place.sources for place in places])
    if min(len(np.unique(known)), len(np.unique(own))) < FEW:
        return [0.0, 1.0]
    sources, at = np.unique(np.concatenate([known, own]), return_inverse=True)
    negative = np.isin(sources, known)
    strata = [np.flatnonzero(which) for which in (negative, ~negative) if which.any()]
    found = []
    for _ in range(RESAMPLES):
        times = np.zeros(len(sources), np.int64)
        for stratum in strata:
            times[stratum] = np.bincount(rng.integers(0, len(stratum), len(stratum)), minlength=len(stratum))
        weights = times[at[len(known) :]]
        highest, lowest = rng.poisson(1, 2)
        if weights.any():
            above = np.concatenate([place.above(times[at[: len(known)]]) for place in places])
            found.append((weights @ above + highest) / (weights.sum() + highest + lowest))
    low, high = np.percentile(found, (2.5, 97.5))
    return [round(float(low), 4), round(float(high), 4)]


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """One detector, its lessons, the evidence of clean images, and where p-values come from."""

    detector: Detector
    lessons: Lessons
    clean: Judged
    calibration: Judged

    def family(self, name: str, own: Judged, rng: np.random.Generator) -> dict[str, Any]:
        others = others_than(name, self.lessons)
        as_it_is = len(others) == len(self.lessons.fooled)
        left_out = self.detector.combination if as_it_is else self.lessons.combination(others)
        return {
            "images": len(own.predicted),
            "sources": len(np.unique(own.sources)),
            "lessons": list(others),
            LEFT_OUT: self._figures([(left_out, own)], rng),
            TAUGHT: self._taught(own, rng),
            ATTACK_FREE: self._figures([(self.lessons.combination(()), own)], rng),
        }

    def _taught(self, own: Judged, rng: np.random.Generator) -> dict[str, Any] | None:
        """None where too few sources would be left to learn from."""
        sources, at = np.unique(own.sources, return_inverse=True)
        if len(sources) < FOLDS:
            return None
        part = (rng.permutation(len(sources)) % FOLDS)[at]
        names, judged = tuple(self.lessons.fooled), []
        for fold in range(FOLDS):
            combination = self.lessons.combination(names, more=own[part != fold].evidence)
            judged.append((combination, own[part == fold]))
        return self._figures(judged, rng)

    def _figures(self, judged: Sequence[tuple[Combination, Judged]], rng: np.random.Generator) -> dict[str, Any]:
        """Of images, each part with the combination that judges it. Scores of two combinations cannot be compared, so
        each image is asked which share of clean ones it scores above: the mean of that is the AUROC.
        """
        places = [_Place.of(each, self.clean, part) for each, part in judged]
        once = np.ones(len(self.clean.predicted), np.int64)
        above = np.concatenate([place.above(once) for place in places])
        flags = np.concatenate([self._p_values(*each) for each in judged]) <= np.float32(self.detector.alpha)
        return {
            "auroc": round(float(above.mean()), 4),
            "interval": interval(self.clean, places, rng),
            "flagged": share(flags.sum(), len(above)),
        }

    def _p_values(self, combination: Combination, part: Judged) -> Scores:
        scores = combination.score(part.evidence)
        if combination is self.detector.combination:
            return self.detector.p_values(scores, part.predicted)
        behind = combination.score(self.calibration.evidence)
        order = np.argsort(behind, kind="stable")
        if self.detector.calibration_classes is None:
            return p_values(scores, behind[order])
        return p_values_per_class(scores, part.predicted, behind[order], self.calibration.predicted[order])


def _numbered(sources: Sequence[str], numbers: dict[str, int]) -> Sources:
    """A number for each, the same for the same; `numbers` learns those that it does not know."""
    return np.array([numbers.setdefault(each, len(numbers)) for each in sources], np.int64)


def _calibration(network: Network, head: str, taught: Taught, images: Images) -> Judged:
    rows, classes = taught.detector.calibration_layers, taught.detector.calibration_classes
    if rows is None:
        return Judged.of(network, head, taught, images, np.arange(len(images)))
    predicted = np.zeros(len(rows), np.int64) if classes is None else classes
    return Judged(evidence=rows, predicted=predicted, sources=np.arange(len(rows)))
