"""What the bundle says of one image, computed anew: every network, where it looked, which prototypes fired."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle import Bundle, tensors
from serving.client.local import LocalInference
from serving.client.prediction import Outputs, Prediction, predictions

TOP = 3
MOST_KEPT = 64  # looks that are not computed again
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Fired:
    """A training patch that the image resembles: the index of its prototype, and of how many on this very patch."""

    index: int
    similarity: float
    label: str
    source: str
    count: int


@dataclass(frozen=True, kw_only=True)
class NetworkLook:
    """One network's answer; attention : (h, w) in 0..1; `fired` only of the full network."""

    network: str
    prediction: Prediction
    attention: npt.NDArray[np.float32]
    fired: tuple[Fired, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """pixels : (H, W, 3) uint8, as the network saw them; an answer for each network of the bundle, by name."""

    pixels: Pixels
    networks: Mapping[str, NetworkLook]


class Looker:
    """Answers for single images by ONNX Runtime in this process; the latest are kept."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.bundle = bundle
        self._inference = LocalInference(bundle, threads=threads)
        self._kept: OrderedDict[str, Look] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, data: bytes) -> Look:
        """Answers for the bytes of an image; raises ImageError where they are none."""
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        pixels = self.bundle.manifest.image.decode(data)
        looks = {name: self._look(name, pixels) for name in self.bundle.manifest.networks}
        found = Look(pixels=pixels, networks=looks)
        with self._lock:
            self._kept[digest] = found
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return found

    def _look(self, network: str, pixels: Pixels) -> NetworkLook:
        manifest = self.bundle.manifest
        outputs = self._inference.infer(pixels[None], network)
        top = min(TOP, len(manifest.labels))
        return NetworkLook(
            network=network,
            prediction=predictions(outputs, manifest, network, top=top)[0],
            attention=outputs[tensors.ATTENTION][0],
            fired=self._fired(outputs) if tensors.PROTOTYPE_INDICES in outputs else (),
        )

    def _fired(self, outputs: Outputs) -> tuple[Fired, ...]:
        """Projection can put several prototypes on the same patch; the patch is told once, and how many they are."""
        manifest = self.bundle.manifest
        patches: dict[tuple[str, int, int, int], list[int]] = {}
        indices = outputs[tensors.PROTOTYPE_INDICES][0].tolist()
        for place, index in enumerate(indices):
            found = manifest.prototypes[index]
            patches.setdefault((found.image, found.row, found.column, found.label), []).append(place)
        return tuple(
            Fired(
                index=indices[places[0]],
                similarity=float(outputs[tensors.PROTOTYPE_SIMILARITIES][0][places[0]]),
                label=manifest.labels[manifest.prototypes[indices[places[0]]].label],
                source=manifest.prototypes[indices[places[0]]].source,
                count=len(places),
            )
            for places in patches.values()
        )
