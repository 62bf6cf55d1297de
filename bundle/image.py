"""From image bytes to the UINT8 [H, W, 3] tensor the served graph takes; the same code in training, client and scoring.

Limits are checked on the header, before any pixel is decoded. What is accepted becomes RGB in one defined way:
EXIF orientation is applied, palettes are expanded, alpha is laid over white, CMYK is converted, 16-bit grey keeps its
upper byte. What has no single meaning (an animation, 32-bit pixels) is refused.
"""

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from bundle.coded import coded_pixels, declared_pixels
from bundle.errors import ImageError, ImageUnread, first_line
from bundle.files import open_regular
from bundle.formats import FORMATS as FORMATS
from bundle.formats import JPEGS, formats, is_streamed, open_image, scans_of
from bundle.formats import SUFFIXES as SUFFIXES
from bundle.formats import count_passed_over as count_passed_over
from bundle.formats import is_image as is_image
from bundle.formats import passed_over as passed_over
from bundle.formats import suffixes as suffixes

# Pillow warns of large images and damaged metadata. Our own limits refuse the first, and the second do not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A progressive JPEG is decoded once for each scan, and a scan may be a few bytes long: encoders write about ten.
START_OF_SCAN, MAX_SCANS = b"\xff\xda", 64

# A JPEG above the limit of pixels is decoded at a half, quarter or eighth of its size, which is what has to be within
# the limit. So this many times the limit may lie in the file: row by row it costs time only, else two bytes for each of
# its coefficients, up to four a pixel (800 MB at 100 megapixels in CMYK, 300 MB as cameras write them).
DRAFTS = (1, 2, 4, 8)
STREAMED, BUFFERED = 4, 2

# EXIF orientation -> what brings the image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the turns that exchange width and height

Box = tuple[float, float, float, float]
LIMIT = "'fieldmark train --max-pixels' sets another limit, which the bundle keeps."


def encoded_image(path: Path, max_bytes: int) -> bytes:
    """What is in an image's file, not decoded; raises ImageError that names the path, or ImageUnread."""
    with _naming(path):
        return _content(path, max_bytes)


def _content(path: Path, max_bytes: int) -> bytes:
    if path.is_dir():
        raise ImageError("a folder, not an image", hint="'fieldmark score' takes whole folders.")
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > max_bytes:
            raise ImageError(f"the file has more than the limit of {max_bytes:,} bytes")
        return stream.read(max_bytes + 1)  # it may be growing


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file is an ImageError that names it; an ImageUnread, where not its bytes are wrong."""
    try:
        yield
    except ImageError as problem:
        raise ImageError(f"{path}: {problem.what}", hint=problem.hint) from None
    except FileNotFoundError:
        raise ImageUnread(f"{path}: no such file") from None
    except OSError as problem:
        raise ImageUnread(f"{path}: {(problem.strerror or str(problem)).lower()}") from None
    except ValueError as problem:  # an embedded NUL in the name
        raise ImageError(f"{str(path)!r}: {problem}") from None


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How bytes become a tensor. Sizes in pixels; `resize='stretch'` ignores the aspect ratio, as the paper does.

    `max_pixels` is of what is decoded: of the image, or of a JPEG's draft. Pillow sets 178,956,970 for all but JPEG.
    """

    height: int
    width: int
    resize: str = "stretch"
    interpolation: str = "bilinear"
    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 50_000_000
    min_side: int = 8

    def __post_init__(self) -> None:
        if not (8 <= self.height <= 4096 and 8 <= self.width <= 4096):
            raise ValueError(f"image size {self.width}x{self.height} is outside 8..4096 pixels")
        if self.resize != "stretch":
            raise ValueError(f"unknown resize {self.resize!r}; this version knows 'stretch'")
        if self.interpolation != "bilinear":
            raise ValueError(f"unknown interpolation {self.interpolation!r}; this version knows 'bilinear'")
        if min(self.max_bytes, self.max_pixels, self.min_side) < 1:
            raise ValueError("image limits must be positive")

    def read(self, path: Path, box: Box | None = None) -> npt.NDArray[np.uint8]:
        """Read one file; raises ImageError that names the path, or ImageUnread."""
        with _naming(path):
            return self.decode(_content(path, self.max_bytes), box)

    def decode(self, data: bytes, box: Box | None = None) -> npt.NDArray[np.uint8]:
        """Decode one encoded image, crop it to `box` = (left, top, width, height) and resize it: uint8 [H, W, 3]."""
        if len(data) > self.max_bytes:
            raise ImageError(f"the file has more than the limit of {self.max_bytes:,} bytes")
        if not data:
            raise ImageError("the file is empty")
        try:
            with open_image(io.BytesIO(data)) as image:
                self._check_header(image, data)
                whole = None
                if image.format in JPEGS:
                    # Counting is fast and counts too many: previews, profiles, a film behind the photograph.
                    if data.count(START_OF_SCAN) > MAX_SCANS and scans_of(data) > MAX_SCANS:
                        raise ImageError(f"the JPEG has more than the limit of {MAX_SCANS} scans")
                    whole = self._draft(image, box)
                rgb = _to_rgb(image)
        except ImageError:
            raise
        except Image.DecompressionBombError:
            raise ImageError(f"the image has more than the limit of {self.max_pixels:,} pixels", hint=LIMIT) from None
        except UnidentifiedImageError:
            have = ", ".join(formats())
            raise ImageError("not an image, or an unknown format", hint=f"Accepted are {have}.") from None
        except MemoryError:
            raise ImageError("there is not enough memory to decode the image") from None
        except Exception as problem:  # decoders raise whatever their library raises on damaged data
            raise ImageError(f"the image is damaged ({first_line(problem)})") from None
        if box is not None:
            rgb = rgb.crop(_clip(box, rgb.size) if whole is None else _scaled(_clip(box, whole), whole, rgb.size))
        if rgb.size != (self.width, self.height):
            rgb = rgb.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.array(rgb, dtype=np.uint8)

    def place(
        self, points: npt.NDArray[np.float64], size: tuple[int, int], box: Box | None = None
    ) -> npt.NDArray[np.float64]:
        """Points [n, 2] = (x, y) of an upright image of `size` = (width, height), where `decode` puts them: [n, 2].

        Pixels of the image and of the tensor, both from the outer corner of the first: its middle is (0.5, 0.5).
        """
        left, top, right, bottom = (0, 0, *size) if box is None else _clip(box, size)
        placed: npt.NDArray[np.float64] = (points - (left, top)) * (self.width, self.height)
        return placed / (right - left, bottom - top)

    def _check_header(self, image: Image.Image, data: bytes) -> None:
        width, height = image.size
        if width * height > self.max_pixels:
            self._check_size(image, data)
        if min(width, height) < self.min_side:
            raise ImageError(f"{width}x{height} pixels are too few; each side needs at least {self.min_side}")
        # MPO is a photograph with previews behind it, HEIF may be a burst of which one is the primary image. Counting
        # the frames of MPO could take minutes, so nothing counts them.
        if image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False):
            raise ImageError(
                "the image is animated or has several pages", hint="Send one frame as an image of its own."
            )

        size_of = {"AVIF": coded_pixels, "HEIF": declared_pixels}.get(image.format or "")
        if size_of is not None and (pixels := size_of(data)) > self.max_pixels:
            raise ImageError(f"{pixels:,} coded pixels are more than the limit of {self.max_pixels:,}", hint=LIMIT)

    def _check_size(self, image: Image.Image, data: bytes) -> None:
        """Raise ImageError for an image above `max_pixels`, unless it is a JPEG that can be decoded smaller."""
        width, height = image.size
        size, limit = f"{width}x{height} pixels are more than the limit of", f"{self.max_pixels:,}"
        if image.format not in JPEGS:
            raise ImageError(f"{size} {limit}", hint=LIMIT)
        times, kind = (STREAMED, "JPEG") if is_streamed(data) else (BUFFERED, "progressive JPEG")
        smallest = -(-width // DRAFTS[-1]) * -(-height // DRAFTS[-1])
        if width * height > times * self.max_pixels or smallest > self.max_pixels:
            raise ImageError(f"{size} {times * self.max_pixels:,} for a {kind} ({times} x {limit} pixels)", hint=LIMIT)

    def _draft(self, image: Image.Image, box: Box | None) -> tuple[int, int] | None:
        """Have a JPEG decoded at a half, quarter or eighth of its size, but at twice the target or more.

        A box is cut from the whole image, unless that is above the limit: then from a draft within the limit, and the
        upright size of the whole is returned.
        """
        width, height = image.size
        if width * height <= self.max_pixels:
            if box is None:
                image.draft("RGB", (2 * self.width, 2 * self.height))
            return None
        whole = _upright(image)
        left, top, right, bottom = (0, 0, *whole) if box is None else _clip(box, whole)
        spare = min((right - left) // (2 * self.width), (bottom - top) // (2 * self.height))
        factor = next(
            each
            for each in DRAFTS
            if each == DRAFTS[-1] or (-(-width // each) * -(-height // each) <= self.max_pixels and 2 * each > spare)
        )
        image.draft("RGB", (width // factor, height // factor))
        return whole


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file by its header, turned as its EXIF orientation says; raises ImageError."""
    try:
        with open_regular(path) as stream, open_image(stream) as image:
            return _upright(image)
    except ImageError as problem:
        raise ImageError(f"{path}: {problem.what}", hint=problem.hint) from None
    except Exception as problem:  # decoders raise whatever their library raises on damaged data
        raise ImageError(f"{path}: the size of the image cannot be read ({first_line(problem)})") from None


def upright_size_of(data: bytes) -> tuple[int, int]:
    """The same of an encoded image; raises ImageError."""
    try:
        with open_image(io.BytesIO(data)) as image:
            return _upright(image)
    except ImageError:
        raise
    except Exception as problem:  # decoders raise whatever their library raises on damaged data
        raise ImageError(f"the size of the image cannot be read ({first_line(problem)})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if (turn := TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8), mode="L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"32-bit pixels (mode {image.mode}) have no defined range", hint="Save it with 8 bits each.")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> tuple[int, int]:
    """Width and height once the image is turned as its EXIF orientation says."""
    width, height = image.size
    return (height, width) if _orientation(image) in SIDEWAYS else (width, height)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; metadata that cannot be read do not make the picture unreadable."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _clip(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole pixels inside an image of `size` = (width, height)."""
    left, top, width, height = box
    if not all(map(math.isfinite, box)):
        raise ImageError(f"the bounding box {box} is not made of numbers")
    x0, y0 = max(0, round(left)), max(0, round(top))
    x1, y1 = min(size[0], round(left + width)), min(size[1], round(top + height))
    if x1 <= x0 or y1 <= y0:
        raise ImageError(f"the bounding box {box} lies outside the {size[0]}x{size[1]} image")
    return x0, y0, x1, y1


def _scaled(box: tuple[int, int, int, int], whole: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in an image of size `whole`, in a draft of it of another `size`; never empty."""
    across, down = size[0] / whole[0], size[1] / whole[1]
    x0, y0 = min(int(box[0] * across), size[0] - 1), min(int(box[1] * down), size[1] - 1)
    return x0, y0, max(x0 + 1, round(box[2] * across)), max(y0 + 1, round(box[3] * down))
