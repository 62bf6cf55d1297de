"""What one request asks for, checked before any pixel is decoded."""

from dataclasses import dataclass

import numpy as np

from bundle import Manifest
from bundle.errors import RequestRefused
from bundle.false_alarms import is_alpha, smallest_p_value
from bundle.manifest import NetworkInfo
from serving.gateway import failures
from serving.gateway.generated import fieldmark_pb2 as v1

MAX_ID_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be answered. `alpha` is None where the bundle's own holds."""

    network: str
    top: int
    alpha: float | None
    explain: bool


def check_request(request: v1.ClassifyRequest, manifest: Manifest, image_bytes: int) -> Asked:
    """What the request asks for; raises RequestRefused. `image_bytes` is the most that an encoded image may have."""
    network = request.network or manifest.main_network
    if network not in manifest.networks:
        raise RequestRefused(
            f"there is no network {network[:40]!r}",
            hint=f"There is: {', '.join(manifest.networks)}.",
            reason=failures.NETWORK_UNKNOWN,
            field="network",
        )
    top = request.top_k if request.HasField("top_k") else 1
    if not 1 <= top <= len(manifest.labels):
        raise RequestRefused(
            f"top_k {top} is not between 1 and {len(manifest.labels)}, the number of labels",
            reason=failures.TOP_K_OUT_OF_RANGE,
            field="top_k",
        )
    alpha = _check_alpha(request.alpha, manifest.networks[network]) if request.HasField("alpha") else None
    if not request.image:
        raise RequestRefused("the request holds no image", reason=failures.IMAGE_EMPTY, field="image")
    if len(request.image) > image_bytes:
        raise RequestRefused(
            f"the image has {len(request.image):,} bytes, and the limit is {image_bytes:,}",
            hint="Send it smaller: the network sees few of its pixels.",
            reason=failures.IMAGE_TOO_LARGE,
            field="image",
        )
    return Asked(network=network, top=top, alpha=alpha, explain=request.explain)


def smallest_alpha(info: NetworkInfo) -> float:
    """The smallest p-value that a network can give: below it, nothing would ever be flagged."""
    return smallest_p_value(info.detector.calibration_n)


def _check_alpha(alpha: float, info: NetworkInfo) -> float:
    if not is_alpha(alpha):
        raise RequestRefused(
            f"alpha {alpha:g} is not between 0 and 1", reason=failures.ALPHA_OUT_OF_RANGE, field="alpha"
        )
    if np.float32(alpha) < np.float32(smallest_alpha(info)):
        raise RequestRefused(
            f"alpha {alpha:g} is below {smallest_alpha(info):.4g}, the smallest p-value there is",
            hint="Nothing would ever be flagged. Choose a larger one.",
            reason=failures.ALPHA_OUT_OF_RANGE,
            field="alpha",
        )
    return alpha
