"""A contact sheet: a page of crops from a dataset with the names of their classes, and part locations if wanted."""

import colorsys
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bundle.errors import ImageError, OptionError
from bundle.files import atomic_file
from bundle.image import Box, ImageSpec, upright_size
from training.data.dataset import Dataset
from training.data.index import Landmark, Sample

MAX_ROWS = MAX_COLUMNS = 50

_TILE, _GAP, _MARGIN, _LINE = 192, 16, 28, 18  # pixels
_HEADER = 50
_PAPER, _INK, _FAINT = (252, 252, 250), (38, 40, 44), (122, 126, 132)
_CONTEXT = 0.06  # how much of the box's side is shown around it
_OWN_GLYPHS = frozenset(string.ascii_letters + string.digits + " .,;:'&/+-_()")
_SYSTEM_FACES = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture on the sheet: a square of the image, never outside it unless the image is narrower."""

    image: Image.Image
    landmarks: tuple[Landmark, ...]  # inside the tile only: name, x, y in pixels of the tile


def draw_sheet(dataset: Dataset, out: Path, *, rows: int = 4, columns: int = 6, parts: bool = False) -> int:
    """Write a PNG with at most `rows` x `columns` training images; returns how many it shows.

    Every class appears once before any appears twice; where there are more classes than room, they are taken at equal
    steps through the list.
    """
    for option, value, high in (("--rows", rows, MAX_ROWS), ("--columns", columns, MAX_COLUMNS)):
        if not 1 <= value <= high:
            raise OptionError(f"{option} {value} is out of range", hint=f"Choose a whole number from 1 to {high}.")
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out {out} is not a .png file", hint="Contact sheets are written as PNG.")
    if out.is_dir():
        raise OptionError(f"--out {out} is a folder", hint="Name a file in it.")
    chosen = choose(dataset, rows * columns)
    names = sorted({name for sample in chosen for name, _, _ in sample.landmarks}) if parts else []
    if parts and not names:
        raise OptionError(f"{dataset.root} has no part locations", hint="Leave out --parts.")
    inks = {name: _ink(place, len(names)) for place, name in enumerate(names)}

    rows = -(-len(chosen) // columns)
    face = _typeface([dataset.name, *names, *(dataset.labels[sample.label] for sample in chosen)])
    heading, title, small = face(22), face(14), face(13)
    titles = [wrap(dataset.labels[sample.label], title, _TILE) for sample in chosen]
    step = _TILE + _GAP + 6 + _LINE * max(len(lines) for lines in titles)
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    legend = _legend_lines(names, small, width - 2 * _MARGIN)
    height = 2 * _MARGIN + _HEADER + rows * step - _GAP + len(legend) * (_LINE + 4)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    counts = ", ".join(f"{len(samples)} {part}" for part, samples in dataset.parts.items())
    draw.text((_MARGIN, _MARGIN - 8), _fitted(dataset.name, heading, width - 2 * _MARGIN), _INK, heading)
    line = f"{dataset.format} format, {len(dataset.labels)} classes; {counts}"
    draw.text((_MARGIN, _MARGIN + 20), _fitted(line, small, width - 2 * _MARGIN), _FAINT, small)
    for place, sample in enumerate(chosen):
        x = _MARGIN + place % columns * (_TILE + _GAP)
        y = _MARGIN + _HEADER + place // columns * step
        tile = look_at(sample)
        sheet.paste(tile.image, (x, y), _rounded())
        if parts:
            for name, left, top in tile.landmarks:
                _dot(draw, x + left, y + top, inks[name])
        for number, text in enumerate(titles[place]):
            draw.text((x, y + _TILE + 6 + number * _LINE), text, _INK, title)
    for number, entries in enumerate(legend):
        y = height - _MARGIN - (len(legend) - number) * (_LINE + 4) + 8
        for x, name in entries:
            _dot(draw, _MARGIN + x + 5, y + 9, inks[name])
            draw.text((_MARGIN + x + 16, y), name, _INK, small)
    with atomic_file(out) as temporary:
        sheet.save(temporary, format="PNG")
    return len(chosen)


def choose(dataset: Dataset, room: int) -> list[Sample]:
    """Training images for `room` places, class by class."""
    by_class: list[list[Sample]] = [[] for _ in dataset.labels]
    for sample in dataset.parts["train"]:
        by_class[sample.label].append(sample)
    classes = len(by_class)
    if classes >= room:
        return [by_class[place * classes // room][0] for place in range(room)]
    each, extra = divmod(room, classes)
    return [
        sample for label, samples in enumerate(by_class) for sample in samples[: each + (1 if label < extra else 0)]
    ]


def look_at(sample: Sample) -> Tile:
    """The sample's box, widened to a square where the image has room, on a tile; the whole image without a box."""
    spec = ImageSpec(height=_TILE, width=_TILE)
    try:
        size = upright_size(sample.path)
    except ImageError:  # whatever is wrong with the file, the reader below says it in one sentence
        size = (_TILE, _TILE)
    left, top, width, height = _square(sample.box or (0.0, 0.0, *size), size, context=_CONTEXT if sample.box else 0.0)
    scale = _TILE / max(width, height)
    shown = (max(8, round(width * scale)), max(8, round(height * scale)))
    spec = ImageSpec(width=shown[0], height=shown[1], min_side=1)
    pixels = Image.fromarray(spec.read(sample.path, (left, top, width, height)))
    corner = ((_TILE - shown[0]) // 2, (_TILE - shown[1]) // 2)
    tile = Image.new("RGB", (_TILE, _TILE), (232, 232, 230))
    tile.paste(pixels, corner)
    placed = ((name, corner[0] + (x - left) * scale, corner[1] + (y - top) * scale) for name, x, y in sample.landmarks)
    inside = tuple(mark for mark in placed if 0 <= mark[1] < _TILE and 0 <= mark[2] < _TILE)
    return Tile(image=tile, landmarks=inside)


def wrap(text: str, font: Font, width: int, lines: int = 2) -> list[str]:
    """Break a text into at most `lines` lines of at most `width` pixels; what does not fit ends in dots."""
    wrapped: list[str] = []
    words = text.split()
    while words and len(wrapped) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        wrapped.append(_fitted(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*wrapped, _fitted(" ".join(words), font, width)] if words else wrapped


def _square(box: Box, size: tuple[int, int], *, context: float) -> Box:
    """The smallest square around a box with some context, moved and cut to stay inside an image of `size`."""
    left, top, width, height = box
    side = max(width, height) * (1 + 2 * context)
    across, down = min(side, size[0]), min(side, size[1])
    x = min(max(0.0, left + width / 2 - across / 2), size[0] - across)
    y = min(max(0.0, top + height / 2 - down / 2), size[1] - down)
    return x, y, across, down


def _legend_lines(names: list[str], font: Font, width: int) -> list[list[tuple[int, str]]]:
    lines: list[list[tuple[int, str]]] = []
    x = width
    for name in names:
        step = round(font.getlength(name)) + 36
        if x + step > width:
            lines.append([])
            x = 0
        lines[-1].append((x, name))
        x += step
    return lines


def _fitted(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, ink: tuple[int, int, int]) -> None:
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=ink, outline=(255, 255, 255), width=2)


def _ink(place: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(place / max(count, 1), 0.42 if place % 2 else 0.56, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _rounded() -> Image.Image:
    mask = Image.new("L", (4 * _TILE, 4 * _TILE))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * _TILE - 1, 4 * _TILE - 1), radius=40, fill=255)
    return mask.reduce(4)


def _typeface(texts: Iterable[str]) -> Callable[[int], Font]:
    """Pillow's own face, which knows little beyond ASCII, or one of the system's where a text needs more."""
    if not set().union(*texts) <= _OWN_GLYPHS:
        for name in _SYSTEM_FACES:
            try:
                ImageFont.truetype(name, 14)
            except OSError:
                continue
            return lambda size: ImageFont.truetype(name, size)
    return lambda size: ImageFont.load_default(size)
