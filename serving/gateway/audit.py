"""The audit log: who asked what and what was answered, one JSON line a request; never an image, a key or a path."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.backlog import Backlog
from serving.gateway.rotation import RotatedFile

MIB = 1024 * 1024
MOST_WAITING = 10_000
WAITING_BYTES = 128 * MIB
FULL_QUEUE = "there is more to write than can be written"


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Which file, how large it may become, and how many of its kind are kept, itself included."""

    path: Path
    bytes: int = 64 * MIB
    files: int = 10

    def __post_init__(self) -> None:
        if not 4096 <= self.bytes < 2**50:
            raise ValueError(f"--audit-bytes {self.bytes} is less than 4096, or no sensible number")
        if not 1 <= self.files <= 1000:
            raise ValueError(f"--audit-files {self.files} is not between 1 and 1000")


@dataclass(frozen=True, kw_only=True)
class _Line:
    facts: Mapping[str, Any]
    image: bytes


class AuditLog:
    """`write` never waits; `lost(count, why)` is called for lines that are not written. Raises OptionError at once."""

    def __init__(self, options: AuditOptions, *, lost: Callable[[int, str], object]) -> None:
        self._file = RotatedFile(options.path, most_bytes=options.bytes, files=options.files)
        self._lost = lost
        self._backlog: Backlog[_Line] = Backlog(
            self._append, self._failed, items=MOST_WAITING, most_bytes=WAITING_BYTES
        )

    def write(self, facts: Mapping[str, Any], image: bytes) -> None:
        """Have a line written; of the image its SHA-256 and its size are."""
        if not self._backlog.put(_Line(facts=facts, image=image), len(image)):
            self._lost(1, FULL_QUEUE)

    def close(self, seconds: float) -> None:
        """Write what waits, for at most `seconds`."""
        if left := self._backlog.close(seconds):
            self._lost(left, "the service ended before they were written")
        else:
            self._file.close()

    def _append(self, line: _Line) -> None:
        facts = dict(line.facts)
        if line.image:
            facts |= {"bytes": len(line.image), "sha256": hashlib.sha256(line.image).hexdigest()}
        self._file.append(json.dumps(facts).encode() + b"\n")

    def _failed(self, problem: Exception) -> None:
        reason = getattr(problem, "strerror", None) or type(problem).__name__
        self._lost(1, str(reason).lower())
