"""Where the socket of a running `fieldmark serve` is that takes orders: by the port of its fieldmark.v1."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from bundle.errors import OptionError

RUNTIME = "XDG_RUNTIME_DIR"  # a folder of one user's alone, where there is one


def control_path(port: int) -> Path:
    """Where the service at this port takes orders, unless told otherwise."""
    if runtime := os.environ.get(RUNTIME):
        return Path(runtime, "fieldmark", f"{port}")
    return Path(tempfile.gettempdir(), f"fieldmark-{os.getuid()}", f"{port}")


def prepare(path: Path, *, ours: bool) -> None:
    """Make the folder of a socket; raises OptionError where others could put a socket of theirs there.

    Where `ours` is false, somebody has named the place, and its folder is his matter.
    """
    folder = path.parent
    try:
        if ours:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as problem:
        raise OptionError(f"{folder}: {(problem.strerror or str(problem)).lower()}", hint=_ELSEWHERE) from None
    others = stat.S_IRWXG | stat.S_IRWXO
    if ours and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & others):
        raise OptionError(f"{folder} is not a folder of yours alone", hint=_ELSEWHERE)


def leave(path: Path) -> None:
    """Remove the folder that `prepare` made, unless another service's socket is in it."""
    with contextlib.suppress(OSError):
        path.parent.rmdir()


_ELSEWHERE = "Name another place for orders: --control SOCKET"
