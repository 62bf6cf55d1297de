"""A row of graph outputs becomes the answer that goes over the wire, with the pictures behind it where asked for."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from bundle import Manifest, tensors
from serving.client.prediction import Outputs, predictions
from serving.gateway.asked import Asked
from serving.gateway.failures import set_seconds
from serving.gateway.generated import fieldmark_pb2 as v1

LookUp = Callable[[int], npt.NDArray[np.uint8] | None]


@dataclass(kw_only=True)
class Stages:
    """Seconds of one request by stage; `total` from its arrival to its answer."""

    queue: float = 0.0
    decode: float = 0.0
    inference: float = 0.0
    total: float = 0.0

    def message(self) -> v1.Times:
        """As it goes over the wire."""
        times = v1.Times()
        for name, seconds in vars(self).items():
            set_seconds(getattr(times, name), max(0.0, seconds))
        return times


def make_answer(outputs: Outputs, manifest: Manifest, asked: Asked) -> v1.ClassifyResponse:
    """The answer without pictures, request id and times; `outputs` is one image's row of each graph output."""
    rows = {name: value[None] for name, value in outputs.items()}
    found = predictions(rows, manifest, asked.network, alpha=asked.alpha, top=asked.top)[0]
    detector = manifest.networks[asked.network].detector
    return v1.ClassifyResponse(
        predictions=[v1.Prediction(label=label, probability=probability) for label, probability in found.top],
        adversarial=v1.Adversarial(
            score=found.instance_score,
            p_value=found.p_value,
            flagged=found.is_adversarial,
            alpha=detector.alpha if asked.alpha is None else asked.alpha,
            layers=[
                v1.LayerEvidence(layer=layer, squared_distance=distance)
                for layer, distance in zip(detector.columns, found.layer_scores, strict=True)
            ],
        ),
        network=asked.network,
        bundle_id=found.bundle_id,
    )


def make_explanation(outputs: Outputs, manifest: Manifest, look_up: LookUp) -> v1.Explanation:
    """The pictures behind an answer; `look_up` gives a prototype's training image : (H, W, 3) uint8, or None."""
    attention = np.nan_to_num(outputs[tensors.ATTENTION].astype(np.float32)).clip(0, 1)  # (h, w)
    size = (manifest.image.width, manifest.image.height)
    smooth = np.asarray(Image.fromarray(attention).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    explanation = v1.Explanation(attention_png=_png((255 * smooth).round().astype(np.uint8)))
    indices = outputs.get(tensors.PROTOTYPE_INDICES, np.empty(0, np.int64))
    for index, similarity in zip(indices, outputs.get(tensors.PROTOTYPE_SIMILARITIES, ()), strict=True):
        if not 0 <= index < len(manifest.prototypes):
            continue
        prototype, image = manifest.prototypes[int(index)], look_up(int(index))
        left, top, right, bottom = prototype.box
        explanation.prototypes.add(
            label=manifest.labels[prototype.label],
            similarity=float(similarity),
            png=b"" if image is None else _png(image),
            box=v1.Box(left=left, top=top, right=right, bottom=bottom),
        )
    return explanation


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
