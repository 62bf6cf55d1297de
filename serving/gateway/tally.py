"""What `fieldmark serve` lets the gateway's metrics show, in a file: it outlives the gateway."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bundle.errors import FieldmarkError
from bundle.files import write_text


@dataclass(frozen=True, kw_only=True)
class Told:
    """How often what was `replaced`, and the PEM files of `certificates` that callers depend on."""

    replaced: dict[str, int] = field(default_factory=dict)
    certificates: tuple[Path, ...] = ()


class Tally:
    """Counts by who was replaced, in a file. Every one of `whos` is there from the beginning, with 0."""

    def __init__(self, path: Path, whos: Iterable[str], certificates: Iterable[Path] = ()) -> None:
        self.path, self._counts = path, dict.fromkeys(whos, 0)
        self._certificates = [str(file.absolute()) for file in certificates]
        self._write()

    def count(self, who: str) -> None:
        """One more. A file that cannot be written costs the figure, and not who is replaced."""
        self._counts[who] = self._counts.get(who, 0) + 1
        with contextlib.suppress(OSError, FieldmarkError):
            self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps({"replaced": self._counts, "certificates": self._certificates}))


def read_tally(path: Path) -> Told:
    """What a file tells; nothing, where there is no such file or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Told(
            replaced={str(who): int(count) for who, count in found["replaced"].items()},
            certificates=tuple(Path(file) for file in found["certificates"]),
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return Told()
