"""What an accepted image means, whatever its pixels are stored as: always the same RGB, upright, over white."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import ImageSpec
from bundle.errors import ImageError
from tests.hostile.images import encode, png, png_chunk, png_of

HEIGHT, WIDTH = 32, 48
SPEC = ImageSpec(height=HEIGHT, width=WIDTH)
# quadrants: top left, top right, bottom left, bottom right; no symmetry, so that no turn goes unseen
COLOURS = np.array([[[200, 30, 40], [20, 180, 60]], [[10, 60, 220], [240, 230, 90]]], dtype=np.uint8)
PICTURE = COLOURS.repeat(HEIGHT // 2, axis=0).repeat(WIDTH // 2, axis=1)  # (32, 48, 3)
GREY = np.array(Image.fromarray(PICTURE).convert("L"))  # (32, 48)


def quadrants(image: np.ndarray) -> np.ndarray:
    """The colours in the middles of the four quadrants : (2, 2, 3)."""
    return image[HEIGHT // 4 :: HEIGHT // 2, WIDTH // 4 :: WIDTH // 2].astype(int)


def grey(levels: np.ndarray) -> np.ndarray:
    return quadrants(np.repeat(levels[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("WEBP", {"quality": 100}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_every_kind_of_file_is_the_same_picture(kind: str, options: dict[str, Any]) -> None:
    lossy = kind in ("JPEG", "AVIF") or (kind == "WEBP" and "lossless" not in options)
    decoded = SPEC.decode(encode(Image.fromarray(PICTURE), kind, **options))
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(quadrants(decoded), COLOURS, atol=6 if lossy else 0)


def rgba(alpha: int) -> Image.Image:
    image = Image.fromarray(PICTURE).convert("RGBA")
    image.putalpha(alpha)
    return image


def palette_with_hole() -> bytes:
    """A palette image whose entry for the top-left colour is transparent."""
    image = Image.fromarray(PICTURE).quantize(4)
    return encode(image, "PNG", transparency=image.getpixel((1, 1)))


SIXTEEN = GREY.astype(np.uint16) * 256 + 77
HALF = (PICTURE.astype(int) * 128 + 255 * 127) // 255  # alpha 128 over white
HOLE = COLOURS.astype(int)
HOLE[0, 0] = 255

MODES: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "palette": (lambda: encode(Image.fromarray(PICTURE).quantize(4), "PNG"), COLOURS, 0),
    "palette with transparency": (palette_with_hole, HOLE, 0),
    "alpha 255": (lambda: encode(rgba(255), "PNG"), COLOURS, 0),
    "alpha 128": (lambda: encode(rgba(128), "PNG"), quadrants(HALF), 1),
    "alpha 0 is white": (lambda: encode(rgba(0), "WEBP", lossless=True, exact=True), np.full((2, 2, 3), 255), 0),
    "grey": (lambda: encode(Image.fromarray(GREY), "PNG"), grey(GREY), 0),
    "grey with alpha": (lambda: encode(rgba(128).convert("LA"), "PNG"), grey((GREY.astype(int) + 255) // 2), 1),
    "grey with a transparent level": (
        lambda: encode(Image.fromarray(GREY), "PNG", transparency=int(GREY[0, 0])),
        np.where(np.array([[True, False], [False, False]])[..., None], 255, grey(GREY)),
        0,
    ),
    "colour with a transparent colour": (
        lambda: encode(Image.fromarray(PICTURE), "PNG", transparency=(200, 30, 40)),
        HOLE,
        0,
    ),
    "one bit": (
        lambda: encode(Image.fromarray(GREY > 128).convert("1"), "PNG"),
        grey((GREY > 128) * np.uint8(255)),
        0,
    ),
    "16-bit grey keeps its upper byte": (lambda: encode(Image.fromarray(SIXTEEN), "PNG"), grey(GREY), 0),
    "16-bit grey TIFF": (lambda: encode(Image.fromarray(SIXTEEN), "TIFF"), grey(GREY), 0),
    "16-bit big-endian grey TIFF": (
        lambda: encode(Image.frombytes("I;16B", (WIDTH, HEIGHT), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
        grey(GREY),
        0,
    ),
    "16-bit colour keeps its upper byte": (
        lambda: png_of(PICTURE.astype(np.uint16) * 256 + 99, colour=2),
        COLOURS,
        0,
    ),
    "16-bit colour with alpha": (
        lambda: png_of(np.dstack([PICTURE.astype(np.uint16) * 257, np.full(GREY.shape, 65_535)]), colour=6),
        COLOURS,
        0,
    ),
    "cmyk": (lambda: encode(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"), COLOURS, 1),
    "cmyk JPEG": (lambda: encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95), COLOURS, 8),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_storing_pixels(mode: str) -> None:
    make, expected, tolerance = MODES[mode]
    np.testing.assert_allclose(quadrants(SPEC.decode(make())), expected, atol=tolerance)


def test_mpo_is_its_first_picture() -> None:
    """What phones write: a photograph with a preview behind it."""
    data = encode(
        Image.fromarray(PICTURE), "MPO", save_all=True, append_images=[rgba(255).convert("RGB").rotate(180)], quality=95
    )
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    np.testing.assert_allclose(quadrants(SPEC.decode(data)), COLOURS, atol=8)


def test_a_gif_of_one_frame_is_no_animation() -> None:
    data = encode(Image.fromarray(PICTURE), "GIF", save_all=True, loop=0)
    assert (quadrants(SPEC.decode(data)) == COLOURS).all()


# EXIF 2.3, tag 274: where the stored row r and column c stand in the upright image, of R stored rows and C columns
UPRIGHT: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    1: lambda r, c, R, C: (r, c),
    2: lambda r, c, R, C: (r, C - 1 - c),
    3: lambda r, c, R, C: (R - 1 - r, C - 1 - c),
    4: lambda r, c, R, C: (R - 1 - r, c),
    5: lambda r, c, R, C: (c, r),
    6: lambda r, c, R, C: (c, R - 1 - r),
    7: lambda r, c, R, C: (C - 1 - c, R - 1 - r),
    8: lambda r, c, R, C: (C - 1 - c, r),
}


def stored(orientation: int) -> Image.Image:
    """PICTURE as a camera held that way would have stored it."""
    rows, columns = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    image = np.empty((rows, columns, 3), dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            image[row, column] = PICTURE[UPRIGHT[orientation](row, column, rows, columns)]
    return Image.fromarray(image)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    decoded = SPEC.decode(encode(stored(orientation), kind, exif=exif, **options))
    np.testing.assert_allclose(quadrants(decoded), COLOURS, atol=6)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_unknown_orientation_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    assert (quadrants(SPEC.decode(encode(Image.fromarray(PICTURE), "PNG", exif=exif))) == COLOURS).all()


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense", b"Exif\0\0MM\0*"])
def test_damaged_metadata_leave_the_picture_alone(exif: bytes) -> None:
    jpeg = encode(Image.fromarray(PICTURE), "JPEG", quality=95, subsampling=0)
    with_exif = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    np.testing.assert_allclose(quadrants(SPEC.decode(with_exif)), COLOURS, atol=6)
    rows = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    with_chunk = png(WIDTH, HEIGHT, rows, extra=png_chunk(b"eXIf", exif) + png_chunk(b"iCCP", b"x\0\0nonsense"))
    assert (quadrants(SPEC.decode(with_chunk)) == COLOURS).all()


# Sizes


def test_resize_ignores_the_aspect_ratio_as_the_naive_pipeline_does() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (75, 41, 3), dtype=np.uint8)
    naive = np.array(Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    assert (SPEC.decode(encode(Image.fromarray(pixels), "PNG")) == naive).all()


def test_an_image_of_the_right_size_is_untouched() -> None:
    decoded = SPEC.decode(encode(Image.fromarray(PICTURE), "PNG"))
    assert (decoded == PICTURE).all()
    decoded[0, 0] = 0  # and it is the caller's own, to write into


@pytest.mark.parametrize("factor", [4, 16])
def test_large_jpegs_are_drafted_close_to_the_full_decode(factor: int) -> None:
    """A JPEG may be decoded at an eighth of its size, but never below twice the size that is wanted."""
    detail = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    large = Image.fromarray(detail).resize((WIDTH * factor, HEIGHT * factor), Image.Resampling.BICUBIC)
    data = encode(large, "JPEG", quality=95, subsampling=0)
    full = np.array(Image.open(io.BytesIO(data)).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    assert np.abs(SPEC.decode(data).astype(int) - full).mean() < 8


def test_too_little_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    data = encode(Image.fromarray(PICTURE), "PNG")
    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(ImageError, match="not enough memory"):
        SPEC.decode(data)


def test_box_is_cut_before_the_resize() -> None:
    data = encode(Image.fromarray(PICTURE), "PNG")
    right = SPEC.decode(data, (WIDTH / 2, 0, WIDTH / 2, HEIGHT))
    assert (right[: HEIGHT // 2 - 1] == COLOURS[0, 1]).all()
    assert (right[HEIGHT // 2 + 1 :] == COLOURS[1, 1]).all()
    assert (SPEC.decode(data, (-100, -100, 1000, 1000)) == PICTURE).all(), "a box is clipped to the image"
    for outside in [(WIDTH, 0, 5, 5), (0, 0, 0, 5), (-9, 0, 9, 9), (0, 0, -5, 5), (float("nan"), 0, 9, 9)]:
        with pytest.raises(ImageError, match="bounding box"):
            SPEC.decode(data, outside)


@pytest.mark.parametrize(
    ("side", "accepted"), [((7, 8), False), ((8, 7), False), ((8, 8), True), ((400, 125), True), ((400, 126), False)]
)
def test_limits_are_exact(side: tuple[int, int], accepted: bool) -> None:
    spec = ImageSpec(height=HEIGHT, width=WIDTH, min_side=8, max_pixels=50_000)
    data = encode(Image.new("RGB", side), "PNG")
    if accepted:
        assert spec.decode(data).shape == (HEIGHT, WIDTH, 3)
        return
    with pytest.raises(ImageError, match="pixels are"):
        spec.decode(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 7},
        {"width": 4097},
        {"resize": "crop"},
        {"interpolation": "nearest"},
        {"max_bytes": 0},
        {"max_pixels": -1},
        {"min_side": 0},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"image|resize|interpolation"):
        ImageSpec(**{"height": HEIGHT, "width": WIDTH} | wrong)
