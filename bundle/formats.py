"""The kinds of image files: their names, whether this installation reads them, and how each is opened.

Opening reads headers and no pixels. What a file says about its picture (colour profiles, text, comments) may be huge,
damaged or inflate without bound; nothing of it but the orientation matters, so none of it makes an image unreadable.
"""

import functools
import importlib.util
import io
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from PIL import Image, features

from bundle.errors import ImageError, MissingExtra

# Pillow's name of a format -> how its files are called. Its JPEG opens MPO too, what phones write: a JPEG with a second
# picture behind the first, which is the one we take. HEIF is what the extra brings.
KINDS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
JPEGS = ("JPEG", "MPO")
HEIC = "heic"  # the extra's name
FORMATS = tuple(kind for kind in KINDS if kind != "HEIF")
SUFFIXES = tuple(suffix for kind in FORMATS for suffix in KINDS[kind])

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}

# What a PNG says in words. Two of them may tell how the picture is turned, and are kept up to this many bytes.
PNG, PNG_WORDS, MAX_WORDS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP"), 1 << 20
TURNING_WORDS = (b"XML:com.adobe.xmp", b"Raw profile type exif")

START_OF_SCAN, END_OF_IMAGE, SEQUENTIAL = 0xDA, 0xD9, (0xC0, 0xC1)
FRAMES = (*SEQUENTIAL, *(marker for marker in range(0xC2, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)))
_MARKER = re.compile(rb"\xff+[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)  # those that begin a segment, or end the image

MOST_KINDS = 100  # of suffixes that are counted one by one
OTHERS = "other"


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of KINDS that this installation reads."""
    have = {"AVIF": _reads_avif(), "HEIF": importlib.util.find_spec("pillow_heif") is not None}
    return tuple(kind for kind in KINDS if have.get(kind, True))


@functools.cache
def suffixes() -> tuple[str, ...]:
    """How the files are called that this installation reads, in lower case."""
    return tuple(suffix for kind in formats() for suffix in KINDS[kind])


def is_image(name: str) -> bool:
    """Whether a file is read, by its name."""
    return name.lower().endswith(suffixes())


def count_passed_over(counts: Counter[str], name: str) -> None:
    """Count one file that is not read under its suffix; however many files there are, the counts stay few."""
    suffix = os.path.splitext(name)[1].lower()
    known = suffix in counts or len(counts) < MOST_KINDS
    counts[suffix if known and len(suffix) <= 12 and suffix.isprintable() else OTHERS] += 1


def passed_over(counts: Mapping[str, int]) -> str:
    """`30 .heic and 2 .txt passed over`: the most frequent first; empty where there are none."""
    if not counts:
        return ""
    ranked = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    words = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in ranked[:5]]
    if rest := sum(count for _, count in ranked[5:]):
        words.append(f"{rest:,} of other kinds")
    listed = " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    missing = "HEIF" not in formats() and any(suffix in counts for suffix in KINDS["HEIF"])
    return f"{listed} passed over" + (f" (HEIC is read with: pip install '.[{HEIC}]')" if missing else "")


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image by its bytes, whatever its name; raises ImageError, or what Pillow raises on damaged headers."""
    head = stream.read(64)
    stream.seek(0)
    brands = _brands(head)
    if brands & HEIF_BRANDS and not brands & AVIF_BRANDS:
        return _open_heif(stream)
    if brands & AVIF_BRANDS and "AVIF" not in formats():
        raise ImageError(
            "an AVIF image, which this build of Pillow cannot read", hint="Install Pillow 11.3 or later from its wheel."
        )
    if head.startswith(PNG):
        stream = io.BytesIO(_without_words(stream.read()))
    try:
        return Image.open(stream, formats=tuple(kind for kind in formats() if kind in FORMATS))
    except Image.DecompressionBombError:
        # Pillow's own limit knows nothing of draft(), which decodes a JPEG of any size in little memory.
        if not head.startswith(b"\xff\xd8"):
            raise
        from PIL import JpegImagePlugin

        stream.seek(0)
        return JpegImagePlugin.jpeg_factory(stream)


def scans_of(data: bytes) -> int:
    """How many scans a JPEG has; what looks like one in a preview, a profile or behind the image is none."""
    return sum(marker == START_OF_SCAN for marker, _ in _segments(data))


def is_streamed(data: bytes) -> bool:
    """Whether a JPEG can be decoded row by row: sequential, and all its components in the first scan.

    For any other the decoder holds the coefficients of the whole image, two bytes each, at its full size.
    """
    components = 0
    for marker, body in _segments(data):
        if marker in FRAMES:
            if marker not in SEQUENTIAL:
                return False
            components = body[5] if len(body) > 5 else 0
        elif marker == START_OF_SCAN:
            return bool(components) and body[:1] == bytes([components])
    return False


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of a JPEG's segments up to its end; entropy-coded data between them are skipped."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = data[found.end() - 1], found.end()
        if marker == END_OF_IMAGE or place + 2 > len(data):
            return
        length = int.from_bytes(data[place : place + 2], "big")
        yield marker, data[place + 2 : place + length]
        place += max(2, length)


def _brands(head: bytes) -> set[bytes]:
    """The brands of an ISO media file, what AVIF and HEIF are; empty for any other."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(len(head), int.from_bytes(head[:4], "big"))
    return {head[place : place + 4] for place in (8, *range(16, end, 4))}


def _open_heif(stream: BinaryIO) -> Image.Image:
    """The primary image of a HEIC file. It is not registered with Pillow, since the process is not ours alone."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as problem:
        missing = MissingExtra.named(HEIC, "reading HEIC", problem)
        raise ImageError(missing.what, hint=missing.hint) from None
    kind: Callable[[BinaryIO], Image.Image] = HeifImageFile
    return kind(stream)


def _without_words(data: bytes) -> bytes:
    """A PNG without text and colour profile; the very same bytes where it has none."""
    kept, begin, place = [], 0, len(PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind in PNG_WORDS and end <= len(data) and not _may_turn(kind, data[place + 8 : end - 4]):
            kept.append(data[begin:place])
            begin = end
        place = end
    return b"".join((*kept, data[begin:])) if begin else data


def _may_turn(kind: bytes, body: bytes) -> bool:
    """Whether a chunk of words may tell the orientation, and is small even when it is inflated."""
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iCCP" or keyword not in TURNING_WORDS or len(body) > MAX_WORDS:
        return False
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        rest = rest[1:]
    else:
        return True
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(rest, MAX_WORDS)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail


def _reads_avif() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Pillow that has never heard of it says so by a warning
        return bool(features.check("avif"))
