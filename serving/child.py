"""A server of somebody else's that belongs to an object of ours: one process, its log, and a folder, which go together.

with TritonServer(...) as server:  # a Child
    server.pid
"""

import contextlib
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

from bundle.errors import ServerError
from serving.processes import end_group, launch
from serving.workspace import Workspace


class Child(ABC):
    """Each kind has its own `start`. `on_log` gets every line of its log, the last `lines` of them are kept."""

    who: ClassVar[str]  # as sentences call it
    stop_seconds: ClassVar[float]  # that it has to end in good order, where `stop` is told nothing else

    def __init__(self, on_log: Callable[[str], None] | None, *, lines: int) -> None:
        self._on_log = on_log
        self._log: deque[str] = deque(maxlen=lines)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._workspace: Workspace | None = None

    @property
    def pid(self) -> int:
        """Its process id, which leads the group of its own processes; raises ServerError while there is none."""
        if self._process is None:
            raise ServerError(f"{self.who} is not running")
        return self._process.pid

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers; raises ServerError, and then nothing is left."""

    def stop(self, seconds: float | None = None) -> None:
        """End its every process, after at most `seconds`, and remove what was written; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            end_group(process, self.stop_seconds if seconds is None else seconds)
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None
        if self._workspace is not None:
            self._workspace.remove()
            self._workspace = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], workspace: Workspace) -> None:
        """Run a command in the workspace, and read what it says."""
        self._process = launch(command, environment=dict(environment), folder=workspace.path, lock=workspace.lock)
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()

    def _read_log(self, process: "subprocess.Popen[str]") -> None:
        with process.stdout or contextlib.nullcontext(()) as lines:
            for line in map(str.rstrip, lines):
                self._hear(line)

    def _hear(self, line: str) -> None:
        self._log.append(line)
        if self._on_log is not None:
            self._on_log(line)
