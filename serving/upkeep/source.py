"""Where a running service looks for its next bundle.

| the place | the bundle is |
|---|---|
| a bundle, or a link to one | what stands there now: the link is set anew, or the folder exchanged |
| a folder of bundles | the last one by its name, numbers by their value: `v10` comes after `v9` |
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from bundle.errors import BundleMissing
from bundle.manifest import MANIFEST

MAX_FILES = 100_000  # that are looked at
Stamp = tuple[tuple[str, int, int, int], ...]  # (name, bytes, time of change in ns, inode) of each file


class Source:
    """`look` tells of what is new at a place, once it has stood still from one look to the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[str, Stamp] | None = None  # what was told of last
        self._moving: tuple[str, Stamp] | None = None  # what the last look found, and may still be being copied

    def candidates(self) -> list[Path]:
        """Bundles at the place, the one to serve first; raises BundleMissing where there is none."""
        if not self.path.is_dir():
            raise BundleMissing(f"there is no bundle at {self.path}", hint="Give a bundle, or a folder of bundles.")
        if (self.path / MANIFEST).is_file():
            return [self.path]
        found = [each for each in self.path.iterdir() if not each.name.startswith(".") and each.is_dir()]
        if not found:
            raise BundleMissing(f"{self.path} holds no bundle", hint="Give a bundle, or a folder of bundles.")
        return sorted(found, key=lambda each: _natural(each.name), reverse=True)

    def look(self) -> Path | None:
        """What is to be served and was not told of before, if it has stood still since the last look."""
        found = self._first()
        if found is None or found == self._known:
            self._moving = None
            return None
        if found != self._moving:
            self._moving = found
            return None
        self._known, self._moving = found, None
        return Path(found[0])

    def note(self) -> None:
        """What stands there now is known already."""
        self._known = self._first()

    def forget(self) -> None:
        """Tell again of what stands there, also if it was told of and refused."""
        self._known = None

    def _first(self) -> tuple[str, Stamp] | None:
        try:
            path = self.candidates()[0]
            return os.path.realpath(path), tuple(_stamps(path))
        except (BundleMissing, OSError):
            return None  # it is being exchanged at this moment, or is gone: what is served goes on


def _stamps(path: Path) -> Iterator[tuple[str, int, int, int]]:
    seen = 0
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            if (seen := seen + 1) > MAX_FILES:
                return
            file = os.path.join(folder, name)
            status = os.lstat(file)
            yield file, status.st_size, status.st_mtime_ns, status.st_ino


def _natural(name: str) -> list[tuple[int, str]]:
    """A name by which numbers are ordered by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
