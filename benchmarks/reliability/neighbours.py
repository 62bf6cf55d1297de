"""Honest callers beside an attack: what they were answered, what they were not, and what was wrong."""

import contextlib
import io
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.deployment import Door
from benchmarks.reliability.wire import Heard, outcome
from bundle import Bundle
from bundle.false_alarms import smallest_p_value
from bundle.tensors import INSTANCE_SCORE, P_VALUE, PROBABILITIES
from serving.client.local import LocalInference
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

IMAGES = 8
PAUSE_SECONDS = 0.05  # between two calls of one neighbour: they are honest, not many
CALL_SECONDS = 15.0
_SCORE = 1e-3  # of a score's size: other batches and threads round otherwise


class Known:
    """Images, and what each network must answer to them: the same graphs, in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        spec, rng = bundle.manifest.image, np.random.default_rng(0)
        shape = (IMAGES, 2 * spec.height, 2 * spec.width, 3)
        self.files = [png(pixels) for pixels in rng.integers(0, 256, shape, dtype=np.uint8)]
        local, batch = LocalInference(bundle), np.stack([spec.decode(file) for file in self.files])
        self._outputs = {network: local.infer(batch, network) for network in bundle.manifest.networks}

    def right(self, answer: v1.ClassifyResponse, number: int, network: str) -> bool:
        """Whether this is the network's answer to image `number`, but for rounding."""
        expected = {name: value[number] for name, value in self._outputs[network].items()}
        probabilities = dict(zip(self.manifest.labels, expected[PROBABILITIES].tolist(), strict=True))
        said, best = answer.predictions[0], max(probabilities.values())
        rank = smallest_p_value(self.manifest.networks[network].detector.calibration_n)
        return bool(
            answer.network == network
            and abs(said.probability - best) < _SCORE
            and abs(probabilities.get(said.label, -1.0) - best) < _SCORE
            and np.isclose(answer.adversarial.score, expected[INSTANCE_SCORE], rtol=_SCORE, atol=_SCORE)
            and abs(answer.adversarial.p_value - float(expected[P_VALUE])) < 1.5 * rank
        )


@dataclass(kw_only=True)
class Told:
    """What the neighbours of one attack were told; `failed` by status and reason."""

    answered: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> int:
        """Calls without an answer."""
        return sum(self.failed.values())


@contextlib.contextmanager
def neighbours(
    door: Door, known: Known, heard: Heard, *, networks: tuple[str, ...] = (), callers: int = 2
) -> Iterator[Told]:
    """`callers` of each network call through the door as long as the body runs; none of them ever calls again for the
    same answer, as a client with retries would.
    """
    told, ended = Told(), threading.Event()

    def call(network: str, number: int) -> None:
        with door.channel() as channel:
            stub: Any = FieldmarkStub(channel)
            while not ended.wait(PAUSE_SECONDS):
                number = (number + 1) % IMAGES
                request = v1.ClassifyRequest(image=known.files[number], network=network)
                answer, status = outcome(heard, stub.Classify, request, timeout=CALL_SECONDS, metadata=door.metadata)
                if answer is None:
                    told.failed[status] += 1
                    continue
                told.answered += 1
                told.wrong += not known.right(answer, number, network)

    chosen = networks or tuple(known.manifest.networks)
    threads = [threading.Thread(target=call, args=(network, number)) for network in chosen for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=2 * CALL_SECONDS)


def png(pixels: Any) -> bytes:
    """A PNG of pixels : (H, W, 3) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
