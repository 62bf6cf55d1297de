"""detector/NETWORK.npz: what the detector inside a graph is made of, name by name, for readers of the whole or a part.

K classes, L layers, D channels of a layer (its own), C columns of layer scores, n calibration images.

    layers                       (L,) text
    weights, bias                (C,) and (), of the linear combination of log squared distances
    calibration                  (n,) ascending scores of clean images
    alpha                        (), between 0 and 1
    calibration_classes          (n,) integers below K: their predicted classes, where p-values are per class
    calibration_layers           (n, C): their layer scores, where they were kept
    LAYER/whitening, /overall    (D, D)
    LAYER/center                 (D,)
    LAYER/means                  (K, D)
    LAYER/shrinkage              ()

Where nothing else is said they are finite floating-point numbers. `detector.model` knows what they mean.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.arrays import read_arrays
from bundle.errors import BundleCorrupt
from bundle.files import atomic_file
from bundle.manifest import FETCH_AGAIN

LAYERS, WEIGHTS, BIAS, ALPHA = "layers", "weights", "bias", "alpha"
CALIBRATION, CALIBRATION_CLASSES, CALIBRATION_LAYERS = "calibration", "calibration_classes", "calibration_layers"
WHITENING, OVERALL, CENTER, MEANS, SHRINKAGE = "whitening", "overall", "center", "means", "shrinkage"
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """The arrays of one file. A method checks what it gives; ValueError says what is not as it should be."""

    arrays: Mapping[str, Array]

    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        names = self._array(LAYERS)
        layers = tuple(map(str, names)) if names.ndim == 1 else ()
        if not layers or len(set(layers)) < len(layers):
            raise ValueError("its layers are none, or one is there twice")
        return layers

    def gaussians(self, layer: str, classes: int) -> dict[str, Array]:
        """One layer's arrays by the last part of their names."""
        names = (WHITENING, CENTER, MEANS, SHRINKAGE, OVERALL)
        width = {name: self._array(of_layer(layer, name)) for name in names}[CENTER].size
        square = (width, width)
        shapes = {CENTER: (width,), MEANS: (classes, width), SHRINKAGE: (), WHITENING: square, OVERALL: square}
        return {name: self.numbers(of_layer(layer, name), shape) for name, shape in shapes.items()}

    def classes(self, layer: str) -> int:
        """How many classes a layer's Gaussians tell apart."""
        means = self._array(of_layer(layer, MEANS))
        return len(means) if means.ndim else 0

    def alpha(self) -> float:
        """The default false-positive rate."""
        alpha = self._array(ALPHA)
        if alpha.dtype.kind != "f" or alpha.shape or not 0 < alpha < 1:
            raise ValueError("its alpha is not between 0 and 1")
        return float(alpha)

    def calibration(self) -> Array:
        """Scores of clean images, (n,) ascending."""
        scores = self.numbers(CALIBRATION, (self._array(CALIBRATION).size,))
        if (np.diff(scores) < 0).any():
            raise ValueError("its calibration is not in ascending order")
        return scores

    def calibration_classes(self, classes: int) -> npt.NDArray[np.int64] | None:
        """Predicted classes of these images, (n,) integers below `classes`; None where p-values are not per class."""
        found = self.arrays.get(CALIBRATION_CLASSES)
        if found is None:
            return None
        fit = found.shape == self.calibration().shape and found.dtype.kind == "i"
        if not fit or found.min() < 0 or found.max() >= classes:
            raise ValueError("its calibration_classes are not a label's position for each score")
        return found.astype(np.int64)

    def calibration_layers(self, columns: int) -> Array | None:
        """Layer scores of these images, (n, columns); None in a file of before, which holds the scores alone."""
        if CALIBRATION_LAYERS not in self.arrays:
            return None
        return self.numbers(CALIBRATION_LAYERS, (self.calibration().size, columns))

    def numbers(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array of finite numbers, at least one, of this shape."""
        array = self._array(name)
        if array.dtype.kind != "f" or array.shape != shape or not array.size or not np.isfinite(array).all():
            raise ValueError(f"its {name[:80]} is not {list(shape)} finite numbers")
        return array

    def _array(self, name: str) -> Array:
        if name not in self.arrays:
            raise ValueError(f"it has no {name[:80]}")
        return self.arrays[name]


def of_layer(layer: str, name: str) -> str:
    """The name in the file of one of a layer's arrays."""
    return f"{layer}/{name}"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[DetectorFile]:
    """A detector's file; what is wrong with it, or with what the block takes from it, is raised as BundleCorrupt."""
    try:
        yield DetectorFile(arrays=read_arrays(path))
    except (OSError, ValueError) as problem:
        raise BundleCorrupt(f"{path} is not a detector ({problem})", hint=FETCH_AGAIN) from None


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, in their order, without pickled objects."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
