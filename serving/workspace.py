"""A server's temporary folder: locked while any of its processes lives, so that one left by a kill can be told."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "fieldmark-serve-"
_SHARED_MEMORY = Path("/dev/shm")


class Workspace:
    """`path` is the folder, `lock` the descriptor that the server's processes must inherit."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.lock = os.open(self.path / "locking", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        (self.path / "locking").rename(self.path / "lock")  # seen by others only once it is held
        self._before = _extras()
        self._made: set[Path] | None = None

    def note_extras(self) -> None:
        """Remember what tritonserver has made for itself elsewhere since this workspace was made."""
        self._made = _extras() - self._before

    def remove(self) -> None:
        """Remove the folder and what belongs to it; the server's processes must be gone."""
        made = _extras() - self._before if self._made is None else self._made
        if len(made) == 1:  # surely ours, and not of a server that started beside it
            with contextlib.suppress(OSError):
                made.pop().rmdir()
        _remove(self.path)
        os.close(self.lock)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that nobody but this user enters, while the body runs; one left by a kill is swept."""
    workspace = Workspace()
    workspace.note_extras()
    try:
        yield workspace.path
    finally:
        workspace.remove()


def sweep() -> None:
    """Remove the folders of servers whose every process is gone, which only a killed process leaves behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for region in _SHARED_MEMORY.glob(f"{folder.name}*"):  # a killed tritonserver cannot remove its own
        region.unlink(missing_ok=True)


def _extras() -> set[Path]:
    """Empty folders of this fixed name that every tritonserver makes for itself, and a killed one leaves behind."""
    return set(Path("/tmp").glob("python_env_*"))
