"""What an answer is, whoever computed it: the served graph in process, or Triton over gRPC."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import BundleUnsupported, OptionError
from bundle.false_alarms import is_alpha, smallest_p_value
from bundle.manifest import BF16, INT8, PER_CLASS, Manifest

Outputs = Mapping[str, npt.NDArray[Any]]
INT8_SINCE = (1, 23)  # 1.19.2 was seen to give other labels, 1.23.2 and 1.32.0 those of the export


def check_processor(manifest: Manifest, network: str) -> None:
    """Raise BundleUnsupported for a graph that needs a GPU: ONNX Runtime has no bfloat16 kernels for processors."""
    if (precision := manifest.networks[network].precision) == BF16:
        raise BundleUnsupported(
            f"the network {network!r} computes in {precision}, which no processor runs here",
            hint="Serve it on a GPU (fieldmark repository --backend onnxruntime, fieldmark engine), "
            "or export it with --precision fp32, fp16 or int8.",
        )


def check_runtime(manifest: Manifest, version: str) -> None:
    """Raise BundleUnsupported for an int8 bundle on an ONNX Runtime of a `version` that answers it otherwise."""
    narrow = [name for name, info in manifest.networks.items() if info.precision == INT8]
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if narrow and found < INT8_SINCE:
        wanted = ".".join(map(str, INT8_SINCE))
        raise BundleUnsupported(
            f"the int8 network {narrow[0]!r} needs ONNX Runtime {wanted} or newer, and here is {version}",
            hint="Older ones answer with other labels. Install a newer one, or serve the float32 bundle.",
        )


def check_alpha(manifest: Manifest, network: str, alpha: float | None) -> None:
    """Raise OptionError for a false-positive rate that no answer of this network can support; None is the bundle's.

    Where calibration is per class, the smallest p-value is that of the class with the fewest calibration images: an
    alpha below it would never flag an image that is taken for this class, however suspicious.
    """
    detector = manifest.networks[network].detector
    refuse_alpha(alpha, smallest_p_value(detector.calibration_n), by_class=detector.calibration == PER_CLASS)


def refuse_alpha(alpha: float | None, smallest: float, *, by_class: bool = False) -> None:
    """The same, where the smallest p-value is known already."""
    if alpha is None:
        return
    if not is_alpha(alpha):
        raise OptionError(f"--alpha {alpha:g} is not between 0 and 1")
    if np.float32(alpha) < np.float32(smallest):
        raise OptionError(
            f"--alpha {alpha:g} is below {smallest:.4g}, the smallest p-value this bundle can give"
            + (" in each class, so there are classes where nothing would" if by_class else ", so nothing would")
            + " ever be flagged",
            hint="Choose a larger one, or calibrate with more images: fieldmark calibrate BUNDLE --with FOLDER.",
        )


class Inference(Protocol):
    """Something that runs a bundle's graphs. `LocalInference` and `TritonInference` beside this file do."""

    manifest: Manifest
    bundle_id: str

    def infer(self, images: npt.NDArray[np.uint8], network: str) -> Outputs:
        """Run `network` on images : (N, H, W, 3) uint8; returns every output of the network by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's answer. `top` holds (label, probability), best first; scores are squared distances per layer."""

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    instance_score: float
    p_value: float
    is_adversarial: bool
    layer_scores: tuple[float, ...]
    network: str
    bundle_id: str


def predictions(
    outputs: Outputs, manifest: Manifest, network: str, *, alpha: float | None = None, top: int = 1
) -> list[Prediction]:
    """Turn a batch of graph outputs into predictions; `alpha` replaces the bundle's default false-positive rate."""
    probabilities = outputs[tensors.PROBABILITIES]
    p_values = outputs[tensors.P_VALUE]
    flags = outputs[tensors.IS_ADVERSARIAL] if alpha is None else p_values <= alpha
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    bundle_id = manifest.bundle_id
    return [
        Prediction(
            label=manifest.labels[int(ranked[row, 0])],
            probability=float(probabilities[row, ranked[row, 0]]),
            top=tuple((manifest.labels[int(k)], float(probabilities[row, k])) for k in ranked[row]),
            instance_score=float(outputs[tensors.INSTANCE_SCORE][row]),
            p_value=float(p_values[row]),
            is_adversarial=bool(flags[row]),
            layer_scores=tuple(float(value) for value in outputs[tensors.LAYER_SCORES][row]),
            network=network,
            bundle_id=bundle_id,
        )
        for row in range(len(probabilities))
    ]
