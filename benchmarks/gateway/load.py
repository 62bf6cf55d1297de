"""Load on whatever answers: a closed loop, where each caller waits for its answer, and an open one, where nobody does.

In the open loop requests come when they come (Poisson), whatever became of those before them, and a request's time
counts from the moment when it was meant to be sent. So a stall is felt by everybody who comes meanwhile, as it is in
life; a caller who waits, and then measures his own call alone, omits them (coordinated omission).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from bundle.errors import RequestRefused

RAMP = 0.25  # of a closed window's seconds, before it counts
PERCENTILES = (50, 90, 95, 99)
_FAILURES = (grpc.RpcError, RequestRefused, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of one answered request, as far as its side knows: the rest is the caller's and the wire's."""

    queue: float = 0.0
    decode: float = 0.0
    compute: float = 0.0


Ask = Callable[[int], Awaitable[Parts]]  # request number n: which image it sends, is the side's matter


@dataclass(kw_only=True)
class Window:
    """What one stretch of load gave. `latencies` in seconds, one for each answer that counts.

    `answers` are (latency, parts) of all, those of the ramp and the late ones too: what they cost, somebody paid.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)
    answers: list[tuple[float, Parts]] = field(default_factory=list)
    failed: int = 0

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds; NaN where nothing was answered."""
        return 1e3 * float(np.percentile(self.latencies, percent)) if self.latencies else float("nan")


async def closed(ask: Ask, callers: int, seconds: float) -> Window:
    """`callers` ask one after another, for `seconds` after a ramp; answers that come later do not count."""
    window = Window(seconds=seconds)
    begin = time.perf_counter() + RAMP * seconds
    end = begin + seconds

    async def caller(number: int) -> None:
        while (sent := time.perf_counter()) < end:
            try:
                parts = await ask(number)
            except _FAILURES:
                window.failed += 1
                await asyncio.sleep(0.01)  # a side that refuses at once must not be all that is measured
                continue
            number += callers
            now = time.perf_counter()
            window.answers.append((now - sent, parts))
            if begin <= now < end:
                window.latencies.append(now - sent)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return window


def poisson(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Moments within `seconds` at which requests come, `rate` a second on average."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 20)
    moments: npt.NDArray[np.float64] = np.cumsum(gaps)
    return moments[moments < seconds]


async def opened(ask: Ask, moments: Sequence[float] | npt.NDArray[np.float64], seconds: float) -> Window:
    """Send a request at each moment, and wait for the last answer; latencies from the moments, not from the sending."""
    window = Window(seconds=seconds)
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        try:
            parts = await ask(number)
        except _FAILURES:
            window.failed += 1
            return
        window.answers.append((time.perf_counter() - began - due, parts))
        window.latencies.append(window.answers[-1][0])

    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(map(float, moments)):
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            group.create_task(one(number, due))
    return window


def summary(windows: Sequence[Window]) -> dict[str, Any]:
    """The same load's windows together: throughput and latencies with their spread over the windows, means of parts."""
    together = Window(
        seconds=sum(each.seconds for each in windows),
        latencies=[value for each in windows for value in each.latencies],
        answers=[answer for each in windows for answer in each.answers],
    )
    result: dict[str, Any] = {
        "requests": len(together.latencies),
        "failed": sum(each.failed for each in windows),
        "throughput": figure([each.throughput for each in windows], digits=1),
    }
    for percent in PERCENTILES:
        spread = figure([each.percentile(percent) for each in windows])
        result[f"p{percent}_ms"] = {**spread, "all": round(together.percentile(percent), 2)}
    parts = [found for _, found in together.answers]
    mean = float(np.mean([latency for latency, _ in together.answers] or [np.nan]))
    known = {name: float(np.mean([getattr(each, name) for each in parts] or [0.0])) for name in vars(Parts())}
    rest = {"client": mean - sum(known.values())}
    return result | {f"{name}_ms": round(1e3 * value, 3) for name, value in (rest | known).items()}


def figure(values: Sequence[float], *, digits: int = 2) -> dict[str, float]:
    """Median, least and most of a figure that was measured several times."""
    low, median, high = (round(float(found(values)), digits) for found in (np.min, np.median, np.max))
    return {"median": median, "least": low, "most": high}
