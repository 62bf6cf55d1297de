"""The gateway's log: one JSON object a line, without image bytes, keys or secrets.

Lines are written by a thread of their own from a bounded queue, so that a reader of the log who has stopped reading
costs lines and not answers.
"""

import contextlib
import json
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_LINES = 10_000
MAX_TEXT = 200  # characters of one value


class Journal:
    """`write(event, **facts)` never blocks; `lost` is called for a line that did not fit."""

    def __init__(self, stream: TextIO | None, *, lost: Callable[[], object] = lambda: None) -> None:
        self._stream, self.lost = stream, lost
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._writer = threading.Thread(target=self._work, name="journal", daemon=True)
        self._writer.start()

    def write(self, event: str, **facts: Any) -> None:
        """Log one event; text is cut, and what JSON does not know is given as text."""
        if self._stream is None:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        short = {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items()}
        self.copy(json.dumps({"time": time, "event": event, **short}, default=str))

    def copy(self, line: str) -> None:
        """Log a line that is JSON already: of a process that stands beside the gateway."""
        if self._stream is None:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost()

    def close(self, seconds: float = 2.0) -> None:
        """Write what is left, for at most `seconds`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=seconds)
        self._writer.join(timeout=seconds)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._stream is not None:
                with contextlib.suppress(OSError, ValueError):  # closed, or a full disk behind it
                    self._stream.write(line + "\n")
                    self._stream.flush()
