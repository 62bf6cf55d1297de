"""One row: what is tried, what must happen, what happened. An attack runs beside honest callers at both doors."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability.deployment import Deployment, Door
from benchmarks.reliability.neighbours import Known, Told, neighbours
from benchmarks.reliability.wire import Heard, outcome
from bundle import Bundle
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

SETTLE_SECONDS = 2.0  # before an attack, and after it, before memory and processes are looked at
KEPT_MB = 50.0  # of hundreds that were sent, what may be left in all processes together
NOTICED_MB = 10.0  # of memory that one process has grown by
RECOVERY_SECONDS = 10.0  # the longest that anything may be away


class Skipped(Exception):
    """The row cannot be tried here; the text says why."""


@dataclass(kw_only=True)
class Outcome:
    """What happened, in words and numbers, and whether it is what must happen."""

    happened: str
    held: bool
    numbers: dict[str, float] = field(default_factory=dict)


class Ground:
    """Where rows run: one deployment that they share while it is whole. `quick` rows are a tenth of their size."""

    def __init__(self, bundle: Bundle, folder: Path, *, quick: bool) -> None:
        self.bundle, self.folder, self.quick = bundle, folder, quick
        self.known = Known(bundle)
        self._shared: Deployment | None = None

    @property
    def deployment(self) -> Deployment:
        """The shared one, started where there is none."""
        if self._shared is None:
            shared = Deployment(self.bundle.path, self.folder)
            shared.__enter__()
            self._shared = shared
        return self._shared

    def many(self, count: int) -> int:
        """So many, or a tenth of them in a rehearsal."""
        return max(1, count // 10) if self.quick else count

    def drop(self) -> None:
        """End the shared deployment; the next row that wants one gets a new one."""
        if self._shared is not None:
            self._shared.stop()
            self._shared = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """`tried` and `must` are sentences of docs/reliability.md. `spoils` tells that nothing may be shared afterwards."""

    name: str
    tried: str
    must: str
    run: Callable[[Ground], Outcome]
    spoils: bool = False


Attack = Callable[[Deployment, Heard], tuple[str, bool]]  # what happened in words, and whether that is as it must be


def beside_neighbours(ground: Ground, attack: Attack, deployment: Deployment | None = None) -> Outcome:
    """Run an attack while honest callers call at both doors: none of them may notice, and nothing may be replaced."""
    deployment, heard = deployment or ground.deployment, Heard()
    settle = SETTLE_SECONDS / 5 if ground.quick else SETTLE_SECONDS
    with contextlib.ExitStack() as calling:
        told = [calling.enter_context(neighbours(door, ground.known, heard)) for door in deployment.doors]
        time.sleep(settle)
        before, memory = deployment.pids(), deployment.memory()
        happened, held = attack(deployment, heard)
        time.sleep(settle)
    time.sleep(settle)
    after, grown = deployment.pids(), _grown(memory, deployment.memory())
    numbers = {**_counts(told, heard), "processes_replaced": len(set(before.items()) - set(after.items()))}
    numbers["memory_grown_mb"] = round(sum(grown.values()), 1)
    if most := [f"{name} {megabytes:+.0f} MB" for name, megabytes in grown.items() if megabytes > NOTICED_MB]:
        happened += f"; memory: {', '.join(most)}"
    held &= not any(numbers[each] for each in ("wrong_answers", "leaks", "neighbours_failed", "processes_replaced"))
    if heard.leaks:
        happened += f"; over the wire: {heard.leaks[0]!r}"
    failed: dict[str, int] = {}
    for each in told:
        for status, count in each.failed.items():
            failed[status] = failed.get(status, 0) + count
    if failed:
        happened += f"; neighbours were told {tally(failed)}"
    return Outcome(happened=happened, held=held and numbers["neighbours_answered"] > 0, numbers=numbers)


def tally(found: dict[str, int]) -> str:
    """Statuses and how often each came, most often first."""
    return ", ".join(f"{count:,} x {status}" for status, count in sorted(found.items(), key=lambda each: -each[1]))


def answers(door: Door, ground: Ground, network: str) -> bool:
    """Whether one call gets the right answer, soon."""
    request = v1.ClassifyRequest(image=ground.known.files[0], network=network)
    with door.channel() as channel:
        stub: Any = FieldmarkStub(channel)
        answer, _ = outcome(Heard(), stub.Classify, request, timeout=3, metadata=door.metadata)
    return answer is not None and ground.known.right(answer, 0, network)


def whole(deployment: Deployment, ground: Ground) -> bool:
    """Whether every network answers at both doors."""
    networks = ground.known.manifest.networks
    return all(answers(door, ground, network) for door in deployment.doors for network in networks)


def _counts(told: list[Told], heard: Heard) -> dict[str, float]:
    return {
        "neighbours_answered": sum(each.answered for each in told),
        "neighbours_failed": sum(each.failures for each in told),
        "wrong_answers": sum(each.wrong for each in told),
        "texts": heard.texts,
        "leaks": len(heard.leaks),
    }


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Megabytes that each process has grown by."""
    return {name: megabytes - before.get(name, 0.0) for name, megabytes in after.items()}
