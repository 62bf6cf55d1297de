"""Keeping services up: look at each every few seconds, and replace what does not answer, with growing patience.

Everything happens in the thread that calls `keep`, because the kernel ends a server with the thread that started it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bundle.errors import FieldmarkError

LOOK_SECONDS = 2.0  # between two looks
PATIENCE_SECONDS = 5.0  # without an answer, until something counts as hung
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before something is replaced for the second time, and at most
CALM_SECONDS = 60.0  # without trouble, after which the first replacement is immediate again
STEP_SECONDS = 0.1
Stopped = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """`who` needs to be replaced, `cause` says why in words, `mend(stopped)` does it or raises a FieldmarkError.

    `mend` waits until it answers again, and asks `stopped` meanwhile. It returns what else is to be said, if anything.
    """

    who: str
    cause: str
    mend: Callable[[Stopped], str]


class Service(Protocol):
    """What can be kept up."""

    def look(self) -> list[Trouble]:
        """What is wrong at this moment; takes no longer than a few unanswered probes."""


class BackOff:
    """When something may be replaced again: at once, then after 1, 2, 4 ... 30 s; after a calm minute at once again."""

    def __init__(self) -> None:
        self._count = 0
        self._next = self._last = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it may be replaced now. Times are in seconds of the monotonic clock."""
        return now >= self._next

    def tried(self, began: float, now: float) -> float:
        """It was replaced from `began` until `now`, or that was tried; returns the seconds until it may be again."""
        self._count = 0 if began - self._last > CALM_SECONDS else self._count + 1
        wait = min(LONGEST_WAIT, FIRST_WAIT * float(2 ** min(self._count, 16)))
        self._last, self._next = now, now + wait
        return wait


def keep(services: Sequence[Service], stopped: Stopped, tell: Callable[[str, dict[str, object]], None]) -> None:
    """Keep them up until `stopped` says so. `tell(event, facts)` hears of every replacement."""
    patience: dict[str, BackOff] = {}
    due = time.monotonic()
    while not wait_until(due, stopped):
        due = time.monotonic() + LOOK_SECONDS
        for service in services:
            for trouble in service.look():
                if not stopped() and patience.setdefault(trouble.who, BackOff()).due(time.monotonic()):
                    _mend(trouble, patience[trouble.who], stopped, tell)
                    due = time.monotonic()  # it may have taken long: look at the others at once


def wait_until(due: float, stopped: Stopped) -> bool:
    """Wait for a moment of the monotonic clock; returns early, and True, when `stopped` says so."""
    while not (said := stopped()) and (left := due - time.monotonic()) > 0:
        time.sleep(min(STEP_SECONDS, left))
    return said


def _mend(
    trouble: Trouble, patience: BackOff, stopped: Stopped, tell: Callable[[str, dict[str, object]], None]
) -> None:
    tell("trouble", {"who": trouble.who, "cause": trouble.cause})
    began = time.monotonic()
    try:
        done = trouble.mend(stopped)
    except FieldmarkError as problem:
        wait = patience.tried(began, time.monotonic())
        tell("not_replaced", {"who": trouble.who, "cause": problem.what, "again_seconds": wait})
        return
    now = time.monotonic()
    patience.tried(began, now)
    if not stopped():
        facts: dict[str, object] = {"who": trouble.who, "seconds": round(now - began, 1)}
        tell("replaced", facts | ({"note": done} if done else {}))
