"""What the gateway costs, and Envoy before it: four ways from the same JPEG bytes to an answer, in one run.

Sides take turns window by window, and who comes first changes every round, so that what the machine does meanwhile
hits all of them; ratios are made round by round, and their spread over rounds is given. First callers who wait for
their answers (concurrency 1 to 64) tell how much each side can do, its capacity; then requests that come by themselves
(Poisson, 30 to 90 % of the side's own capacity) tell how long they take.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.gateway.load import PERCENTILES, Ask, Window, closed, figure, opened, poisson, summary
from benchmarks.gateway.sides import (
    CALLER,
    ENVOY,
    GATEWAY,
    IN_PROCESS,
    PHOTOGRAPH,
    SIDES,
    TRITON,
    Servers,
    open_side,
    photographs,
    servers,
)
from bundle import Bundle

BUSY = 0.7  # share of capacity that a machine should be sized for: at it, waiting is still short
IMAGES = 16
# Whose processor time an answer of each side takes.
_PAID = {
    IN_PROCESS: (CALLER,),
    TRITON: (CALLER, TRITON),
    GATEWAY: (CALLER, GATEWAY, TRITON),
    ENVOY: (CALLER, ENVOY, GATEWAY, TRITON),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured: `closed_seconds` and `open_seconds` a window, `rounds` windows of each load and side."""

    callers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    loads: tuple[float, ...] = (0.3, 0.5, BUSY, 0.9)  # of the side's own capacity
    closed_seconds: float = 1.5
    open_seconds: float = 3.5
    rounds: int = 3


REHEARSAL = Plan(callers=(1, 8), loads=(BUSY,), closed_seconds=1.0, open_seconds=1.0, rounds=2)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One window, with milliseconds by process (`cpu`) and inside Triton (`triton`), both of one answer on average."""

    window: Window
    cpu: dict[str, float]
    triton: dict[str, float]


Runs = dict[str, dict[str, list[Measured]]]  # by side and load


def measure_gateway(bundle_path: Path, plan: Plan = Plan()) -> dict[str, Any]:
    """Every side under every load, ratios between them, and what a core is good for."""
    console = Console(stderr=True)
    bundle = Bundle.open(bundle_path)
    network = bundle.manifest.main_network
    with servers(bundle) as served, console.status("warming up") as status:
        runs = asyncio.run(_measure(served, network, plan, lambda text: status.update(text)))
    told = {name: {load: _told(name, found) for load, found in loads.items()} for name, loads in runs.items()}
    result = {
        "bundle_id": bundle.bundle_id,
        "name": bundle.manifest.name,
        "network": network,
        "image": [bundle.manifest.image.height, bundle.manifest.image.width],
        "jpeg": {"pixels": list(PHOTOGRAPH), "images": IMAGES},
        **told,
        "ratios": _ratios(runs, plan),
        "sizing": sizing(_busiest(runs[ENVOY], plan)),
    }
    for name in SIDES:
        console.print(_table(name, told[name]))
    return result


def rehearse(bundle_path: Path) -> dict[str, Any]:
    """The same with few callers, a load and seconds, to see that it works."""
    return measure_gateway(bundle_path, REHEARSAL)


def sizing(cpu: Mapping[str, float]) -> dict[str, float]:
    """What one core is good for, from the processor milliseconds of one image by process.

    images a second and core = BUSY / (processor seconds of Envoy + gateway + Triton for one image)
    """
    parts = {f"{name}_cpu_ms": round(cpu[name], 3) for name in (ENVOY, GATEWAY, TRITON)}
    seconds = sum(cpu[name] for name in (ENVOY, GATEWAY, TRITON)) / 1e3
    return {**parts, "images_a_second_and_core": round(BUSY / seconds, 1) if seconds else float("nan")}


async def _measure(served: Servers, network: str, plan: Plan, tell: Callable[[str], object]) -> Runs:
    images = photographs(IMAGES)
    async with contextlib.AsyncExitStack() as held:
        sides = {}
        for name in SIDES:
            sides[name] = open_side(name, served, network, images)
            held.push_async_callback(sides[name].close)
            await closed(sides[name].ask, 4, plan.closed_seconds)
        watch = _Watch(served, network)
        held.callback(watch.close)
        runs: Runs = {name: {} for name in SIDES}
        for turn in range(plan.rounds):
            for callers in plan.callers:
                for name in _rotated(turn):
                    tell(f"round {turn + 1} of {plan.rounds}: {callers} callers, {name}")
                    found = await watch.during(_closed(sides[name].ask, callers, plan))
                    runs[name].setdefault(str(callers), []).append(found)
        capacity = {name: _capacity(runs[name], plan) for name in SIDES}
        for turn in range(plan.rounds):
            for load in plan.loads:
                for name in _rotated(turn):
                    tell(f"round {turn + 1} of {plan.rounds}: {load:.0%} of what it can, {name}")
                    moments = poisson(load * capacity[name], plan.open_seconds, seed=turn)
                    found = await watch.during(_opened(sides[name].ask, moments, plan))
                    runs[name].setdefault(f"{load:.0%}", []).append(found)
    return runs


def _closed(ask: Ask, callers: int, plan: Plan) -> Callable[[], Awaitable[Window]]:
    return lambda: closed(ask, callers, plan.closed_seconds)


def _opened(ask: Ask, moments: Any, plan: Plan) -> Callable[[], Awaitable[Window]]:
    return lambda: opened(ask, moments, plan.open_seconds)


class _Watch:
    """Reads what processes have taken and what Triton has counted, before and after a window."""

    def __init__(self, served: Servers, network: str) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._client: Any = InferenceServerClient(served.triton_url)
        self._served, self._network = served, network

    async def during(self, load: Callable[[], Awaitable[Window]]) -> Measured:
        cpu, counted = self._served.cpu_seconds(), self._counted()
        window = await load()
        after, now = self._served.cpu_seconds(), self._counted()
        answers, ran = max(1, len(window.answers)), now["count"] - counted["count"]
        return Measured(
            window=window,
            cpu={name: 1e3 * (after[name] - cpu[name]) / answers for name in cpu},
            triton={name: (now[name] - counted[name]) / 1e6 / ran if ran else 0.0 for name in ("queue", "compute")},
        )

    def close(self) -> None:
        self._client.close()

    def _counted(self) -> dict[str, int]:
        """Nanoseconds of all requests in Triton's queue and at the network so far, and how many there were."""
        (found,) = self._client.get_inference_statistics(self._network).model_stats
        stats = found.inference_stats
        compute = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        return {"queue": stats.queue.ns, "compute": compute, "count": stats.success.count}


def _told(name: str, found: Sequence[Measured]) -> dict[str, Any]:
    """One side under one load, as it goes into the JSON."""
    told = summary([each.window for each in found])
    told["cpu_ms"] = {who: round(_mean([each.cpu[who] for each in found]), 3) for who in _PAID[name]}
    if name != IN_PROCESS:  # what happened inside Triton is no longer the wire's
        for part in ("queue", "compute"):
            inside = _mean([each.triton[part] for each in found])
            told[f"{part}_ms"] = round(told[f"{part}_ms"] + inside, 3)
            told["client_ms"] = round(told["client_ms"] - inside, 3)
    return told


def _ratios(runs: Runs, plan: Plan) -> dict[str, Any]:
    """How much is lost by each step, round by round, and how much longer the slowest wait."""
    best = {name: [max(each) for each in _by_round(runs[name], plan)] for name in SIDES}
    busy = f"{BUSY:.0%}"
    ratios: dict[str, Any] = {
        f"{above} / {below}, answers a second at saturation": _pairs(best[above], best[below])
        for above, below in ((TRITON, IN_PROCESS), (GATEWAY, IN_PROCESS), (GATEWAY, TRITON), (ENVOY, GATEWAY))
    }
    for above, below in ((GATEWAY, IN_PROCESS), (ENVOY, GATEWAY)):
        first = str(plan.callers[0])
        ratios[f"{above} / {below}, p50 with one caller"] = _pairs(
            *([each.window.percentile(50) for each in runs[side][first]] for side in (above, below))
        )
    for name in SIDES:
        windows = [each.window for each in runs[name].get(busy, ())]
        ratios[f"{name}, p99 / p50 at {busy} load"] = _pairs(
            [each.percentile(99) for each in windows], [each.percentile(50) for each in windows]
        )
    paid = {name: sum(_busiest(runs[name], plan)[who] for who in _PAID[name]) for name in SIDES}
    own = {name: paid[name] - (0 if name == IN_PROCESS else _busiest(runs[name], plan)[CALLER]) for name in SIDES}
    # A caller on another machine does not take the cores of the service.
    ratios["in process / gateway, processor time of an image without the caller's"] = round(
        own[IN_PROCESS] / own[GATEWAY], 3
    )
    return ratios


def _pairs(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return figure([first / second for first, second in zip(above, below, strict=True)], digits=3)


def _by_round(loads: dict[str, list[Measured]], plan: Plan) -> list[list[float]]:
    """Throughput, (rounds, concurrencies)."""
    return [[loads[str(callers)][turn].window.throughput for callers in plan.callers] for turn in range(plan.rounds)]


def _capacity(loads: dict[str, list[Measured]], plan: Plan) -> float:
    """Answers a second of the best concurrency, each by its median over rounds."""
    return max(float(np.median(each)) for each in np.transpose(_by_round(loads, plan)))


def _busiest(loads: dict[str, list[Measured]], plan: Plan) -> dict[str, float]:
    """Processor milliseconds of an image by process, at the concurrency that gives most answers."""
    most = max(plan.callers, key=lambda callers: np.median([each.window.throughput for each in loads[str(callers)]]))
    found = loads[str(most)]
    return {who: _mean([each.cpu[who] for each in found]) for who in found[0].cpu}


def _table(name: str, loads: dict[str, Any]) -> Table:
    """The columns of Triton's perf_analyzer."""
    table = Table(title=f"{name}, milliseconds", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("load", "per s", "client", "decode", "queue", "compute", "p50", "p90", "p95", "p99", "failed"):
        table.add_column(column, justify="right")
    for load, told in loads.items():
        times = [f"{told[f'{part}_ms']:.1f}" for part in ("client", "decode", "queue", "compute")]
        late = [f"{told[f'p{percent}_ms']['all']:.1f}" for percent in PERCENTILES]
        table.add_row(load, f"{told['throughput']['median']:.1f}", *times, *late, str(told["failed"]))
    return table


def _rotated(turn: int) -> list[str]:
    return [*SIDES[turn % len(SIDES) :], *SIDES[: turn % len(SIDES)]]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
