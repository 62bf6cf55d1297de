"""Thousands of damaged requests, and images that a network fails on: nobody else may pay for them."""

import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gateway.sides import photographs
from benchmarks.reliability.brittle import brittle_bundle
from benchmarks.reliability.deployment import Deployment, Door
from benchmarks.reliability.neighbours import png
from benchmarks.reliability.rows import Ground, Outcome, Row, beside_neighbours, tally
from benchmarks.reliability.wire import Heard, outcome
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

MALFORMED, CALLERS = 10_000, 4
_REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "OK"}


class Mutations:
    """Damaged requests without an end, the same for the same seed."""

    def __init__(self, files: list[bytes], seed: int) -> None:
        self._files, self._rng = files, np.random.default_rng(seed)

    def message(self) -> bytes:
        """A ClassifyRequest whose image, fields or very bytes are damaged."""
        rng = self._rng
        request = v1.ClassifyRequest(image=self._damaged(self._files[int(rng.integers(len(self._files)))]))
        if rng.random() < 0.3:
            request.network = str(rng.choice(["full", "attention", "../../models/full", "\x1b[31m", "n" * 5000]))
        if rng.random() < 0.3:
            request.top_k = int(rng.choice([0, 1, 2, 2**31, 2**32 - 1]))
        if rng.random() < 0.3:
            request.alpha = float(rng.choice([0.05, 0.5, 0.0, 1.0, -1.0, np.nan, np.inf, 1e-300]))
        request.explain = bool(rng.random() < 0.1)
        data = request.SerializeToString()
        return self._damaged(data) if rng.random() < 0.3 else data

    def _damaged(self, data: bytes) -> bytes:
        rng, changed = self._rng, bytearray(data)
        for _ in range(int(rng.integers(1, 8))):
            place = int(rng.integers(len(changed) + 1)) if rng.random() < 0.7 else int(rng.integers(64))
            how = int(rng.integers(4))
            if how == 0 and place < len(changed):
                changed[place] = int(rng.integers(256))
            elif how == 1:
                del changed[place : place + int(rng.integers(1, 64))]
            elif how == 2:
                changed[place:place] = rng.bytes(int(rng.integers(1, 32)))
            elif rng.random() < 0.2:
                del changed[place:]
        return bytes(changed)


def _malformed(ground: Ground) -> Outcome:
    files = [*ground.known.files[:4], *photographs(2)]
    each = ground.many(MALFORMED) // CALLERS

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        def call(number: int) -> Counter[str]:
            door, found = deployment.doors[number % 2], Counter[str]()
            mutations = Mutations(files, seed=number)
            with door.channel() as channel:
                send = channel.unary_unary("/fieldmark.v1.Fieldmark/Classify")
                for _ in range(each):
                    data = mutations.message()
                    _, status = outcome(heard, send, data, timeout=20, metadata=door.metadata)
                    found[status] += 1
            return found

        with ThreadPoolExecutor(CALLERS) as pool:
            found = sum(pool.map(call, range(CALLERS)), Counter[str]())
        return tally(found), {status.split(" ")[0] for status in found} <= _REFUSED

    return beside_neighbours(ground, attack)


def _one_in_a_batch(ground: Ground) -> Outcome:
    """`full` of another bundle fails on white images; eight callers send one after another, beside honest ones."""
    if "full" not in ground.known.manifest.networks:
        raise LookupError("this bundle has no network 'full'")
    spec = ground.known.manifest.image
    white = v1.ClassifyRequest(image=png(np.full((spec.height, spec.width, 3), 255, np.uint8)), network="full")

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found, lock = Counter[str](), threading.Lock()

        def call(door: Door) -> None:
            with door.channel() as channel:
                stub: Any = FieldmarkStub(channel)
                for _ in range(ground.many(200)):
                    _, status = outcome(heard, stub.Classify, white, timeout=20, metadata=door.metadata)
                    with lock:
                        found[status] += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, deployment.doors * 4))
        return f"the bad ones: {tally(found)}", set(found) == {"INTERNAL NETWORK_FAILED"}

    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        brittle = brittle_bundle(ground.bundle, Path(folder))
        with Deployment(brittle.path, ground.folder) as deployment:
            return beside_neighbours(ground, attack, deployment)


ROWS = (
    Row(
        name="malformed",
        tried=f"{MALFORMED:,} damaged requests: protobuf's bytes, fields and images, at both doors",
        must="Each refused with a documented status, or answered where it is still an image",
        run=_malformed,
    ),
    Row(
        name="one-in-a-batch",
        tried="Images on which the network fails, 8 callers at once, batched with those of others",
        must="NETWORK_FAILED for them alone",
        run=_one_in_a_batch,
    ),
)
