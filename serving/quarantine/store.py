"""Where a quarantine lies: a folder of this machine, or an object store through fsspec. Both hold folders of one day.

Whatever a disk or a store says becomes a QuarantineError, or DiskFull; none of it names the place.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bundle.errors import DiskFull, FieldmarkError, MissingExtra, OptionError, QuarantineError, first_line, printable
from bundle.files import atomic_file, leftovers, open_regular
from bundle.places import Patience, connect, local_path

PATIENCE = Patience(connect=10, read=10)
LEFT_SECONDS = 3600.0  # after which a temporary file is nobody's any more


class Store(Protocol):
    """Files in folders of one level. Every method may raise QuarantineError."""

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file that is whole or not there; DiskFull where there is no space."""
        ...

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        """A file's bytes; None if it is not there, or no regular file. Raises if there are more than `most`."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders."""
        ...

    def files(self, folder: str) -> dict[str, int]:
        """Names and sizes of the regular files in a folder; of one that is gone, none."""
        ...

    def remove(self, folder: str, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def tidy(self, folder: str) -> None:
        """Remove what processes killed an hour ago left in a folder, and the folder if nothing else is in it."""
        ...


class Folder:
    """A folder of this machine, for its owner alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Make the folder; raises OptionError where nothing can be written."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            reason = (problem.strerror or "cannot be made").lower()
            raise OptionError(f"--quarantine {self._root}: {reason}", hint="Name a folder.") from None
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise OptionError(f"--quarantine {self._root} cannot be written to", hint="Name another folder.")

    def write(self, folder: str, name: str, data: bytes) -> None:
        with _words():
            path = self._root / folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file(path, durable=False) as temporary:  # ten times as fast; its SHA-256 tells what a crash did
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        with _words():
            try:
                with open_regular(self._root / folder / name, follow=False) as stream:
                    return _limited(stream.read(most + 1), name, most)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def folders(self) -> list[str]:
        with _words(), contextlib.suppress(FileNotFoundError), os.scandir(self._root) as found:
            return [each.name for each in found if each.is_dir(follow_symlinks=False)]
        return []

    def files(self, folder: str) -> dict[str, int]:
        sizes = {}
        with _words(), contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    if each.is_file(follow_symlinks=False):
                        sizes[each.name] = each.stat(follow_symlinks=False).st_size
        return sizes

    def remove(self, folder: str, name: str) -> None:
        with _words():
            (self._root / folder / name).unlink(missing_ok=True)

    def tidy(self, folder: str) -> None:
        path = self._root / folder
        with _words(), contextlib.suppress(FileNotFoundError):
            for left in leftovers(path):
                with contextlib.suppress(FileNotFoundError):
                    if left.is_file() and time.time() - left.lstat().st_mtime > LEFT_SECONDS:
                        left.unlink()
            with contextlib.suppress(OSError):  # something is in it
                path.rmdir()


class Bucket:
    """A place in an object store, where a file is whole or not there by itself."""

    def __init__(self, where: str) -> None:
        self._files, self._root = _connected(where)

    def write(self, folder: str, name: str, data: bytes) -> None:
        with _words():
            self._files.pipe_file(self._at(folder, name), data)

    def read(self, folder: str, name: str, most: int) -> bytes | None:
        with _words():
            try:
                return _limited(self._files.cat_file(self._at(folder, name), start=0, end=most + 1), name, most)
            except FileNotFoundError:
                return None

    def folders(self) -> list[str]:
        return [name for name, size in self._list(self._root).items() if size is None]

    def files(self, folder: str) -> dict[str, int]:
        return {name: size for name, size in self._list(self._at(folder)).items() if size is not None}

    def remove(self, folder: str, name: str) -> None:
        with _words(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._at(folder, name))

    def tidy(self, folder: str) -> None:
        """There are no folders without files, and no halves of files."""

    def _at(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _list(self, path: str) -> dict[str, int | None]:
        """What lies there: sizes of files by name, None for a folder."""
        with _words():
            try:
                found = self._files.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        return {
            each["name"].rstrip("/").rpartition("/")[2]: int(each["size"]) if each["type"] == "file" else None
            for each in found
            if each["name"].rstrip("/") != path
        }


def open_store(where: str, *, prepare: bool = False) -> Store:
    """The store at a folder's path or a URL; raises OptionError. `prepare` makes the folder, if it is one."""
    local = local_path(where)
    if local is None:
        return Bucket(where)
    path = Path(local)
    if path.exists() and not path.is_dir():
        raise OptionError(f"{path} is no folder", hint="A quarantine is a folder, or a URL such as s3://bucket/place.")
    folder = Folder(path)
    if prepare:
        folder.prepare()
    return folder


def _connected(where: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the place in it. Nothing is asked yet."""
    try:
        files, root = connect(where, PATIENCE)
    except MissingExtra:
        raise
    except Exception as problem:  # each kind of store has its own way to dislike a URL
        raise OptionError(
            f"{printable(where)} is no place for a quarantine ({printable(first_line(problem))})",
            hint="A folder, or a URL such as s3://bucket/place.",
        ) from None
    root = root.rstrip("/")
    if not root.strip("/"):
        raise OptionError(f"{printable(where)} names no bucket", hint="A URL such as s3://bucket/place.")
    return files, root


@contextlib.contextmanager
def _words() -> Iterator[None]:
    """Turn whatever is raised into a sentence without a place."""
    try:
        yield
    except DiskFull:
        raise DiskFull("no space left on the quarantine's disk", hint="Make it smaller: --quarantine-bytes.") from None
    except FieldmarkError:
        raise
    except Exception as problem:  # every kind of store raises its own
        reason = getattr(problem, "strerror", None) or type(problem).__name__
        raise QuarantineError(f"the quarantine cannot be used ({printable(str(reason))})") from None


def _limited(data: bytes, name: str, most: int) -> bytes:
    if len(data) > most:
        raise QuarantineError(f"{printable(name)} has more than {most:,} bytes")
    return data
