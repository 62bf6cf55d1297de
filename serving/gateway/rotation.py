"""A file of lines that is rotated by size: FILE is written, FILE.1 is the one before it, FILE.2 the one before that.

Who renames or removes FILE gets a new one. A line is whole or not there, also where the disk is full.
"""

import contextlib
import os
import stat
from pathlib import Path

from bundle.errors import OptionError


class RotatedFile:
    """At most `files` files of `most_bytes` bytes each, for their owner alone. Raises OptionError where none can be."""

    def __init__(self, path: Path, *, most_bytes: int, files: int) -> None:
        self._path, self._most, self._files = path, most_bytes, files
        self._handle = -1
        try:
            self._open()
        except OSError as problem:
            reason = (problem.strerror or "cannot be written").lower()
            raise OptionError(f"--audit-log {path}: {reason}", hint="Name a file in a folder that is there.") from None

    def append(self, line: bytes) -> None:
        """Write one line, which ends with a newline; raises OSError, and then nothing of it is there."""
        if not self._is_there():
            self._open()
        size = os.fstat(self._handle).st_size
        if size and size + len(line) > self._most:
            self._rotate()
            size = os.fstat(self._handle).st_size
        try:
            written = os.write(self._handle, line)
            if written < len(line):  # a disk that is full says so only at the next byte
                os.write(self._handle, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, size)
            raise

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _open(self) -> None:
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError(0, "not a regular file")
        if found.st_size and os.pread(self._handle, 1, found.st_size - 1) != b"\n":  # of a process that was killed
            os.write(self._handle, b"\n")

    def _is_there(self) -> bool:
        """Whether the open file still has its name."""
        try:
            return self._handle >= 0 and os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older, newer = self._named(number), self._named(number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
        if self._files == 1:
            os.unlink(self._path)
        self._open()

    def _named(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
