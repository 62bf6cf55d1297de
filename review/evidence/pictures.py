"""Pictures for the pages, as bytes of PNG or JPEG that this program has encoded itself.

What was sent may be anything: a script in EXIF, an SVG under the name of a PNG, a bomb. None of its bytes reach a
browser; it is decoded within the bundle's limits, and what is shown are pixels.
"""

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from bundle.image import ImageSpec, upright_size_of
from serving.client.explain import overlay

THUMBNAIL, LARGEST = 112, 1024  # pixels of the longer side
AMPLIFIED = 10  # times
QUALITY = 75  # of the JPEG that an image is compared with
LEAST = 256  # the side up to which a small picture is enlarged, pixel by pixel
BOX = (255, 211, 61)
Pixels = npt.NDArray[np.uint8]


def as_sent(data: bytes, spec: ImageSpec, *, longest: int = LARGEST) -> Pixels:
    """The upright picture in its own proportions : (H', W', 3), `longest` pixels at most; raises ImageError."""
    width, height = upright_size_of(data)
    scale = min(1.0, longest / max(width, height))
    sides = (max(8, round(height * scale)), max(8, round(width * scale)))
    return replace(spec, height=sides[0], width=sides[1]).decode(data)


def difference(pixels: Pixels, kind: str) -> Pixels:
    """What re-encoding (`encoded`) or smoothing (`smoothed`) takes away from an image, AMPLIFIED times, around grey.

    An attack's pattern is small and has little in common with what the picture shows: it stands out here.
    """
    picture = Image.fromarray(pixels)
    if kind == "encoded":
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=QUALITY)
        other = Image.open(stream, formats=("JPEG",)).convert("RGB")
    else:
        other = picture.filter(ImageFilter.MedianFilter(3))
    apart = pixels.astype(np.int16) - np.asarray(other, np.int16)
    return (128 + AMPLIFIED * apart).clip(0, 255).astype(np.uint8)


def attended(pixels: Pixels, attention: npt.NDArray[np.float32]) -> Pixels:
    """The image, lit where the network looked."""
    return overlay(pixels, attention)


def boxed(pixels: Pixels, box: tuple[int, ...]) -> Pixels:
    """A training image with the patch of a prototype framed; enlarged first, so that the frame is thin."""
    factor = _factor(pixels)
    picture = Image.fromarray(_enlarged(pixels))
    frame = tuple(factor * side for side in box)
    inner = (frame[0], frame[1], frame[2] - 1, frame[3] - 1)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(inner, outline=(27, 31, 36), width=4)
    draw.rectangle((inner[0] + 1, inner[1] + 1, inner[2] - 1, inner[3] - 1), outline=BOX, width=2)
    return np.asarray(picture)


def png(pixels: Pixels) -> bytes:
    """Encoded without loss; a small picture is enlarged pixel by pixel."""
    stream = io.BytesIO()
    Image.fromarray(_enlarged(pixels)).save(stream, "PNG")
    return stream.getvalue()


def jpeg(pixels: Pixels) -> bytes:
    """Encoded small."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _enlarged(pixels: Pixels) -> Pixels:
    factor = _factor(pixels)
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _factor(pixels: Pixels) -> int:
    return max(1, LEAST // int(max(pixels.shape[:2])))
