"""Where the items come from: something that tells of images again and again, and lets each be read."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bundle import Bundle
from bundle.errors import ImageGone, ReviewError
from bundle.files import open_regular
from bundle.places import scheme_of
from review.store.item import Item
from scoring.sources import in_range

DAY = re.compile(r"\d{4}-\d\d-\d\d")
CHANGED = "the image is not the one that was answered: somebody changed the file"


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A file's `size` in bytes and `mtime_ns` when it was answered; None is not known, or means nothing here."""

    size: int | None = None
    mtime_ns: int | None = None

    def check(self, size: int, mtime_ns: int | None = None) -> None:
        """Raise ImageGone where a file is another one by now."""
        if self.size not in (None, size) or (mtime_ns is not None and self.mtime_ns not in (None, mtime_ns)):
            raise ImageGone(CHANGED)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What pages call an item's origin, and those without one: `one` of them, or `many`; what its `time` is, what was
    `done` to its image, and what its `name` is.
    """

    origin: str
    one: str
    many: str
    time: str
    done: str
    name: str


CALLERS = Words(
    origin="caller",
    one="a caller without a name",
    many="callers without a name",
    time="received",
    done="sent",
    name="request or key",
)
FOLDERS = Words(
    origin="folder", one="the top folder", many="the top folder", time="file changed", done="scored", name="file"
)


class Source(Protocol):
    """A quarantine, a score folder or a table. `place` names it for good."""

    place: str
    words: Words
    totals: dict[str, int]  # images that each network answered in all, where the source knows
    whole: bool  # it tells of every image, flagged or not: none was drawn at random
    tellings: int  # how often it has told of all that it has; 0 where news are only what is new

    @property
    def notices(self) -> list[str]:
        """Sentences for the page: what could not be read."""
        ...

    def news(self) -> Iterator[Item]:
        """What it has not told yet; raises ReviewError when it cannot be reached now."""
        ...

    def forget(self) -> None:
        """Tell of everything again: what was told last has not been stored."""
        ...

    def read(self, image: str, most: int, was: Stamp) -> bytes:
        """The bytes of an image as they were sent, at most one more than `most`; raises ImageGone, also for a file that
        is not what it was."""
        ...


def open_source(given: str, bundle: Bundle, *, images: Path | None = None) -> Source:
    """What lies at `given`; raises ReviewError, or what its reader raises on a source of another bundle.

    `images` is where a scored folder lies now.
    """
    if not scheme_of(given):
        path = Path(given)
        if not path.is_dir():
            raise ReviewError(
                f"there is no folder at {given}",
                hint="Give a quarantine, a folder that 'fieldmark score' wrote, or a Delta table.",
            )
        if (path / "_fieldmark.json").exists():
            from review.sources.scores import ScoreSource

            return ScoreSource(path, bundle, images)
        if (path / "_delta_log").is_dir():
            from review.sources.table import TableSource

            return TableSource(given, bundle, images)
        names = [name for name in os.listdir(path) if not name.startswith(".")]
        if names and not any(DAY.fullmatch(name) for name in names):
            raise ReviewError(
                f"{given} is neither a quarantine, nor scores, nor a Delta table",
                hint="A quarantine holds a folder for each day, scores hold _fieldmark.json, a table _delta_log.",
            )
    else:
        from scoring.table.current import is_table

        if is_table(given):
            from review.sources.table import TableSource

            return TableSource(given, bundle, images)
    from review.sources.quarantine import QuarantineSource

    return QuarantineSource(given)


def read_file(path: Path, most: int, was: Stamp, *, inside: Path | None = None) -> bytes:
    """The bytes of a regular file; raises ImageGone for what is not there, has changed, or is not below `inside`."""
    try:
        if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
            raise ImageGone("the image lies outside its source's folder, so it is not opened")
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
            was.check(status.st_size, in_range(status.st_mtime_ns))
            return stream.read(most + 1)
    except FileNotFoundError:
        raise ImageGone("the image is gone: it was deleted, or moved") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise ImageGone(f"the image cannot be read ({reason.lower()})") from None
