"""What a reader finds in a dataset folder: samples, class names, and the division that the dataset itself publishes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bundle.errors import DatasetError
from bundle.image import Box

Landmark = tuple[str, float, float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image. `key` is its POSIX path relative to the dataset root and names it wherever the dataset lies."""

    key: str
    path: Path
    label: int
    box: Box | None
    """(left, top, width, height) in pixels of the full image; None means the whole image."""
    landmarks: tuple[Landmark, ...] = ()
    """Visible parts: (name, x, y) in pixels of the full image."""
    group: str = ""
    """What the dataset itself says that it was taken together with; never divided. Empty: nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """One dataset as read; `given` holds "train" and, where the dataset has them, parts of its own."""

    format: str
    root: Path
    labels: tuple[str, ...]
    given: dict[str, list[Sample]]
    passed: dict[str, int] = field(default_factory=dict)
    """Files that are no readable images, counted by suffix."""


def located(root: Path, relative: str, where: str) -> tuple[str, Path]:
    """The key and path of an indexed image, or an error: an index may point inside `root` only. Whether the file is
    there is seen when it is decoded, so that all that are not are told together.
    """
    inside = PurePosixPath(relative)
    if "://" in relative:
        raise DatasetError(f"{where}: {relative!r} is an address, not a path", hint="Bring the images here first.")
    if inside.is_absolute():
        raise DatasetError(
            f"{where}: the path {relative!r} is absolute", hint="Give it relative to the folder of the dataset."
        )
    if ".." in inside.parts or "\0" in relative or not inside.parts:
        raise DatasetError(
            f"{where}: the path {relative!r} leads out of the dataset folder",
            hint="Every path in an index must stay inside the folder.",
        )
    return str(inside), root / inside


def checked_box(box: Box, where: str) -> Box:
    """Refuse a box without an area, or one that starts left of or above the image."""
    left, top, width, height = box
    if not all(math.isfinite(value) for value in box) or left < 0 or top < 0 or width <= 0 or height <= 0:
        raise DatasetError(
            f"{where}: the bounding box (left {left:g}, top {top:g}, width {width:g}, height {height:g}) is not inside "
            "an image",
            hint="A box needs left and top of at least 0, and a width and height above 0.",
        )
    return box


def text_rows(path: Path, fields: int, *, rest: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yield ("FILE:LINE", fields) for each non-blank line; with `rest` the last field keeps its inner spaces."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DatasetError(f"{path} is not UTF-8 text ({problem.reason})", hint="Save it as UTF-8.") from None
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing", hint="The copy of the dataset is incomplete; unpack it again."
        ) from None
    # Not splitlines(): it also breaks at characters that file names may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        row = line.rstrip("\r").split(None, fields - 1) if rest else line.split()
        if not row:
            continue
        if len(row) != fields:
            raise DatasetError(
                f"{path}:{number} has {len(row)} field{'s' * (len(row) != 1)} instead of {fields}",
                hint="Correct the line, or unpack the dataset again.",
            )
        yield f"{path}:{number}", row


def whole(text: str, where: str) -> int:
    """A field as an integer."""
    try:
        return int(text)
    except ValueError:
        raise DatasetError(f"{where}: {text[:40]!r} is not a whole number", hint="Correct the line.") from None


def number(text: str, where: str) -> float:
    """A field as a number."""
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{where}: {text[:40]!r} is not a number", hint="Correct the line.") from None
