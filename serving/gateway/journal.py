"""The gateway's log: one JSON object a line, without image bytes, keys or secrets.

Lines are written by a thread of their own from a bounded queue, so that a reader of the log who has stopped reading
costs lines and not answers.
"""

import contextlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_LINES = 10_000
MAX_TEXT = 200  # characters of one value
_BYTES = re.compile(r"""\bb(['"])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL)  # as Python shows them


class Journal:
    """`write(event, **facts)` never blocks; `lost` is called for a line that did not fit."""

    def __init__(self, stream: TextIO | None, *, lost: Callable[[], object] = lambda: None) -> None:
        self._given, self._stream, self.lost = stream, _own(stream), lost
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._said: dict[str, tuple[float, int]] = {}  # when something was said last, and how often it was not since
        self._writer = threading.Thread(target=self._work, name="journal", daemon=True)
        self._writer.start()

    def write(self, event: str, **facts: Any) -> None:
        """Log one event; text is cut, and what JSON does not know is given as text."""
        if self._stream is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        short = {name: shorten(value) if isinstance(value, str) else value for name, value in facts.items()}
        self.copy(json.dumps({"time": now, "event": event, **short}, default=str))

    def seldom(self, event: str, of: str, seconds: float, **facts: Any) -> None:
        """Log an event at most once in `seconds` for each `of`; `unsaid` is how often it happened since it was said."""
        said, unsaid = self._said.get(f"{event} {of}", (-math.inf, 0))
        if time.monotonic() - said < seconds:
            self._said[f"{event} {of}"] = (said, unsaid + 1)
            return
        self._said[f"{event} {of}"] = (time.monotonic(), 0)
        self.write(event, **facts, **({"unsaid": unsaid} if unsaid else {}))

    def copy(self, line: str) -> None:
        """Log a line that is JSON already: of a process that stands beside the gateway."""
        if self._stream is None:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost()

    @contextlib.contextmanager
    def libraries(self) -> Iterator[None]:
        """While the body runs, what libraries log becomes lines of this log, and none of their own on stderr."""
        handler = _Libraries(self)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)

    def close(self, seconds: float = 2.0) -> None:
        """Write what is left, for at most `seconds`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=seconds)
        self._writer.join(timeout=seconds)
        if self._stream is not None and self._stream is not self._given and not self._writer.is_alive():
            with contextlib.suppress(OSError):
                self._stream.close()

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._stream is not None:
                with contextlib.suppress(OSError, ValueError):  # closed, or a full disk behind it
                    self._stream.write(line + "\n")
                    self._stream.flush()


class _Libraries(logging.Handler):
    """Writes the records of Python's logging into a journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        facts = {"library": record.name, "level": record.levelname.lower(), "text": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:  # its name alone: its text may be anything
            facts["exception"] = record.exc_info[0].__name__
        self._journal.write("library", **facts)


def _own(stream: TextIO | None) -> TextIO | None:
    """Where `stream` leads, by a file of its own: a writer that waits would hold the lock of `stream`, and so the end
    of the process, which flushes it."""
    if stream is None:
        return None
    try:
        stream.flush()
        return open(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError):  # a stream in memory
        return stream


def shorten(text: str) -> str:
    """At most `MAX_TEXT` characters of a text, without the bytes that an exception may show: they may be an image's."""
    return _BYTES.sub("b'...'", text)[:MAX_TEXT]
