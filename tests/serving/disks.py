"""Disks that are full."""

import os
from pathlib import Path


def fill(disk: Path, left: int) -> Path:
    """Take all of a disk but `left` bytes; the file that does."""
    ballast, state = disk / "ballast", os.statvfs(disk)
    with ballast.open("ab") as stream:
        stream.write(b"x" * (state.f_bavail * state.f_frsize - left))
    return ballast
