"""From a score to a p-value: split-conformal calibration (Vovk et al. 2005), valid for any score and any n."""

import math

import numpy as np
import numpy.typing as npt

from bundle.errors import DetectorError


def p_values(scores: npt.NDArray[np.floating], calibration: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """(1 + #{calibration scores >= score}) / (n + 1), the chance that a clean input looks at least this suspicious.

    scores : (m,), calibration : (n,) ascending scores of clean images held out of every fit. Returns (m,) float32.
    """
    at_least = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return ((1 + at_least) / (len(calibration) + 1)).astype(np.float32)


def check_calibration_size(n: int, alpha: float) -> None:
    """With n calibration images no p-value is below 1/(n+1); a smaller alpha would never flag anything."""
    needed = math.ceil(1 / alpha) - 1
    if n < needed:
        raise DetectorError(
            f"{n} calibration images cannot support alpha = {alpha:g}",
            hint=f"At least {needed} are needed: add images, or choose a larger alpha.",
        )
