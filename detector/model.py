"""The fitted detector: features -> squared distances per layer -> score -> p-value -> decision.

Every layer gives three distances: to the nearest class mean (Lee et al. 2018), to that of the predicted class, and to
the mean of all images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import detector_file
from bundle.detector_file import of_layer
from bundle.errors import DetectorError
from detector.combination import Combination
from detector.conformal import check_calibration_size, check_class_sizes, p_values, p_values_per_class
from detector.gaussian import ClassGaussians

Features = Mapping[str, npt.NDArray[np.floating]]  # layer name -> (n, D_layer)
Classes = npt.NDArray[np.integer]
Float32 = npt.NDArray[np.float32]
DISTANCES = ("nearest", "predicted", "overall")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """`calibration` : (n,) ascending scores of clean held-out images; `alpha` is the default decision. With
    `calibration_classes` : (n,), the predicted classes of these images, p-values are per predicted class.
    `calibration_layers` : (n, columns) are their layer scores, for whoever asks which layer is unusual and how much.

    Layer scores are (n, 3 * layers), in the order of `columns`.
    """

    layers: tuple[str, ...]
    gaussians: tuple[ClassGaussians, ...]
    combination: Combination
    calibration: Float32
    alpha: float
    calibration_classes: npt.NDArray[np.int64] | None = None
    calibration_layers: Float32 | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the layer scores, such as `stage1/nearest` and `stage1/predicted`."""
        return tuple(f"{layer}/{distance}" for layer in self.layers for distance in DISTANCES)

    def layer_scores(self, features: Features, predicted: Classes) -> Float32:
        """Squared distances, (n, 3 * layers) float32; `predicted` : (n,) are the network's answers."""
        return layer_scores(self.layers, self.gaussians, features, predicted)

    def score(self, features: Features, predicted: Classes) -> Float32:
        """Adversarial score, (n,) float32; higher is more suspicious."""
        return self.combination.score(self.layer_scores(features, predicted))

    @property
    def calibration_n(self) -> int:
        """Scores behind every p-value: all of them, or those of the class that has fewest."""
        classes = self.calibration_classes
        if classes is None:
            return len(self.calibration)
        return int(np.bincount(classes, minlength=len(self.gaussians[0].means)).min())

    def groups(self, predicted: Classes) -> list[tuple[int, int]]:
        """Of images with the answers `predicted` : (n,): how many share their calibration scores, and how many scores
        those are. All of them, or the images of each class.
        """
        if self.calibration_classes is None:
            return [(len(predicted), len(self.calibration))]
        counts = (
            np.bincount(each, minlength=len(self.gaussians[0].means)) for each in (predicted, self.calibration_classes)
        )
        return [(int(images), int(scores)) for images, scores in zip(*counts, strict=True) if images]

    @property
    def calibration_rows(self) -> dict[str, npt.NDArray[Any]]:
        """What a graph compares scores with, by the name that it has there: [1, n] each."""
        rows: dict[str, npt.NDArray[Any]] = {"calibration": self.calibration[None, :]}
        if self.calibration_classes is not None:
            rows["calibration_classes"] = self.calibration_classes[None, :]
        return rows

    def p_values(self, scores: Float32, predicted: Classes) -> Float32:
        """Conformal p-values of scores : (n,) of images with the answers `predicted` : (n,)."""
        if self.calibration_classes is None:
            return p_values(scores, self.calibration)
        return p_values_per_class(scores, predicted, self.calibration, self.calibration_classes)

    def calibrated(
        self,
        scores: Float32,
        predicted: Classes,
        alpha: float,
        labels: Sequence[str],
        *,
        layers: Float32 | None = None,
    ) -> "Detector":
        """The same detector, calibrated on `scores` : (n,) of clean held-out images, answered with `predicted` : (n,).

        `labels` are the names of all classes, `layers` : (n, columns) the layer scores of the images, where known.
        """
        check_calibration_size(len(scores), alpha)
        if not np.isfinite(scores).all():
            raise DetectorError(f"{int((~np.isfinite(scores)).sum())} calibration scores are not finite")
        order = np.argsort(scores, kind="stable")
        classes = None
        if self.calibration_classes is not None:
            check_class_sizes(predicted, alpha, labels)
            classes = predicted[order].astype(np.int64)
        calibration = scores[order].astype(np.float32)
        layers = None if layers is None else layers[order].astype(np.float32)
        return replace(
            self, calibration=calibration, calibration_classes=classes, calibration_layers=layers, alpha=alpha
        )

    def save(self, path: Path) -> None:
        """Write it as bundle/detector_file.py says."""
        arrays: dict[str, npt.NDArray[Any]] = {
            detector_file.LAYERS: np.array(self.layers),
            detector_file.WEIGHTS: self.combination.weights,
            detector_file.BIAS: np.array(self.combination.bias, np.float64),
            detector_file.CALIBRATION: self.calibration,
            detector_file.ALPHA: np.array(self.alpha, np.float64),
        }
        if self.calibration_classes is not None:
            arrays[detector_file.CALIBRATION_CLASSES] = self.calibration_classes
        if self.calibration_layers is not None:
            arrays[detector_file.CALIBRATION_LAYERS] = self.calibration_layers
        for layer, gaussians in zip(self.layers, self.gaussians, strict=True):
            arrays[of_layer(layer, detector_file.WHITENING)] = gaussians.whitening
            arrays[of_layer(layer, detector_file.CENTER)] = gaussians.center
            arrays[of_layer(layer, detector_file.MEANS)] = gaussians.means
            arrays[of_layer(layer, detector_file.SHRINKAGE)] = np.array(gaussians.shrinkage, np.float64)
            arrays[of_layer(layer, detector_file.OVERALL)] = gaussians.overall
        detector_file.write(path, arrays)

    @classmethod
    def load(cls, path: Path) -> "Detector":
        """Read what `save` wrote, its parts fitting each other, so that scoring cannot fail on them; raises
        BundleCorrupt for anything else.
        """
        with detector_file.opened(path) as file:
            layers = file.layers()
            classes, columns = file.classes(layers[0]), len(layers) * len(DISTANCES)
            return cls(
                layers=layers,
                gaussians=tuple(_gaussians(file.gaussians(layer, classes)) for layer in layers),
                combination=Combination(
                    weights=file.numbers(detector_file.WEIGHTS, (columns,)),
                    bias=float(file.numbers(detector_file.BIAS, ())),
                ),
                calibration=file.calibration(),
                alpha=file.alpha(),
                calibration_classes=file.calibration_classes(classes),
                calibration_layers=file.calibration_layers(columns),
            )


def _gaussians(arrays: Mapping[str, npt.NDArray[Any]]) -> ClassGaussians:
    return ClassGaussians(
        whitening=arrays[detector_file.WHITENING],
        center=arrays[detector_file.CENTER],
        means=arrays[detector_file.MEANS],
        shrinkage=float(arrays[detector_file.SHRINKAGE]),
        overall=arrays[detector_file.OVERALL],
    )


def layer_scores(
    layers: tuple[str, ...], gaussians: tuple[ClassGaussians, ...], features: Features, predicted: Classes
) -> Float32:
    """(n, 3 * layers) squared distances: nearest class, predicted class and overall, layer by layer."""
    found = [fitted.evidence(features[layer], predicted) for layer, fitted in zip(layers, gaussians, strict=True)]
    return np.concatenate(found, axis=1)
