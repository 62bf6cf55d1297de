"""What n calibration images can promise: how fine a p-value is, and how far from alpha the true false-alarm rate lies.

For one calibration set the rate among clean images is a number of its own, drawn from a beta distribution around alpha
(Vovk 2012). It is exact for any score without ties; nobody sees it but in many more clean images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ALPHA = 0.05  # the false-positive rate of a detector for which nobody has asked for another
MOST_ROWS = 100_000  # of which chances are counted one by one; of more the bounds are those of so many
ROUNDING = 1e-12  # of a sum of chances that is as large as the level asked for


class FalseAlarms(NamedTuple):
    """Mean and standard deviation, over calibration sets of one size, of the share of clean images that is flagged."""

    mean: float
    deviation: float


def is_alpha(alpha: float) -> bool:
    """Whether it is a rate that a flag can have: between 0 and 1, in the float32 of the served comparison too."""
    return 0 < alpha < 1 and bool(0 < np.float32(alpha) < 1)


def smallest_alpha(n: int) -> float:
    """The smallest rate that n calibration images support, rounded up to two digits."""
    exact = smallest_p_value(n)
    unit: float = 10.0 ** (math.floor(math.log10(exact)) - 1)
    return round(math.ceil(exact / unit - 1e-9) * unit, 12)


def smallest_p_value(n: int) -> float:
    """The smallest p-value that n calibration scores can give."""
    return 1 / (n + 1)


def needed(alpha: float) -> int:
    """How many calibration scores it takes for a p-value to get down to `alpha`."""
    n = math.ceil(1 / alpha) - 1
    return n - 1 if n > 0 and smallest_p_value(n - 1) <= alpha else n  # 1 / (1 / 49) is above 49


def flagging_ranks(n: int, alpha: float) -> int:
    """How many of the n + 1 possible p-values flag at `alpha`, as the served graph compares them, in float32."""
    return int(((np.arange(1, n + 2) / (n + 1)).astype(np.float32) <= np.float32(alpha)).sum())


def chances(rows: int, n: int, k: int) -> npt.NDArray[np.float64]:
    """Of 0, 1, ..., `rows` clean images having one of k of the n + 1 possible p-values, (rows + 1,): beta-binomial, as
    the images vary and the calibration does. Ours, since serving loads no scipy.
    """
    if not 0 < k <= n:
        return np.asarray(np.eye(1, rows + 1, rows * (k > n))[0])
    x = np.arange(rows)
    ratios = np.log(rows - x) - np.log(x + 1) + np.log(x + k) - np.log(rows - x + n - k)  # P(X = x + 1) / P(X = x)
    logs = np.concatenate([np.zeros(1), np.cumsum(ratios)])
    found = np.exp(logs - logs.max())
    return np.asarray(found / found.sum())


def quantiles(by_count: npt.NDArray[np.float64], levels: Sequence[float]) -> tuple[int, ...]:
    """Of the chances of 0, 1, ...: the smallest counts that are not exceeded with a chance of these levels."""
    below = np.cumsum(by_count)
    return tuple(int(each) for each in np.searchsorted(below / below[-1], np.asarray(levels) - ROUNDING))


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927); (0, 1) of nothing. Ours, since this room loads no scipy, whose
    own takes no share of repeated draws: `right` need not be whole.
    """
    if not count:
        return 0.0, 1.0
    share, factor = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / factor
    reach = z / factor * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = middle - reach, middle + reach  # rounding must not move the ends off 0 and 1
    return (0.0 if right == 0 else low), (1.0 if right == count else high)


def false_alarms(n: int, alpha: float) -> FalseAlarms:
    """Flagged is whatever scores above all but the k - 1 highest of n scores, k of `flagging_ranks`: a rate that is
    Beta(k, n + 1 - k); (0, 0) where n cannot support alpha.
    """
    k = flagging_ranks(n, alpha)
    mean = k / (n + 1)
    return FalseAlarms(mean, math.sqrt(mean * (1 - mean) / (n + 2)))


def coarser(n: int, former: int) -> str:
    """What is lost where n calibration images take the place of more of them, in words; empty where nothing is."""
    if n >= former:
        return ""
    return (
        f"{n:,} images take the place of {former:,} calibration images: with n images no p-value is below 1/(n + 1), "
        f"so the smallest will be {smallest_p_value(n):.2g} instead of {smallest_p_value(former):.2g}, and the share "
        "of clean images that is flagged less certain"
    )


def resolution(n: int, alpha: float) -> str:
    """The same in words, for a person."""
    rate = false_alarms(n, alpha)
    return (
        f"{n:,} calibration images: no p-value below {smallest_p_value(n):.2g}; the share of clean images flagged at "
        f"{alpha:g} is {rate.mean:.2%} give or take {rate.deviation:.2%}"
    )


def beyond_promise(flagged: int, rows: int, n: int, alpha: float) -> str | None:
    """A sentence where more of `rows` are flagged at `alpha` than in 97.5 % of clean sets like the n calibrated on."""
    counted = min(rows, MOST_ROWS)
    if counted == 0:
        return None
    (most,) = quantiles(chances(counted, n, flagging_ranks(n, alpha)), (0.975,))
    if flagged / rows <= most / counted:
        return None
    return (
        f"{flagged / rows:.1%} are flagged; of clean images like those that the bundle was calibrated on it would be "
        f"at most {most / counted:.1%}: attacks, or images that are cropped, sized, lit or compressed in another way. "
        "Prepare them as for training (a dataset with boxes was cropped to them); 'fieldmark calibrate' fits the alarm "
        "to a new camera"
    )
