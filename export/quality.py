"""What a narrower precision costs: accuracy, false flags and detection, measured beside float32 on the same images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import ExportError
from bundle.manifest import FP32, Quality
from detector.model import Detector
from export.graph import GraphSession
from robustness.metrics import INTERVAL, auroc, flagged_interval, fooled


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Clean validation images (n, H, W, 3) and their labels (n,); by attack those at the positions `picked` : (m,)
    after it, (m, H, W, 3).
    """

    clean: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    picked: npt.NDArray[np.int64]
    attacked: dict[str, npt.NDArray[np.uint8]]

    def quality(self, session: GraphSession) -> Quality:
        """What a calibrated graph makes of them; an attack that fools it on no image has no AUROC."""
        clean = session.answers(self.clean)
        right = clean[tensors.PROBABILITIES].argmax(1) == self.labels
        areas = {}
        for name, images in self.attacked.items():
            scores, predicted = session.scores(images)
            positives = scores[fooled(right[self.picked], predicted == self.labels[self.picked])]
            if len(positives):
                areas[name] = round(auroc(clean[tensors.INSTANCE_SCORE], positives), 4)
        return Quality(
            images=len(self.labels),
            accuracy=_share(right),
            flagged=_share(clean[tensors.IS_ADVERSARIAL]),
            auroc=areas,
        )


def check_quality(head: str, precision: str, found: Mapping[str, Quality], detector: Detector, max_loss: float) -> None:
    """Raise ExportError if `precision` loses more than `max_loss` percentage points of float32's accuracy, or flags a
    share of clean images that the detector's alpha does not allow. Where validation images are not as the calibration
    images were, float32 is off too: on that side its own share is allowed, and half the interval more.
    """
    wide, narrow = found[FP32], found[precision]
    loss = 100 * (wide.accuracy - narrow.accuracy)
    numbers = f"accuracy {100 * wide.accuracy:.2f} % in {FP32}, {100 * narrow.accuracy:.2f} % in {precision}"
    if loss > max_loss + 1e-9:
        raise ExportError(
            f"{head} in {precision} loses {loss:.2f} points of accuracy on {narrow.images} validation images, and "
            f"{max_loss:g} are allowed ({numbers})",
            hint="No bundle was written. Take another --precision, or allow more: --max-accuracy-loss POINTS.",
        )
    low, high = flagged_interval(_groups(detector, narrow.images), detector.alpha)
    slack = (high - low) / 2
    least = wide.flagged - slack if wide.flagged < low else low
    most = wide.flagged + slack if wide.flagged > high else high
    if not least <= narrow.flagged <= most:
        raise ExportError(
            f"{head} in {precision} flags {100 * narrow.flagged:.1f} % of {narrow.images} clean validation images, "
            f"and alpha = {detector.alpha:g} gives {100 * low:.1f} to {100 * high:.1f} % ({INTERVAL:.0%} interval; "
            f"{FP32} flags {100 * wide.flagged:.1f} %, so that {100 * max(0.0, least):.1f} to {100 * most:.1f} % are "
            "allowed)",
            hint="No bundle was written. Take another --precision.",
        )


def _groups(detector: Detector, images: int) -> list[tuple[int, int]]:
    """As if so many images were answered as the calibration images were."""
    classes = detector.calibration_classes
    known = np.zeros(1, np.int64) if classes is None else np.sort(classes)
    return detector.groups(known[np.linspace(0, len(known) - 1, images).round().astype(int)])


def _share(which: npt.NDArray[np.bool_]) -> float:
    return round(float(which.mean()), 6)
