"""What `fieldmark serve` has replaced so far, in a file: it outlives the gateway, whose metrics show it."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from bundle.errors import FieldmarkError
from bundle.files import write_text


class Tally:
    """Counts by who was replaced, in a file. Every one of `whos` is there from the beginning, with 0."""

    def __init__(self, path: Path, whos: Iterable[str]) -> None:
        self.path, self._counts = path, dict.fromkeys(whos, 0)
        self._write()

    def count(self, who: str) -> None:
        """One more. A file that cannot be written costs the figure, and not who is replaced."""
        self._counts[who] = self._counts.get(who, 0) + 1
        with contextlib.suppress(OSError, FieldmarkError):
            self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps(self._counts))


def read_tally(path: Path) -> dict[str, int]:
    """The counts in a file, by who was replaced; nothing, where there is no such file or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(who): int(count) for who, count in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
