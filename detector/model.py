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

from bundle.arrays import read_arrays
from bundle.errors import BundleCorrupt, DetectorError
from bundle.files import atomic_file
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
        """Write an .npz without pickled objects."""
        arrays = {
            "layers": np.array(self.layers),
            "weights": self.combination.weights,
            "bias": np.float64(self.combination.bias),
            "calibration": self.calibration,
            "alpha": np.float64(self.alpha),
        }
        if self.calibration_classes is not None:
            arrays["calibration_classes"] = self.calibration_classes
        if self.calibration_layers is not None:
            arrays["calibration_layers"] = self.calibration_layers
        for layer, gaussians in zip(self.layers, self.gaussians, strict=True):
            arrays[f"{layer}/whitening"] = gaussians.whitening
            arrays[f"{layer}/center"] = gaussians.center
            arrays[f"{layer}/means"] = gaussians.means
            arrays[f"{layer}/shrinkage"] = np.float64(gaussians.shrinkage)
            arrays[f"{layer}/overall"] = gaussians.overall
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Detector":
        """Read what `save` wrote; never unpickles. Raises BundleCorrupt for anything else."""
        try:
            arrays = read_arrays(path)
            layers = tuple(str(name) for name in arrays["layers"])
            loaded = cls(
                layers=layers,
                gaussians=tuple(
                    ClassGaussians(
                        whitening=arrays[f"{layer}/whitening"],
                        center=arrays[f"{layer}/center"],
                        means=arrays[f"{layer}/means"],
                        shrinkage=float(arrays[f"{layer}/shrinkage"]),
                        overall=arrays[f"{layer}/overall"],
                    )
                    for layer in layers
                ),
                combination=Combination(weights=arrays["weights"], bias=float(arrays["bias"])),
                calibration=arrays["calibration"],
                alpha=float(arrays["alpha"]),
                calibration_classes=arrays.get("calibration_classes"),
                calibration_layers=arrays.get("calibration_layers"),
            )
            _check(loaded)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise BundleCorrupt(f"{path} is not a detector ({problem})", hint="Export the bundle again.") from None
        return loaded


def _check(detector: Detector) -> None:
    """Raise ValueError unless the parts fit each other, so that scoring cannot fail on them."""
    layers, gaussians = detector.layers, detector.gaussians
    if not layers or len(set(layers)) < len(layers):
        raise ValueError("its layers are none, or one is there twice")
    classes = len(gaussians[0].means) if gaussians[0].means.ndim else 0
    for layer, fitted in zip(layers, gaussians, strict=True):
        width = fitted.center.size
        _check_numbers(f"{layer}/center", fitted.center, (width,))
        _check_numbers(f"{layer}/whitening", fitted.whitening, (width, width))
        _check_numbers(f"{layer}/means", fitted.means, (classes, width))
        _check_numbers(f"{layer}/overall", fitted.overall, (width, width))
        _check_numbers(f"{layer}/shrinkage", np.asarray(fitted.shrinkage), ())
    _check_numbers("weights", detector.combination.weights, (len(detector.columns),))
    _check_numbers("bias", np.asarray(detector.combination.bias), ())
    _check_numbers("calibration", detector.calibration, (detector.calibration.size,))
    if not 0 < detector.alpha < 1 or (np.diff(detector.calibration) < 0).any():
        raise ValueError("its alpha is not between 0 and 1, or its calibration is not in ascending order")
    if (answers := detector.calibration_classes) is not None and (
        answers.dtype.kind != "i" or answers.shape != detector.calibration.shape or not _within(answers, classes)
    ):
        raise ValueError("its calibration_classes are not the position of a class for each score")
    if (rows := detector.calibration_layers) is not None:
        _check_numbers("calibration_layers", rows, (detector.calibration.size, len(detector.columns)))


def _check_numbers(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.dtype.kind != "f" or array.shape != shape or not array.size or not np.isfinite(array).all():
        raise ValueError(f"its {name[:80]} is not {list(shape)} finite numbers")


def _within(answers: npt.NDArray[np.integer], classes: int) -> bool:
    return bool((answers >= 0).all() and (answers < classes).all())


def layer_scores(
    layers: tuple[str, ...], gaussians: tuple[ClassGaussians, ...], features: Features, predicted: Classes
) -> Float32:
    """(n, 3 * layers) squared distances: nearest class, predicted class and overall, layer by layer."""
    found = [fitted.evidence(features[layer], predicted) for layer, fitted in zip(layers, gaussians, strict=True)]
    return np.concatenate(found, axis=1)
