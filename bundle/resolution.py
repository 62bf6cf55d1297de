"""What n calibration images can promise: how fine a p-value is, and how far from alpha the true false-alarm rate lies.

For one calibration set the rate among clean images is a number of its own, drawn from a beta distribution around alpha
(Vovk 2012). It is exact for any score without ties; nobody sees it but in many more clean images.
"""

import math
from typing import NamedTuple

ALPHA = 0.05  # the false-positive rate of a detector for which nobody has asked for another


class FalseAlarms(NamedTuple):
    """Mean and standard deviation, over calibration sets of one size, of the share of clean images that is flagged."""

    mean: float
    deviation: float


def smallest_p_value(n: int) -> float:
    """The smallest p-value that n calibration scores can give."""
    return 1 / (n + 1)


def false_alarms(n: int, alpha: float) -> FalseAlarms:
    """Flagged is whatever scores above all but the k - 1 highest of n scores, k = floor(alpha (n + 1)): a rate that is
    Beta(k, n + 1 - k); (0, 0) where n cannot support alpha.
    """
    k = math.floor(alpha * (n + 1) + 1e-9)
    mean = k / (n + 1)
    return FalseAlarms(mean, math.sqrt(mean * (1 - mean) / (n + 2)))


def resolution(n: int, alpha: float) -> str:
    """The same in words, for a person."""
    rate = false_alarms(n, alpha)
    return (
        f"{n:,} calibration images: no p-value below {smallest_p_value(n):.2g}; the share of clean images flagged at "
        f"{alpha:g} is {rate.mean:.2%} give or take {rate.deviation:.2%}"
    )
