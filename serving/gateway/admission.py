"""A bounded queue before a network: who may go on, who waits, who is sent away at once.

Triton's own queue cannot be bounded without stalls (docs/triton.md), so at most `concurrency` requests are ever there;
the rest waits here, in order, and what does not fit is refused while refusing is still cheap.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator

from bundle.errors import RequestRefused
from serving.gateway import failures

_SMOOTHING = 0.1  # weight of the newest request in the mean time of service
_LEAST_RETRY, _MOST_RETRY = 0.1, 30.0  # seconds


class Admission:
    """`concurrency` requests at a time, `queue_size` more that wait, with at most `queue_bytes` bytes of images."""

    def __init__(self, *, concurrency: int, queue_size: int, queue_bytes: int) -> None:
        self.concurrency, self.queue_size, self.queue_bytes = concurrency, queue_size, queue_bytes
        self.working = 0
        self.waiting_bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._service_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def enter(self, size: int, seconds: float, *, patient: bool = False) -> AsyncIterator[None]:
        """Hold a place while the body runs; `size` is the image's bytes, `seconds` what is left until the deadline.

        Raises RequestRefused at once if the queue is full or the wait would outlast `seconds`. One of a stream is
        `patient`: its stream reads no further request meanwhile, so it adds nothing to what waits and is not refused.
        """
        if self.working >= self.concurrency or self._waiting:
            if not patient:
                self._check_room(size, seconds)
            await self._wait(size)
        else:
            self.working += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._service_seconds += _SMOOTHING * (time.monotonic() - started - self._service_seconds)
            self._leave()

    def expected_wait(self) -> float:
        """Seconds that a request which came now would wait, as far as the last ones tell."""
        return self._service_seconds * (self.waiting + 1) / self.concurrency

    def _check_room(self, size: int, seconds: float) -> None:
        wait = self.expected_wait()
        retry = min(max(wait, _LEAST_RETRY), _MOST_RETRY)
        if self.waiting >= self.queue_size or self.waiting_bytes + size > self.queue_bytes:
            what = f"the service is overloaded: {self.waiting} requests are waiting"
            raise RequestRefused(what, hint="Try again later.", reason=failures.OVERLOADED, retry_after=retry)
        if wait > seconds:
            what = f"the service is overloaded: the wait of about {wait:.1f} s would outlast the deadline"
            raise RequestRefused(what, hint="Try again later.", reason=failures.OVERLOADED, retry_after=retry)

    async def _wait(self, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.waiting_bytes += size
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its place was given to it in the same moment: pass it on
                self._leave()
            raise
        finally:
            self.waiting_bytes -= size
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)

    def _leave(self) -> None:
        """Give the place to who waits longest, if anybody does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.working -= 1


class Memory:
    """Bytes of images that all streams together hold: above `most`, none of them reads another request."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._free = asyncio.Event()
        self._free.set()

    async def room(self) -> None:
        """Wait until less than `most` bytes are held."""
        await self._free.wait()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes while the body runs."""
        self._add(size)
        try:
            yield
        finally:
            self._add(-size)

    def _add(self, size: int) -> None:
        self.held += size
        if self.held < self.most:
            self._free.set()
        else:
            self._free.clear()
