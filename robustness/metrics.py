"""Figures of merit for detectors, with intervals: scores are higher for what looks adversarial."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.false_alarms import chances, flagging_ranks, quantiles, wilson

Scores = npt.NDArray[np.floating]
Right = npt.NDArray[np.bool_]
RESAMPLES = 1000
FEW = 10
INTERVAL = 0.99  # of the share of clean images that a calibrated detector flags


def fooled(clean: Right, attacked: Right) -> Right:
    """The positives of every AUROC that is told, in demo, manifest and report: images (n,) that were answered rightly
    when clean and wrongly when attacked. The negatives are all clean images.
    """
    return clean & ~attacked


def auroc(negatives: Scores, positives: Scores) -> float:
    """The chance that a positive scores above a negative, ties counting half; nan without either. scikit-learn's
    roc_auc_score says the same and takes forty times as long, and an interval draws a thousand of them.
    """
    if not len(negatives) or not len(positives):
        return float("nan")
    ascending = np.sort(negatives)
    below, upto = np.searchsorted(ascending, positives, "left"), np.searchsorted(ascending, positives, "right")
    return float((below + upto).mean() / (2 * len(negatives)))


def auroc_interval(
    negatives: Scores, positives: Scores, pairs: npt.NDArray[np.integer] | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % by resampling images; (0, 1) of fewer than FEW positives, of which resampling knows too little. `pairs`
    names, for each positive, the negative it was made from: both are drawn together then, as they are not independent.
    """
    if min(len(negatives), len(positives)) < FEW:
        return 0.0, 1.0
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(negatives), len(negatives))
        if pairs is None:
            chosen = rng.integers(0, len(positives), len(positives))
        else:  # each positive as often as its image was drawn
            chosen = np.repeat(np.arange(len(positives)), np.bincount(drawn, minlength=len(negatives))[pairs])
        if len(chosen):
            found.append(auroc(negatives[drawn], positives[chosen]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def true_negatives(negatives: Scores, positives: Scores, sensitivity: float = 0.95) -> float:
    """TNR at 95 % TPR: share of negatives below the threshold that still catches that share of positives."""
    if not len(negatives) or not len(positives):
        return float("nan")
    threshold = np.sort(positives)[int((1 - sensitivity) * len(positives) + 1e-9)]
    return float((negatives < threshold).mean())


def roc(negatives: Scores, positives: Scores) -> tuple[list[float], list[float]]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1); nothing without either. A score that is
    nan is above all others, as numpy sorts.
    """
    if not len(negatives) or not len(positives):
        return [], []
    thresholds = np.unique(np.concatenate([negatives, positives]))[::-1]
    ascending = [np.sort(each) for each in (negatives, positives)]
    rates = [1 - np.searchsorted(each, thresholds, "left") / len(each) for each in ascending]
    return [0.0, *rates[0].tolist()], [0.0, *rates[1].tolist()]


def flagged_interval(groups: Sequence[tuple[int, int]], alpha: float, level: float = INTERVAL) -> tuple[float, float]:
    """Where the share of flagged clean images lies, of so many test images whose p-values come from so many others: the
    number of flags is beta-binomial, since both sets vary (Vovk 2012). Of several `groups`, each calibrated on its own,
    the sum; all of (0, 1) where there are no test images.
    """
    found = np.ones(1)  # by number of flags
    for test, calibration in groups:
        found = np.convolve(found, chances(test, calibration, flagging_ranks(calibration, alpha)))
    if len(found) == 1:
        return 0.0, 1.0
    low, high = quantiles(found, ((1 - level) / 2, (1 + level) / 2))
    return low / (len(found) - 1), high / (len(found) - 1)


def share(count: float, of: int) -> dict[str, Any]:
    """A count of images as a share with Wilson's 95 % interval; share is None of nothing."""
    low, high = wilson(int(count), of)
    value = round(int(count) / of, 4) if of else None
    return {"count": int(count), "of": of, "share": value, "interval": [round(low, 4), round(high, 4)]}
