"""The folder of a set of engines while it is written: who may, what a killed run left in it, what its disk says."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from bundle.engines import ENGINES, EngineRecord, is_target, read_engines, verify
from bundle.errors import EngineError, OptionError
from bundle.files import check_place, full_disk, lock_for_this_process, open_regular
from bundle.folder import Bundle
from bundle.tensors import NETWORKS

LOCK = ".engines.lock"
TIMINGS = "timings"


def check_out(out: Path, bundle: Bundle) -> None:
    """Raise OptionError unless engines may be written at `out`: nothing, an empty folder, or a set of engines."""
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise OptionError(f"{out} lies in the bundle, which nobody may change", hint="Choose another --out.")
    check_place(out)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise OptionError(f"{out} is not a folder", hint="Choose another --out, or remove it yourself.")
    for name in (ENGINES, TIMINGS, *NETWORKS):
        if (out / name).is_symlink():
            raise OptionError(f"{out / name} is a link", hint="Choose another --out, or remove it yourself.")
    if not (out / ENGINES).exists() and not (out / LOCK).exists() and any(out.iterdir()):
        raise OptionError(f"{out} holds other things and no {ENGINES}", hint="Choose another --out.")


def read_bytes(path: Path) -> bytes | None:
    """A file that only makes things faster: what cannot be read is not there."""
    try:
        with open_regular(path, follow=False) as stream:
            return stream.read()
    except OSError:
        return None


def read_records(out: Path, *, force: bool) -> tuple[EngineRecord, ...]:
    """Records of the set that is there, and of nothing else: what a killed run left is deleted."""
    records: tuple[EngineRecord, ...] = ()
    try:
        if os.path.lexists(out / ENGINES):
            records = read_engines(out).engines
    except EngineError:
        if not force:
            raise
        return ()  # its engines stay until there are new ones
    sweep(out, records)
    return records


def is_whole(out: Path, record: EngineRecord) -> bool:
    """Whether a record's file is as recorded."""
    try:
        verify(out, record)
    except EngineError:
        return False
    return True


def sweep(out: Path, listed: tuple[EngineRecord, ...]) -> None:
    """Delete engines that are not listed and what a killed run left half-written; nothing that we do not name so."""
    keep = {record.file for record in listed}
    for leftover in out.glob(f".{ENGINES}.*.tmp"):
        leftover.unlink(missing_ok=True)
    for leftover in (out / TIMINGS).glob(".*.cache.*.tmp"):
        leftover.unlink(missing_ok=True)
    for network in NETWORKS:
        folder = out / network
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            name = path.name.removeprefix(".")
            is_engine = is_target(name.partition(".")[0]) and ".engine" in name
            if is_engine and f"{network}/{path.name}" not in keep and not path.is_dir():
                path.unlink(missing_ok=True)
    remove_empty(out)


def remove_empty(out: Path) -> None:
    """Remove the networks' folders that hold nothing."""
    for network in NETWORKS:
        with contextlib.suppress(OSError):  # absent, or not empty
            (out / network).rmdir()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what a disk says while `out` is written into DiskFull or EngineError."""
    with full_disk(out):
        try:
            yield
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EngineError(
                f"cannot write {problem.filename or out} ({problem.strerror or problem})",
                hint="What was there before is still good; choose another --out, or mend the folder.",
            ) from None


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and hold its lock; the kernel lets go of it however this process ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("ab") as stream:
        busy = EngineError(
            f"another fieldmark engine is building into {out}", hint="Wait until it ends, or use another --out."
        )
        lock_for_this_process(stream.fileno(), busy)
        yield
