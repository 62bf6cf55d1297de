"""What to score: the images of a folder, or the paths of a list file, as a stream in one defined order.

Both sources can be walked again and give the same files in the same order, which is what makes a job resumable. Neither
keeps what it has passed: memory does not grow with the number of files (a folder costs the names of the directories
that are open at the moment; ten million files in one flat directory are better given as a list).

Names are bytes to Linux. Inside Python they are text decoded with surrogateescape, so names that are not UTF-8 survive.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import InputError, ScoringError
from bundle.image import SUFFIXES

MAX_LINE_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """`path` is the name as the user gave it, `location` what to open; `problem` says why it cannot even be tried."""

    path: str
    location: str
    problem: str = ""


class Source:
    """A folder of images (recursive) or a text file with one path a line. Use `Source.open`."""

    def __init__(self, path: Path, *, is_folder: bool) -> None:
        self.path = path
        self.is_folder = is_folder

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Look at `path` and decide what it is; raises InputError when it is neither a folder nor a list."""
        try:
            mode = path.stat().st_mode
        except OSError as problem:
            raise InputError(
                f"there is no folder or list file at {path} ({problem.strerror})",
                hint="Give a folder of images, or a text file with one path a line.",
            ) from None
        if stat.S_ISDIR(mode):
            if not os.access(path, os.R_OK | os.X_OK):
                raise InputError(f"the folder {path} cannot be read", hint="Check its permissions.")
            return cls(path, is_folder=True)
        if not stat.S_ISREG(mode):
            raise InputError(
                f"{path} is neither a folder nor a regular file",
                hint="A job reads its list more than once; save it as a file first.",
            )
        with path.open("rb") as stream:
            head = stream.read(4096)
        if b"\0" in head or path.suffix.lower() in SUFFIXES:
            raise InputError(
                f"{path} is not a list of paths in UTF-8 text",
                hint="Give a folder of images, or a text file with one path a line.",
            )
        return cls(path, is_folder=False)

    def files(self) -> Iterator[SourceFile]:
        """Every file, in the source's order: a folder's sorted by path, a list's line by line."""
        return _walk(os.fspath(self.path)) if self.is_folder else _lines(self.path)

    def check_present(self) -> None:
        """Raise ScoringError when the source has gone away (an unmounted disk), so that its files do not fail one by
        one."""
        try:
            self.path.stat()
        except OSError as problem:
            raise ScoringError(
                f"{self.path} can no longer be reached ({problem.strerror})",
                hint="What was scored is safe. Bring it back and run the same command again to continue.",
            ) from None


def _walk(root: str) -> Iterator[SourceFile]:
    """Depth first, so that the order is that of the sorted paths.

    Hidden names are skipped. Links are followed; a link to a directory that it lies in itself is a loop and is skipped.
    A directory that cannot be listed becomes one entry with its problem, for else its files would be lost in silence.
    """
    pending: list[tuple[str, list[str], tuple[int, int]]] = []
    here: str | None = root
    while True:
        if here is not None:
            try:
                status = os.stat(here)
                identity = (status.st_dev, status.st_ino)
                if all(identity != parent for _, _, parent in pending):
                    pending.append((here, _names(here), identity))
            except OSError as problem:
                yield SourceFile(here, here, f"{here}: the folder cannot be listed ({problem.strerror})")
            here = None
        while pending and not pending[-1][1]:
            pending.pop()
        if not pending:
            return
        folder, names, _ = pending[-1]
        path = os.path.join(folder, names.pop())
        if path.endswith("/"):
            here = path[:-1]
        else:
            yield SourceFile(path, path)


def _names(folder: str) -> list[str]:
    """Images and directories in `folder`, last first, so that pop() frees them in order. Directories end in a slash:
    sorting them so gives the order of whole paths."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_directory = entry.is_dir()
            except OSError:  # a link to itself
                is_directory = False
            if is_directory:
                names.append(entry.name + "/")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                names.append(entry.name)
    names.sort(reverse=True)
    return names


def _lines(path: Path) -> Iterator[SourceFile]:
    """Blank lines and lines that begin with '#' are ignored; a relative path starts at the list's own folder."""
    folder = os.path.dirname(os.fspath(path))
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}: line {number} is longer than {MAX_LINE_BYTES:,} bytes",
                    hint="A list holds one path a line.",
                )
            line = line.removeprefix(_BOM) if number == 1 else line
            line = line.rstrip(b"\r\n")
            if line.strip() and not line.startswith(b"#"):
                text = os.fsdecode(line)
                yield SourceFile(text, os.path.join(folder, text))
