"""From a score to a p-value: split-conformal calibration (Vovk et al. 2005), valid for any score and any n.

Per class (Mondrian) it is valid among the images of each predicted class, which are a function of the image alone. What
is served has the same arithmetic in its graph, `export/served.py`, and the export proves the two equal.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bundle.errors import DetectorError
from bundle.false_alarms import needed, smallest_alpha


def p_values(scores: npt.NDArray[np.floating], calibration: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """(1 + #{calibration scores >= score}) / (n + 1), the chance that a clean input looks at least this suspicious.

    scores : (m,), calibration : (n,) ascending scores of clean images held out of every fit. Returns (m,) float32.
    """
    at_least = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return ((1 + at_least) / (len(calibration) + 1)).astype(np.float32)


def p_values_per_class(
    scores: npt.NDArray[np.floating],
    predicted: npt.NDArray[np.integer],
    calibration: npt.NDArray[np.floating],
    calibration_classes: npt.NDArray[np.integer],
) -> npt.NDArray[np.float32]:
    """The same among the calibration images of the same predicted class; 1 where that class has none.

    predicted : (m,) of the scores, calibration_classes : (n,) of the calibration scores.
    """
    found = np.empty(len(scores), np.float32)
    for label in np.unique(predicted):
        own = predicted == label
        found[own] = p_values(scores[own], calibration[calibration_classes == label])
    return found


def check_calibration_size(n: int, alpha: float) -> None:
    """With n calibration images no p-value is below 1/(n+1); a smaller alpha would never flag anything."""
    least = needed(alpha)
    if n < least:
        raise DetectorError(
            f"{n} calibration images cannot support alpha = {alpha:g}",
            hint=f"At least {least:,} are needed: add images"
            + (f", or choose an alpha of at least {smallest_alpha(n):g}." if n else "."),
        )


def check_class_sizes(predicted: npt.NDArray[np.integer], alpha: float, labels: Sequence[str]) -> None:
    """The same of every class, for p-values per class; predicted : (n,) of the calibration images."""
    counts, enough = np.bincount(predicted, minlength=len(labels)), needed(alpha)
    if (few := counts < enough).any():
        least = int(np.argmin(counts))
        raise DetectorError(
            f"{counts[least]} calibration images are classified as {labels[least]!r}, and alpha = {alpha:g} needs "
            f"{enough} of every class ({few.sum()} of {len(counts)} classes have fewer)",
            hint="Add images, choose a larger alpha, or compare with all classes: --calibration marginal.",
        )
