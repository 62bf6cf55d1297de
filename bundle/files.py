"""Files and folders that exist whole or not at all, and reading that cannot be made to wait."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from bundle.errors import DiskFull, FieldmarkError, OptionError
from bundle.signals import signals_postponed

CHUNK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\..+\.\d{10,}\.tmp", re.DOTALL)  # what `_beside` makes


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, at once: a pipe without a writer must not hang us."""
    if not stat.S_ISREG(path.stat(follow_symlinks=follow).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # What lies at the path may be exchanged between the question and the answer, so the open file is asked again.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    stream = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def lock_for_this_process(handle: int, busy: FieldmarkError) -> None:
    """Lock an open file or folder until it is closed; raises `busy` if another process holds it, or OSError where there
    are no locks. The kernel lets go however the process ends.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None


def sha256_of(path: Path) -> str:
    """Hex digest of a regular file's bytes, read in chunks."""
    with open_regular(path) as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: BinaryIO, most: int = sys.maxsize) -> str:
    """Hex digest of the next `most` bytes at most, since a file may grow while it is read."""
    digest = hashlib.sha256()
    while most > 0 and (chunk := stream.read(min(most, CHUNK_BYTES))):
        digest.update(chunk)
        most -= len(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before anything relies on them."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):  # this file system cannot: not our fault
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the name, else it is removed.

    What need not survive a power cut whole is not `durable`, and not flushed.
    """
    with full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OptionError(f"{path} is a folder, and a file is to be written there", hint="Choose another name.")
        temporary = _beside(path)
        try:
            yield temporary
            if durable:
                flush(temporary)
            temporary.replace(path)
            if durable:
                flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old or the new content, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def exchange_texts(texts: Mapping[Path, str]) -> None:
    """Write UTF-8 texts to several files of one disk: all are made whole first, then take their names in this order,
    one right after the other. Each is the old or the new one at any moment, and a full disk leaves the old."""
    with contextlib.ExitStack() as cleanup:
        temporaries = {path: _beside(path) for path in texts}
        for path, temporary in temporaries.items():
            cleanup.callback(temporary.unlink, missing_ok=True)
            temporary.write_text(texts[path], encoding="utf-8")
            flush(temporary)
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in texts}:
            flush(folder)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False, marker: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the name, else it is removed with all it holds.

    An existing `path` is an error unless `replace`; then the old folder goes only after the new one is whole. `marker`
    names a file that the folders of this kind hold: what is neither empty nor holds it was made by somebody else and
    is never replaced. Whole means whole when this process dies; who must survive a power cut flushes each file.
    """
    target = Path(os.path.abspath(path))  # "." has no name that anything could stand beside
    with full_disk(path):
        check_free(path, replace=replace, marker=marker)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        temporary.mkdir()
        try:
            yield temporary
            check_free(path, replace=replace, marker=marker)  # somebody else may have been faster
            _take_name(temporary, target, replace)
            flush(target.parent)
        finally:
            discard(temporary)


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """Yield a folder for the time being, where the system has such (TMPDIR); at the end it goes with all it holds."""
    folder = Path(tempfile.mkdtemp(prefix=f"fieldmark-{purpose}-"))
    try:
        with full_disk(folder):
            yield folder
    finally:
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a folder of ours with all it holds, if it is there; a signal waits until it is gone."""
    with signals_postponed():
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that nobody who looks for its name finds a part of it."""
    aside = _beside(path)
    path.rename(aside)
    shutil.rmtree(aside)


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left in `folder` of the temporary files and folders above; none of a living one's, if the
    caller keeps others from writing there."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def _beside(path: Path) -> Path:
    """A hidden name of its own in the same folder, for every process and thread; a very long name is cut."""
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{os.getpid()}{secrets.randbelow(10**9):09d}.tmp")


def check_free(path: Path, *, replace: bool = False, marker: str = "") -> None:
    """Raise OptionError where `atomic_folder` would refuse to write; long work asks before it begins."""
    check_place(path)
    target = Path(os.path.abspath(path))
    if not os.path.lexists(target):
        return
    if not replace:
        raise OptionError(f"{path} exists already", hint="Choose another folder, or pass --force to replace it.")
    if not target.is_dir():
        raise OptionError(f"{path} is not a folder", hint="Choose another name, or remove it yourself.")
    if marker and not (target / marker).exists() and any(target.iterdir()):
        raise OptionError(
            f"{path} holds other things and no {marker}, so it is not replaced",
            hint="Choose another folder, or remove it yourself.",
        )


def check_place(path: Path) -> None:
    """Raise OptionError where nothing can be written beside `path`: in a file, on a read-only disk, or where the name
    is too long.
    """
    target = Path(os.path.abspath(path))
    try:
        os.lstat(target)
    except OSError as problem:
        if problem.errno == errno.ENAMETOOLONG:
            words = f"{len(os.fsencode(target.name))} bytes of a name are too long, or its path is"
            raise OptionError(f"{str(path)[:80]}... cannot be made: {words}", hint="Choose another place.") from None
    place = next((folder for folder in target.parents if os.path.lexists(folder)), target)
    if not place.is_dir():
        raise OptionError(f"{path} cannot be made: {place} is no folder", hint="Choose another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OptionError(f"{path} cannot be made: {place} cannot be written to", hint="Choose another place.")


def _take_name(temporary: Path, target: Path, replace: bool) -> None:
    if not replace:
        temporary.rename(target)  # refuses a folder that is not empty
        return
    aside = _beside(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            target.rename(aside)
        temporary.rename(target)
    except BaseException:  # Ctrl-C too: the old folder must not stay hidden
        if os.path.lexists(aside) and not os.path.lexists(target):
            aside.rename(target)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Turn what a full disk says while `path` is written into DiskFull."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left on the disk while writing {path}",
                hint="Free some space and run the same command again.",
            ) from None
        raise
