"""Images as phones and cameras write them: other suffixes, HEIC, fifty megapixels, megabytes of words about them."""

import io
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle import ImageSpec
from bundle.coded import coded_pixels, declared_pixels
from bundle.errors import ImageError
from bundle.formats import (
    KINDS,
    count_passed_over,
    formats,
    is_image,
    is_streamed,
    passed_over,
    scans_of,
    suffixes,
)
from bundle.image import Box, upright_size
from tests.bundle.test_image import COLOURS, PICTURE, SPEC, UPRIGHT, quadrants, stored
from tests.hostile.images import encode, heic, lying, many_scans, png, png_chunk

ROOT = Path(__file__).parent.parent.parent
ROWS = b"".join(b"\0" + row.tobytes() for row in PICTURE)


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without the extra."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    formats.cache_clear()
    suffixes.cache_clear()
    yield
    monkeypatch.undo()
    formats.cache_clear()
    suffixes.cache_clear()


# kinds


def test_every_suffix_is_read(tmp_path: Path) -> None:
    for kind, names in KINDS.items():
        data = heic(Image.fromarray(PICTURE), quality=95) if kind == "HEIF" else encode(Image.fromarray(PICTURE), kind)
        for suffix in names:
            path = tmp_path / f"photo{suffix.upper()}"
            path.write_bytes(data)
            assert is_image(path.name)
            assert SPEC.read(path).shape == PICTURE.shape
            assert upright_size(path) == (PICTURE.shape[1], PICTURE.shape[0])
    assert sorted(suffixes()) == sorted(suffix for names in KINDS.values() for suffix in names)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_heic_is_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = heic(stored(orientation), quality=95, chroma=444, exif=exif.tobytes())
    np.testing.assert_allclose(quadrants(SPEC.decode(data)), COLOURS, atol=8)
    (tmp_path / "photo.heic").write_bytes(data)
    assert upright_size(tmp_path / "photo.heic") == (PICTURE.shape[1], PICTURE.shape[0])


def test_a_burst_is_its_primary_image() -> None:
    images = [Image.fromarray(PICTURE).rotate(180), Image.fromarray(PICTURE), Image.new("RGB", (64, 64))]
    data = heic(*images, primary=1, quality=95, chroma=444)
    np.testing.assert_allclose(quadrants(SPEC.decode(data)), COLOURS, atol=8)


@pytest.mark.usefixtures("without_heif")
def test_without_the_extra_heic_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(heic_made := HEIC)
    with pytest.raises(ImageError, match=r"photo.jpg: reading HEIC needs the 'heic' extra .*'\.\[heic\]'"):
        SPEC.read(tmp_path / "photo.jpg")
    assert not is_image("photo.heic")
    assert is_image("photo.avif")
    assert "pip install '.[heic]'" in passed_over({".heic": 3})
    assert "pip" not in passed_over({".txt": 3})
    assert heic_made[4:12] == b"ftypheic"


HEIC = heic(Image.fromarray(PICTURE))


def test_a_pillow_without_avif_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.formats.features.check", lambda feature: False)
    formats.cache_clear()
    try:
        with pytest.raises(ImageError, match="an AVIF image, which this build of Pillow cannot read"):
            SPEC.decode(encode(Image.fromarray(PICTURE), "AVIF"))
        assert SPEC.decode(encode(Image.fromarray(PICTURE), "PNG")).shape == PICTURE.shape
    finally:
        monkeypatch.undo()
        formats.cache_clear()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, ""),
        ({".heic": 30}, "30 .heic passed over"),
        ({".txt": 2, ".heic": 30}, "30 .heic and 2 .txt passed over"),
        ({".c": 1, "": 2, ".a": 1000}, "1,000 .a, 2 without a suffix and 1 .c passed over"),
        (dict.fromkeys("abcdefg", 1), "1 a, 1 b, 1 c, 1 d, 1 e and 2 of other kinds passed over"),
    ],
)
def test_what_is_passed_over_is_said(counts: dict[str, int], words: str) -> None:
    assert passed_over(counts) == words


def test_counts_stay_few_whatever_the_files_are_called() -> None:
    counts: Counter[str] = Counter()
    for index in range(10_000):
        count_passed_over(counts, f"frame.{index:06}")
    for name in ("a.TXT", "a." + "x" * 200, "a.\x1b[31m", "README"):
        count_passed_over(counts, name)
    assert len(counts) <= 101
    assert counts.total() == 10_004


# words


def words(kind: bytes, text: bytes, keyword: bytes = b"Comment") -> bytes:
    """A chunk of text or colour profile, as PNG packs each kind."""
    packed = zlib.compress(text, 1)
    body = {b"tEXt": text, b"zTXt": b"\0" + packed, b"iCCP": b"\0" + packed, b"iTXt": b"\1\0\0\0" + packed}[kind]
    return png_chunk(kind, keyword + b"\0" + body)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("keyword", [b"Comment", b"XML:com.adobe.xmp", b"Raw profile type exif"])
def test_megabytes_of_words_in_a_png(kind: bytes, keyword: bytes) -> None:
    chunk = words(kind, bytes(1 << 21) if kind == b"tEXt" else bytes(20 << 20), keyword)
    for data in (
        png(PICTURE.shape[1], PICTURE.shape[0], ROWS, extra=chunk),
        png(PICTURE.shape[1], PICTURE.shape[0], ROWS).replace(png_chunk(b"IEND", b""), chunk + png_chunk(b"IEND", b"")),
    ):
        assert (SPEC.decode(data) == PICTURE).all()


def test_words_that_tell_the_orientation_are_heard() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    for kind in (b"iTXt", b"zTXt"):
        chunks = words(b"iCCP", bytes(3 << 20)) + words(kind, xmp, b"XML:com.adobe.xmp")
        turned = SPEC.decode(png(PICTURE.shape[1], PICTURE.shape[0], ROWS, extra=chunks))
        assert (turned == PICTURE[::-1, ::-1]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("what", ["icc_profile", "exif", "xmp"])
def test_megabytes_about_a_picture(kind: str, what: str) -> None:
    about = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    if kind == "JPEG" and what != "icc_profile":
        about = about[:60_000]  # what one segment holds
    if what == "exif":
        about = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + about
    options: dict[str, Any] = {what: about}
    image = Image.fromarray(PICTURE)
    if kind == "HEIF" and what == "icc_profile":
        image.info["icc_profile"] = about
        options = {}
    data = heic(image, **options) if kind == "HEIF" else encode(image, kind, **options)
    np.testing.assert_allclose(quadrants(SPEC.decode(data)), COLOURS, atol=25)


def test_a_film_behind_a_photograph_has_no_scans() -> None:
    """What phones append to it looks like anything."""
    photograph = encode(Image.fromarray(PICTURE), "JPEG", quality=95, subsampling=0)
    data = photograph + b"\xff\xda\0\x0c" * 1000
    np.testing.assert_allclose(quadrants(SPEC.decode(data)), COLOURS, atol=6)
    preview = b"\xff\xe2" + (8002).to_bytes(2, "big") + b"\xff\xda" * 4000
    np.testing.assert_allclose(quadrants(SPEC.decode(data[:2] + preview + data[2:])), COLOURS, atol=6)
    assert scans_of(data[:2] + preview + data[2:]) == 1
    assert [scans_of(many_scans(count)) for count in (8, 64, 65, 300)] == [8, 64, 65, 300]


def test_which_jpegs_can_be_decoded_row_by_row() -> None:
    image = Image.fromarray(PICTURE)
    assert is_streamed(encode(image, "JPEG"))
    assert is_streamed(encode(image.convert("L"), "JPEG", restart_marker_rows=1))
    assert is_streamed(encode(image.convert("CMYK"), "JPEG"))
    assert not is_streamed(encode(image, "JPEG", progressive=True))
    one_by_one = bytearray(encode(image, "JPEG"))  # the first scan says that it holds one component of three
    one_by_one[one_by_one.index(b"\xff\xda") + 4] = 1
    assert not is_streamed(bytes(one_by_one))
    assert not is_streamed(b"\xff\xd8")


# cameras


def as_before(data: bytes, box: Box | None) -> np.ndarray:
    """The naive twin: what images within the limit have always become."""
    with Image.open(io.BytesIO(data)) as image:
        if box is None:
            image.draft("RGB", (2 * SPEC.width, 2 * SPEC.height))
        rgb = image.convert("RGB")
        if image.getexif().get(274) == 6:
            rgb = rgb.transpose(Image.Transpose.ROTATE_270)
    if box is not None:
        left, top, width, height = box
        rgb = rgb.crop((round(left), round(top), round(left + width), round(top + height)))
    return np.array(rgb.resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(8, 700), st.integers(8, 700)),
    progressive=st.booleans(),
    turned=st.booleans(),
    corners=st.none() | st.tuples(*[st.floats(0, 1)] * 4),
    kind=st.sampled_from(["JPEG", "JPEG", "PNG"]),
)
def test_within_the_limit_nothing_is_decoded_otherwise(
    size: tuple[int, int], progressive: bool, turned: bool, corners: tuple[float, ...] | None, kind: str
) -> None:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6 if turned else 1
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    data = encode(image, kind, exif=exif, **({"progressive": True} if progressive and kind == "JPEG" else {}))
    box = None
    if corners is not None:
        width, height = size[::-1] if turned else size
        left, right = sorted((corners[0] * (width - 1), corners[1] * (width - 1)))
        top, bottom = sorted((corners[2] * (height - 1), corners[3] * (height - 1)))
        box = (round(left), round(top), round(right - left) + 1, round(bottom - top) + 1)
    assert (SPEC.decode(data, box) == as_before(data, box)).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_in_an_image_above_the_limit(orientation: int) -> None:
    """It is cut from a draft, and what it shows is the same."""
    exif = Image.Exif()
    exif[274] = orientation
    detail = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(detail).resize((2400, 1600), Image.Resampling.BICUBIC)
    data = encode(image, "JPEG", quality=95, subsampling=0, exif=exif)
    small = ImageSpec(height=32, width=48, max_pixels=1_000_000)
    for box in ((200, 300, 600, 500), (0, 0, 1600, 1600), (1000, 900, 120, 90), (1599, 1599, 1, 1)):
        whole, drafted = SPEC.decode(data, box).astype(int), small.decode(data, box).astype(int)
        assert np.abs(whole - drafted).mean() < (4 if box[2] > 48 else 40), box
    with pytest.raises(ImageError, match=r"the bounding box \(5000, 0, 10, 10\) lies outside the \d+x\d+ image"):
        small.decode(data, (5000, 0, 10, 10))
    assert np.abs(SPEC.decode(data).astype(int) - small.decode(data)).mean() < 4


def test_the_limit_is_of_what_is_decoded() -> None:
    flat = Image.new("RGB", (400, 400), "green")
    for times, options in ((4, {}), (2, {"progressive": True})):
        data = encode(flat, "JPEG", **options)
        assert ImageSpec(height=32, width=48, max_pixels=160_000 // times).decode(data).shape == (32, 48, 3)
        with pytest.raises(ImageError, match="more than the limit of"):
            ImageSpec(height=32, width=48, max_pixels=160_000 // times - 1).decode(data)
    with pytest.raises(ImageError, match=r"400x400 pixels are more than the limit of 159,999") as caught:
        ImageSpec(height=32, width=48, max_pixels=159_999).decode(encode(flat, "PNG"))
    assert "'fieldmark train --max-pixels'" in str(caught.value)


def test_an_avif_is_as_large_as_its_data_say() -> None:
    """Its decoder makes room for what they announce, whatever its header says."""
    spec = ImageSpec(height=32, width=48, max_pixels=200_000)
    for options in ({}, {"subsampling": "4:4:4"}, {"xmp": b"\n\n<xmp>" * 500}):
        for mode in ("RGB", "RGBA", "L"):
            data = encode(Image.new(mode, (640, 480)), "AVIF", speed=10, **options)
            assert coded_pixels(data) == 640 * 480
            with pytest.raises(ImageError, match="307,200 coded pixels are more than the limit of 200,000"):
                spec.decode(lying(data, 48, 32))
    with pytest.raises(ImageError, match="640x480 pixels are more than"):
        spec.decode(data)
    film = encode(Image.new("RGB", (48, 32)), "AVIF", save_all=True, append_images=[Image.new("RGB", (48, 32), "red")])
    with pytest.raises(ValueError, match="it is a film"):
        coded_pixels(film)
    with pytest.raises(ValueError, match="no AV1 picture"):
        coded_pixels(heic(Image.fromarray(PICTURE)))
    assert declared_pixels(heic(Image.new("RGB", (640, 480)), Image.new("RGB", (64, 64)))) == 640 * 480
    with pytest.raises(ImageError, match=r"307,200 coded pixels|640x480 pixels"):
        spec.decode(heic(Image.new("RGB", (64, 64)), Image.new("RGB", (640, 480))))


@pytest.mark.parametrize(
    ("size", "options", "megabytes"),
    [
        ((8160, 6144), {}, 60),
        # A progressive one's coefficients are held at full size, two bytes each: 150 MB with colours at half the size.
        ((8160, 6144), {"progressive": True}, 220),
    ],
)
def test_what_cameras_write_takes_little_memory(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any], megabytes: int
) -> None:
    make = """
import sys
from PIL import Image
width, height, progressive, path = int(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4]
Image.radial_gradient("L").resize((width, height)).convert("RGB").save(path, progressive=progressive, quality=60)
"""
    path, progressive = tmp_path / "camera.jpg", str(int(options.get("progressive", False)))
    subprocess.run([sys.executable, "-c", make, *map(str, size), progressive, path], check=True)
    measure = """
import pathlib, resource, sys
from bundle import ImageSpec
spec = ImageSpec(height=224, width=224)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = spec.read(pathlib.Path(sys.argv[1]))
cut = spec.read(pathlib.Path(sys.argv[1]), (100, 100, 3000, 3000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, image[112, 112].max(), image[0, 0].min())
"""
    run = subprocess.run([sys.executable, "-c", measure, path], capture_output=True, text=True, check=True, cwd=ROOT)
    more, middle, corner = map(int, run.stdout.split())
    assert more < megabytes * 1024
    assert middle < 30
    assert corner > 200
