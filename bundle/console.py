"""What a person reads of names that others chose: text, whatever brackets and control characters they hold."""

import os
from pathlib import Path

from rich.console import Console

from bundle.errors import printable


def say(console: Console, *lines: str) -> None:
    """Print lines in which names stand: without markup and control characters, and broken only between them."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def readable(path: Path | str) -> str:
    """A path that standard output can print, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
