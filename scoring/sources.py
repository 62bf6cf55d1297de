"""What to score: the images of a folder, or the paths of a list file, as a stream in one defined order.

Both sources can be walked again and give the same files in the same order, which is what makes a job resumable. Neither
keeps what it has passed: memory does not grow with the number of files (a folder costs the names of the directories
that are open at the moment; ten million files in one flat directory are better given as a list).

A list holds paths and nothing else: one a line, just as it stands there, with blank lines between them at will. There
are no comments, since `#1.jpg` is a name, and no quotes; a URL gets a sentence instead of a score.

Names are bytes to Linux. Inside Python they are text decoded with surrogateescape, so names that are not UTF-8 survive.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.errors import InputError, ScoringError
from bundle.formats import count_passed_over, is_image, passed_over, suffixes
from bundle.places import scheme_of

MAX_LINE_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"
_PATH_OF_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # what is left of one in a Path


@dataclass(frozen=True, slots=True)
class SourceFile:
    """`path` is the name as the user gave it, `location` what to open; `problem` says why it cannot even be tried.

    `size` in bytes and `mtime_ns` are the file's when it was looked at, and None until then or where there is none. An
    object in a bucket has an `etag` too, and what goes into a table an `id`.
    """

    path: str
    location: str
    problem: str = ""
    size: int | None = None
    mtime_ns: int | None = None
    etag: str | None = None
    id: int | None = None

    def looked_at(self) -> "SourceFile":
        """The same with its size and time of last change, by which a later run tells whether it is another file now."""
        try:
            status = None if self.problem else os.stat(self.location)
        except (OSError, ValueError):  # it is gone, or no file can have such a name
            status = None
        return self if status is None else replace(self, size=status.st_size, mtime_ns=in_range(status.st_mtime_ns))

    def not_looked_at(self) -> "SourceFile":
        """The same without size and time: a later run takes it for another file."""
        return replace(self, size=None, mtime_ns=None)


def in_range(nanoseconds: int) -> int:
    """A time since 1970 as an int64 holds it: one before 1677 or beyond 2262 becomes the first or the last."""
    return max(-(2**63), min(nanoseconds, 2**63 - 1))


class Source:
    """A folder of images (recursive) or a text file with one path a line. Use `Source.open`.

    `identity` are the device and the inode of a folder. A list has none: it may be exchanged for another.
    """

    def __init__(self, path: Path, identity: tuple[int, int] | None) -> None:
        self.path = path
        self.identity = identity
        self.is_folder = identity is not None

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Look at `path` and decide what it is; raises InputError when it is neither a folder nor a list."""
        try:
            status = path.stat()
        except OSError as problem:
            if _PATH_OF_URL.match(str(path)):
                raise InputError(
                    f"{path} looks like a URL, and files are scored", hint="Mount or copy what it names, and give that."
                ) from None
            raise InputError(
                f"there is no folder or list file at {path} ({problem.strerror})",
                hint="Give a folder of images, or a text file with one path a line.",
            ) from None
        if stat.S_ISDIR(status.st_mode):
            if not os.access(path, os.R_OK | os.X_OK):
                raise InputError(f"the folder {path} cannot be read", hint="Check its permissions.")
            return cls(path, (status.st_dev, status.st_ino))
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{path} is neither a folder nor a regular file",
                hint="A job reads its list more than once; save it as a file first.",
            )
        with path.open("rb") as stream:
            head = stream.read(4096)
        if b"\0" in head or is_image(path.name):
            raise InputError(
                f"{path} is not a list of paths in UTF-8 text",
                hint="Give a folder of images, or a text file with one path a line.",
            )
        return cls(path, None)

    def from_root(self) -> "Source":
        """The same by its path from the root, and so are its files, however it was spelt."""
        return Source(Path(os.path.abspath(self.path)), self.identity)

    def files(self, passed: Counter[str] | None = None) -> Iterator[SourceFile]:
        """Every file, in the source's order: a folder's sorted by path, a list's line by line.

        `passed` counts a folder's files that are no images by their suffix.
        """
        return (
            _walk(os.fspath(self.path), Counter() if passed is None else passed)
            if self.is_folder
            else _lines(self.path)
        )

    def check_any(self) -> None:
        """Raise InputError when there is nothing to score; says what there is instead."""
        passed: Counter[str] = Counter()
        if next(self.files(passed), None) is not None:
            return
        if passed:
            raise InputError(
                f"{self.path} holds no images that can be read: {passed_over(passed)}",
                hint=f"Read are {' '.join(suffixes())}.",
            )
        raise InputError(f"{self.path} {'holds' if self.is_folder else 'names'} no images")

    def place_of(self, path: str) -> str:
        """Where a file of this source is, from the root, by its `path`; a URL stays as it is."""
        if scheme_of(path) and not self.is_folder:
            return path
        return os.path.abspath(path if self.is_folder else os.path.join(os.path.dirname(self.path), path))

    def check_present(self) -> None:
        """Raise ScoringError when the source has gone away, so that its files do not fail one by one. Where a disk was
        unmounted there is a folder still, and it is another one."""
        try:
            status = self.path.stat()
            if self.identity in (None, (status.st_dev, status.st_ino)):
                return
            why = "what is there now is another folder"
        except OSError as problem:
            why = str(problem.strerror)
        raise ScoringError(
            f"{self.path} can no longer be reached ({why})",
            hint="What was scored is safe. Bring it back and run the same command again to continue.",
        )


def _walk(root: str, passed: Counter[str]) -> Iterator[SourceFile]:
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
                    pending.append((here, _names(here, passed), identity))
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


def _names(folder: str, passed: Counter[str]) -> list[str]:
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
            elif is_image(entry.name):
                names.append(entry.name)
            else:
                count_passed_over(passed, entry.name)
    names.sort(reverse=True)
    return names


def _lines(path: Path) -> Iterator[SourceFile]:
    """Blank lines are ignored; a relative path starts at the list's own folder."""
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
            if line.strip():
                text = os.fsdecode(line)
                url = f"{text}: a URL, and a list names files" if scheme_of(text) else ""
                yield SourceFile(text, os.path.join(folder, text), url)
