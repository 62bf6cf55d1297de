"""Cases to put into quarantine, images that differ, and a watcher that remembers what it is told."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from serving.quarantine.entry import Case, LayerEvidence

NOON = datetime(2025, 11, 26, 12, 5, 3, 417000, UTC)
CASE = Case(
    received=NOON.isoformat(timespec="milliseconds"),
    request_id="r-1",
    caller="shop",
    bundle_id="b" * 64,
    network="full",
    label="Dusky Lark",
    probability=0.75,
    score=12.5,
    p_value=0.01,
    alpha=0.05,
    flagged=True,
    layers=(LayerEvidence(layer="colour", squared_distance=3.5),),
)


def case(received: datetime | None = None, **changes: Any) -> Case:
    """CASE, received now unless told otherwise."""
    moment = (received or datetime.now(UTC)).isoformat(timespec="milliseconds")
    return replace(CASE, received=moment, **changes)


def picture(seed: int = 0, kind: str = "PNG", side: int = 32) -> bytes:
    """An image file of noise; as PNG it has about 3 bytes a pixel."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


class Told:
    """A Watcher."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()
        self.bytes: int | None = None
        self.failed_looks = 0
        self._lock = threading.Lock()

    def written(self, reason: str) -> None:
        self.kept[reason] += 1

    def dropped(self, count: int, why: str) -> None:
        with self._lock:
            self.lost[why] += count
            self.failed_looks += not count

    def pruned(self, removed: int, why: str) -> None:
        self.removed[why] += removed

    def holds(self, size: int) -> None:
        self.bytes = size


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until it holds; the test's own limit of time ends what never does."""
    while not condition():
        time.sleep(0.01)
