"""What a narrower precision costs: accuracy, false flags and detection, measured beside float32 on the same images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom

from bundle import tensors
from bundle.errors import ExportError
from bundle.manifest import FP32, Quality
from detector.model import Detector
from export.graph import GraphSession
from robustness.metrics import auroc

INTERVAL = 0.99  # of the share of clean images that a calibrated detector flags


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Clean test images (n, H, W, 3) and their labels (n,); by attack some of them attacked, (m, H, W, 3)."""

    clean: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    attacked: dict[str, npt.NDArray[np.uint8]]

    def quality(self, session: GraphSession) -> Quality:
        """What a calibrated graph makes of them."""
        clean = session.answers(self.clean)
        scores = {name: session.scores(images)[0] for name, images in self.attacked.items()}
        return Quality(
            images=len(self.labels),
            accuracy=_share(clean[tensors.PROBABILITIES].argmax(1) == self.labels),
            flagged=_share(clean[tensors.IS_ADVERSARIAL]),
            auroc={name: round(auroc(clean[tensors.INSTANCE_SCORE], found), 4) for name, found in scores.items()},
        )


def check(served: str, precision: str, found: Mapping[str, Quality], detector: Detector, max_loss: float) -> None:
    """Raise ExportError if `precision` loses more than `max_loss` percentage points of float32's accuracy, or flags a
    share of clean images that the detector's alpha does not allow.
    """
    wide, narrow = found[FP32], found[precision]
    loss = 100 * (wide.accuracy - narrow.accuracy)
    numbers = f"accuracy {100 * wide.accuracy:.2f} % in {FP32}, {100 * narrow.accuracy:.2f} % in {precision}"
    if loss > max_loss + 1e-9:
        raise ExportError(
            f"{served} in {precision} loses {loss:.2f} points of accuracy on {narrow.images} test images, and "
            f"{max_loss:g} are allowed ({numbers})",
            hint="No bundle was written. Take another --precision, or allow more: --max-accuracy-loss POINTS.",
        )
    low, high = flagged_interval(narrow.images, len(detector.calibration), detector.alpha)
    if not low <= narrow.flagged <= high:
        raise ExportError(
            f"{served} in {precision} flags {100 * narrow.flagged:.1f} % of {narrow.images} clean test images, and "
            f"alpha = {detector.alpha:g} gives {100 * low:.1f} to {100 * high:.1f} % ({INTERVAL:.0%} interval; "
            f"{FP32} flags {100 * wide.flagged:.1f} %)",
            hint="No bundle was written. The test part may differ from the calibration part; take another --precision.",
        )


def flagged_interval(test: int, calibration: int, alpha: float) -> tuple[float, float]:
    """Where the share of flagged clean images lies, of `test` images, when p-values come from `calibration` others: the
    number of flags is beta-binomial, since both sets vary (Vovk 2012).
    """
    rank = int(np.floor(alpha * (calibration + 1) + 1e-9))  # p <= alpha for this many of the n + 1 places
    flags = betabinom(test, max(rank, 1e-9), calibration + 1 - rank)
    low, high = flags.interval(INTERVAL)
    return float(low) / test, float(high) / test


def _share(which: npt.NDArray[np.bool_]) -> float:
    return round(float(which.mean()), 6)
