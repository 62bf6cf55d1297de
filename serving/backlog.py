"""Work that nobody waits for: a bounded queue and a thread behind it, so that a slow disk costs copies, not answers."""

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """`put` never blocks. `work` gets the items one by one, in a thread of its own; what it raises goes to `failed`.

    At most `items` of them are held, with at most `most_bytes` bytes. `chore` is called at the beginning and then every
    `chore_seconds`, between two items.
    """

    def __init__(
        self,
        work: Callable[[Item], object],
        failed: Callable[[Exception], object],
        *,
        items: int,
        most_bytes: int,
        chore: Callable[[], object] | None = None,
        chore_seconds: float = math.inf,
    ) -> None:
        self._work, self._failed, self._chore, self._chore_seconds = work, failed, chore, chore_seconds
        self._most, self._most_bytes = items, most_bytes
        self._waiting: deque[tuple[Item, int]] = deque()
        self._held = self._held_bytes = 0  # with what is worked on
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
        self._thread.start()

    def put(self, item: Item, size: int) -> bool:
        """Have an item of `size` bytes worked on; False if there is no room for it, or nobody works any more."""
        with self._changed:
            if self._closed or self._held >= self._most or self._held_bytes + size > self._most_bytes:
                return False
            self._waiting.append((item, size))
            self._held, self._held_bytes = self._held + 1, self._held_bytes + size
            self._changed.notify()
        return True

    def close(self, seconds: float) -> int:
        """Take nothing more, wait for at most `seconds` until all is done; returns how many items are not."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=seconds)
        with self._changed:
            self._waiting.clear()
            return self._held

    def _run(self) -> None:
        due = -math.inf if self._chore is not None else math.inf
        while True:
            if self._chore is not None and time.monotonic() >= due:
                self._do(self._chore)
                due = time.monotonic() + self._chore_seconds
            with self._changed:
                if not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait(max(0.0, due - time.monotonic()) if math.isfinite(due) else None)
                    continue
                item, size = self._waiting.popleft()
            self._do(functools.partial(self._work, item))
            with self._changed:
                self._held, self._held_bytes = self._held - 1, self._held_bytes - size

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as problem:  # of whatever library is behind it: the thread must go on
            self._failed(problem)
