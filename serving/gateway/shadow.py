"""A bundle in the shadow of the one that answers: it is asked a share of the same images, and differences are counted.

It never costs an answer: the copy is made after the caller has his, at most `MOST` are under way, and while anybody
waits for his turn none is made. What was not compared is counted, too.
"""

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bundle import ImageSpec
from bundle.errors import ImageError, RequestRefused
from serving.gateway.answer import make_answer
from serving.gateway.asked import Asked
from serving.gateway.behind import Behind
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.journal import Journal
from serving.gateway.metrics import Metrics

if TYPE_CHECKING:
    from serving.gateway.service import Call

MOST = 4  # copies under way
SECONDS = 10.0  # that one may take
SAME, DIFFERENT, DROPPED, FAILED = "same", "different", "dropped", "failed"
LABEL, FLAG = "label", "flag"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A request that has been answered: its bytes, and its pixels : (H, W, 3) uint8 as `image` makes them of these."""

    data: bytes
    pixels: npt.NDArray[np.uint8]
    image: ImageSpec
    asked: Asked
    answer: v1.ClassifyResponse


class Shadow:
    """Compares until `close`. `share` of the requests, from 0 to 1; `chance` gives numbers below 1."""

    def __init__(
        self,
        behind: Behind,
        share: float,
        *,
        metrics: Metrics,
        journal: Journal,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.behind, self.share = behind, share
        self.counts: Counter[str] = Counter()  # by outcome, and by what was different
        self.largest = 0.0  # difference of two p-values
        self._metrics, self._journal, self._chance = metrics, journal, chance
        self._under_way: set[asyncio.Task[None]] = set()

    def see(self, seen: Seen, call: "Call", *, busy: bool) -> None:
        """Perhaps compare; returns at once. `busy` is whether anybody waits for his turn."""
        if self._chance() >= self.share:
            return
        if busy or len(self._under_way) >= MOST:
            self._count(seen.asked.network, DROPPED)
            return
        task = asyncio.create_task(self._compare(seen, call.request_id))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def facts(self) -> dict[str, Any]:
        """What has been found so far."""
        outcomes = (SAME, DIFFERENT, DROPPED, FAILED)
        return {
            "bundle_id": self.behind.manifest.bundle_id,
            "share": self.share,
            **{name: self.counts[name] for name in (*outcomes, LABEL, FLAG)},
            "largest_p_value_difference": round(self.largest, 6),
        }

    async def close(self) -> None:
        """Give up what is under way, and close its channel."""
        for task in self._under_way:
            task.cancel()
        await self.behind.retire(0)

    async def _compare(self, seen: Seen, request_id: str) -> None:
        network, answer = seen.asked.network, seen.answer
        try:
            other = await self._ask(seen)
        except (RequestRefused, ImageError):
            self._count(network, FAILED)
            return
        ours, theirs = answer.adversarial, other.adversarial
        labels = (answer.predictions[0].label, other.predictions[0].label)
        found = {LABEL: labels[0] != labels[1], FLAG: ours.flagged != theirs.flagged}
        difference = abs(ours.p_value - theirs.p_value)
        self.largest = max(self.largest, difference)
        self._metrics.shadow_p_value.labels(network).observe(difference)
        self._count(network, DIFFERENT if any(found.values()) else SAME)
        for what in (name for name, differs in found.items() if differs):
            self.counts[what] += 1
            self._metrics.shadow_differences.labels(network, what).inc()
        if any(found.values()):
            facts = {"request_id": request_id, "network": network, "label": labels[0], "shadow_label": labels[1]}
            p_values = {"p_value": round(ours.p_value, 6), "shadow_p_value": round(theirs.p_value, 6)}
            self._journal.write("shadow_differs", **facts, **p_values)

    async def _ask(self, seen: Seen) -> v1.ClassifyResponse:
        manifest, network = self.behind.manifest, seen.asked.network
        if network not in manifest.networks:
            raise RequestRefused(f"the shadow has no network {network!r}")
        pixels = seen.pixels
        if _shape(manifest.image) != _shape(seen.image):
            pixels = await asyncio.to_thread(manifest.image.decode, seen.data)
        outputs = await self.behind.triton.infer(pixels, manifest, network, timeout=SECONDS, explained=False)
        return make_answer(outputs, manifest, dataclasses.replace(seen.asked, top=1, explain=False))

    def _count(self, network: str, outcome: str) -> None:
        self.counts[outcome] += 1
        self._metrics.shadow.labels(network, outcome).inc()


def _shape(image: ImageSpec) -> ImageSpec:
    """What of a spec decides how an image becomes pixels, its limits aside."""
    return dataclasses.replace(image, max_bytes=1, max_pixels=1)
