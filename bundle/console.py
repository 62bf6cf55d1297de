"""What a person reads: names that others chose are text, whatever they hold, and tables fit where they are shown."""

import os
from pathlib import Path

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

from bundle.errors import printable

UNCUT = 10_000  # columns: what goes to a file or a pipe is not cut to the width of a terminal that is not there


def say(console: Console, *lines: str) -> None:
    """Print lines in which names stand: without markup and control characters, and broken only between them."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def lay_out(console: Console, *parts: RenderableType) -> None:
    """Print tables, and sentences that are broken between words: as wide as the terminal, and where there is none as
    wide as they are. No line ends in blanks.
    """
    options = console.options if console.file.isatty() else console.options.update(max_width=UNCUT)
    for part in parts:
        printed: list[Segment] = []
        for line in console.render_lines(part, options, pad=False):
            printed += [*_without_end(line), Segment.line()]
        console.print(Segments(printed), soft_wrap=True, end="")


def _without_end(line: list[Segment]) -> list[Segment]:
    """A line without the blanks at its end."""
    last = next((index for index in range(len(line), 0, -1) if line[index - 1].text.rstrip()), 0)
    return [*line[: last - 1], Segment(line[last - 1].text.rstrip(), line[last - 1].style)] if last else []


def advise(console: Console, command: str) -> None:
    """What to do next. Whoever goes on by himself, as the demo does, says so by FIELDMARK_NEXT=no."""
    if os.environ.get("FIELDMARK_NEXT") != "no":
        say(console, f"next: {command}")


def readable(path: Path | str) -> str:
    """A path that standard output can print, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
