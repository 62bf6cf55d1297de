"""Long work shows itself on stderr: what, how far, and how long still.

On a terminal it is a bar. Elsewhere (a log, a pipe, a job in the night) it is a plain line every twenty seconds, also
while one step takes minutes, so that whoever looks sees something that lives.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

EVERY = 20.0  # seconds between two lines off a terminal
T = TypeVar("T")


class Work:
    """One piece of work on `total` things called `unit`; None where nobody has counted them.

    Whoever prints meanwhile gives his `console`, and a bar on it makes room; a quiet one keeps the work quiet. A bar
    appears `after` seconds, a line every `every` seconds of `clock`. `what` and `total` may change on the way.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "images",
        console: Console | None = None,
        rated: bool = False,
        after: float = 0.0,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.rated = what, total, unit, rated
        self.done = self.worked = 0  # of those that are done, the ones that were done here, not before
        self._console = console if console is not None and console.is_terminal else _talk(console)
        self._after, self._every, self._clock = after, every, clock
        self._begun = self._reached = clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self._begun = self._reached = self._clock()
        if self._console.quiet:
            return self
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Count(self), _Left(self))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(self.what, total=self.total)
            if self._after <= 0:
                self._bar.start()
                return self
        self._thread = threading.Thread(target=self._speak, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None and self._bar.live.is_started:
            self._show()
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.at(self.done + count, self.worked + count)

    def at(self, done: int, worked: int) -> None:
        """`done` of all are done by now, `worked` of them since this began: the others were found finished."""
        self.done, self.worked, self._reached = done, worked, self._clock()
        self._show()

    def __str__(self) -> str:
        """What, how far, how long still, in one line."""
        return ", ".join(part for part in (f"{self.what} {self.count()}".rstrip(), self.left()) if part)

    def count(self) -> str:
        """How far; nothing where nothing is counted."""
        if self.total:
            return f"{self.done:,}/{self.total:,} {self.unit}"
        return f"{self.done:,} {self.unit}" if self.done else ""

    def left(self) -> str:
        """How fast, if that was asked for, and how long still; how long so far where that cannot be known, as in a step
        that has taken as long as all that are left should.
        """
        now = self._clock()
        rate = self.worked / max(self._reached - self._begun, 1e-3)
        told = [f"{rate:,.1f} {self.unit}/s"] if self.rated and self.worked else []
        left = f"{duration(now - self._begun)} so far"
        if self.total and self.worked:
            rest = (self.total - self.done) / rate - (now - self._reached)
            left = f"about {duration(max(rest, 1.0))} left" if rest > 0 else left
        if not (self.worked and self.done == self.total):
            told.append(left)
        return ", ".join(told)

    def tell(self) -> None:
        """One plain line on stderr."""
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more; the work goes on
            self._console.print(str(self), markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=self.what, completed=self.done, total=self.total)

    def _speak(self) -> None:
        if self._bar is not None:
            if not self._over.wait(self._after):
                self._bar.start()
            return
        while not self._over.wait(self._every):
            self.tell()


def shown(
    items: Sequence[T], what: str, *, unit: str, console: Console | None = None, after: float = 0.0
) -> Iterator[T]:
    """Every item in turn, as Work on all of them."""
    with Work(what, len(items), unit=unit, console=console, after=after) as work:
        for item in items:
            yield item
            work.advance()


def duration(seconds: float) -> str:
    """40 s, 4 min, 2 h 10 min: as exact as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _talk(console: Console | None) -> Console:
    """Standard output is for results."""
    return Console(stderr=True, quiet=console is not None and console.quiet)


class _Count(ProgressColumn):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def render(self, task: Task) -> Text:
        return Text(self.work.count())


class _Left(ProgressColumn):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def render(self, task: Task) -> Text:
        return Text(self.work.left())
