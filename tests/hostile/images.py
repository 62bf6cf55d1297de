"""Image files that nobody should have to meet, made in memory: name -> (bytes, what the refusal says)."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

Hostile = dict[str, tuple[bytes, str]]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """An image that no format can shrink to a few bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(width: int, height: int, data: bytes = b"", *, bits: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header says what it likes; `extra` are further chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(rows: np.ndarray, *, colour: int, extra: bytes = b"") -> bytes:
    """A PNG with 16 bits a sample, which Pillow cannot write in colour; rows : (H, W[, C]) uint16."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    return png(rows.shape[1], rows.shape[0], lines, bits=16, colour=colour, extra=extra)


def heic(*images: Image.Image, primary: int = 0, **options: Any) -> bytes:
    """A HEIC file of one image or a burst of them."""
    import pillow_heif

    file = pillow_heif.HeifFile()
    for image in images:
        file.add_from_pillow(image)
    stream = io.BytesIO()
    file.save(stream, primary_index=primary, **options)
    return stream.getvalue()


def lying(data: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC file whose container says another size than its pictures."""
    place = data.index(b"ispe") + 8
    return _patched(data, place, width, height, form=">I")


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, a few bytes long, is repeated: each costs a pass over the whole image."""
    data = encode(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def animation(kind: str, **options: Any) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def _patched(data: bytes, place: int, *values: int, form: str = "<H") -> bytes:
    packed = b"".join(struct.pack(form, value) for value in values)
    return data[:place] + packed + data[place + len(packed) :]


def bombs() -> Hostile:
    """Few bytes that promise gigabytes of pixels."""
    jpeg = encode(noise(), "JPEG")
    size, progressive = jpeg.index(b"\xff\xc0") + 5, encode(noise(), "JPEG", progressive=True)
    return {
        "30000x30000.png": (png(30_000, 30_000, bytes(10_000_000)), "50,000,000 pixels"),
        "30000x30000-grey.png": (png(30_000, 30_000, colour=0), "50,000,000 pixels"),
        "8000x8000.png": (png(8_000, 8_000, bytes(8_000)), "8000x8000 pixels are more than the limit of 50,000,000"),
        "60000x60000.jpg": (_patched(jpeg, size, 60_000, 60_000, form=">H"), "50,000,000 pixels"),
        "65535x65535.gif": (_patched(encode(noise(), "GIF"), 6, 65_535, 65_535), "50,000,000 pixels"),
        "1000000x1000000.bmp": (_patched(encode(noise(), "BMP"), 18, 10**6, 10**6, form="<i"), "50,000,000 pixels"),
        "16384x16384.webp": (_huge_webp(), "50,000,000 pixels"),
        "thousand-scans.jpg": (many_scans(1000), "more than the limit of 64 scans"),
        "15000x14000.jpg": (
            _patched(jpeg, size, 14_000, 15_000, form=">H"),
            r"15000x14000 pixels are more than the limit of 200,000,000 for a JPEG \(4 x 50,000,000 pixels\)",
        ),
        "12000x9000-progressive.jpg": (
            _patched(progressive, progressive.index(b"\xff\xc2") + 5, 9_000, 12_000, form=">H"),
            r"12000x9000 pixels are more than the limit of 100,000,000 for a progressive JPEG \(2 x 50,000,000",
        ),
        "12000x9000.avif": (lying(encode(noise(), "AVIF"), 12_000, 9_000), "12000x9000 pixels are more than the limit"),
        "20000x20000.heic": (lying(heic(noise()), 20_000, 20_000), "400,000,000 coded pixels are more than the limit"),
    }


def _huge_webp() -> bytes:
    data = encode(Image.new("RGB", (32, 32)), "WEBP", lossless=True)
    side = struct.pack("<I", 16_383)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side + data[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def refused() -> Hostile:
    """What has no single meaning, is too small, or is no image at all."""
    pages = [noise(), noise()]
    return {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"this is no image, whatever its name says\n", "not an image, or an unknown format"),
        "page.png": (b"<html><body>404 not found</body></html>", "not an image"),
        "drawing.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"/>', "not an image"),
        "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n", "not an image"),
        "icon.png": (encode(noise(32, 32), "ICO"), "not an image"),
        "1x1.png": (encode(noise(1, 1), "PNG"), "1x1 pixels are too few; each side needs at least 8"),
        "7x100.jpg": (encode(noise(7, 100), "JPEG"), "7x100 pixels are too few"),
        "0x0.png": (png(0, 0), "not an image"),
        "animated.gif": (animation("GIF"), "animated"),
        "animated.webp": (animation("WEBP"), "animated"),
        "animated.png": (animation("PNG"), "animated"),
        "animated.avif": (animation("AVIF"), "animated"),
        "48x32-says-its-header.heic": (lying(heic(noise(640, 480)), 48, 32), "the image is damaged"),
        "two-pages.tif": (encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]), "several pages"),
        "32-bit.tif": (encode(Image.new("I", (32, 32)), "TIFF"), "32-bit pixels"),
        "float.tif": (encode(Image.new("F", (32, 32)), "TIFF"), "32-bit pixels"),
        "half.jpg": (encode(noise(), "JPEG")[:900], "the image is damaged"),
        "half.png": (encode(noise(), "PNG")[:900], "the image is damaged"),
        "half.webp": (encode(noise(), "WEBP", lossless=True)[:900], "damaged|not an image"),
        "half.tif": (encode(noise(), "TIFF")[:900], "damaged"),
        "half.bmp": (encode(noise(), "BMP")[:900], "damaged"),
        "half.avif": (encode(noise(), "AVIF")[:-300], "damaged|not an image"),
        "half.heic": (heic(noise())[:-300], "the image is damaged"),
        "half.gif": (encode(noise(), "GIF")[:900], "damaged"),
    }


def small_files() -> dict[str, bytes]:
    """One healthy file of each accepted kind, to be damaged: 48x32 pixels."""
    return {
        "baseline.jpg": encode(noise(), "JPEG"),
        "progressive.jpg": encode(noise(), "JPEG", progressive=True),
        "cmyk.jpg": encode(noise(mode="CMYK"), "JPEG"),
        "mpo.jpg": encode(noise(), "MPO", save_all=True, append_images=[noise()]),
        "colour.png": encode(noise(), "PNG"),
        "palette.png": encode(noise(mode="P"), "PNG", transparency=3),
        "grey16.png": encode(Image.fromarray(np.arange(1536, dtype=np.uint16).reshape(32, 48) * 40), "PNG"),
        "lossy.webp": encode(noise(), "WEBP"),
        "lossless.webp": encode(noise(mode="RGBA"), "WEBP", lossless=True),
        "colour.avif": encode(noise(), "AVIF"),
        "phone.heic": heic(noise()),
        "colour.bmp": encode(noise(), "BMP"),
        "still.gif": encode(noise(), "GIF"),
        "plain.tif": encode(noise(), "TIFF"),
        "deflate.tif": encode(noise(), "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(noise(), "TIFF", compression="jpeg"),
        "lzw.tif": encode(noise(), "TIFF", compression="tiff_lzw"),
    }
