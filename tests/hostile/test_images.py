"""Whatever bytes arrive, the answer is an array of the spec's shape or one ImageError: soon, and in little memory."""

import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundle import ImageSpec
from bundle.errors import ImageError
from bundle.image import Box
from tests.hostile import images

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]

ROOT = Path(__file__).parent.parent.parent
SPEC = ImageSpec(height=32, width=48)
REFUSED = images.refused() | images.bombs()
SMALL = images.small_files()


def answer(data: bytes, box: Box | None = None) -> np.ndarray | str:
    """The array, or the sentence of the one error that may come instead."""
    try:
        return SPEC.decode(data, box)
    except ImageError as problem:
        return str(problem)


def check(data: bytes) -> None:
    found = answer(data)
    assert isinstance(found, str) or (found.shape, found.dtype) == ((32, 48, 3), np.uint8)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    data, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=sentence) as caught:
        SPEC.read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_refusing_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    """A process that may use 500 MB more than it has refuses each bomb, and for the right reason."""
    for name, (data, _) in images.bombs().items():
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, resource, sys
from bundle import ImageSpec
from bundle.errors import ImageError
have = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (have + 500_000_000,) * 2)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        ImageSpec(height=32, width=48).read(path)
    except ImageError as problem:
        print(problem)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == len(images.bombs())
    assert all("more than the limit" in line for line in lines), lines


def test_64_scans_are_still_a_photograph() -> None:
    assert SPEC.decode(images.many_scans(64)).shape == (32, 48, 3)
    with pytest.raises(ImageError, match="scans"):
        SPEC.decode(images.many_scans(65))


def test_a_file_above_the_limit_of_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a sparse file of one TiB
    tracemalloc.start()
    with pytest.raises(ImageError, match="more than the limit of 67,108,864 bytes"):
        SPEC.read(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    data = images.encode(images.noise(), "BMP")
    limit = ImageSpec(height=32, width=48, max_bytes=len(data))
    assert limit.decode(data).shape == (32, 48, 3)
    with pytest.raises(ImageError, match="limit"):
        limit.decode(data + b"\0")


@pytest.mark.parametrize("name", SMALL)
def test_cut_at_every_tenth_byte(name: str) -> None:
    for length in range(0, len(SMALL[name]), 10):
        check(SMALL[name][:length])


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(SMALL)),
    damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), min_size=1, max_size=8),
    front=st.booleans(),
)
def test_damaged_bytes(name: str, damage: list[tuple[int, bytes]], front: bool) -> None:
    data = bytearray(SMALL[name])
    for place, new in damage:
        place %= min(len(data), 600 if front else len(data))  # headers are where decoders branch
        data[place : place + len(new)] = new
    check(bytes(data))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
@example(b"\xff\xd8\xff")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"II*\0\x08\0\0\0")
def test_any_bytes(data: bytes) -> None:
    check(data)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.tuples(*[st.floats(-60, 60) | st.floats()] * 4))
def test_any_bounding_box(box: tuple[float, float, float, float]) -> None:
    found = answer(SMALL["colour.png"], box)
    assert "bounding box" in found if isinstance(found, str) else found.shape == (32, 48, 3)


def test_damage_is_silent() -> None:
    """Warnings of decoders do not reach the user's terminal; only libtiff, which prints by itself, cannot be hushed."""
    script = """
from bundle import ImageSpec
from bundle.errors import ImageError
from tests.hostile import images
refused = 0
for name, data in images.small_files().items():
    if name.endswith("plain.tif") or not name.endswith(".tif"):
        for place in range(4, min(len(data), 400), 7):
            try:
                ImageSpec(height=32, width=48).decode(data[:place] + b"\\xff\\x00\\xff" + data[place + 3 :])
            except ImageError:
                refused += 1
print(refused)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(run.stdout) > 100
    assert run.stderr == ""


# Paths instead of bytes


@pytest.mark.timeout(20)
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg: not a regular file"):
        SPEC.read(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/"])
def test_a_device_or_folder_is_no_file(path: str) -> None:
    with pytest.raises(ImageError, match=r"not a regular file|a folder, not an image"):
        SPEC.read(Path(path))


def test_a_folder_named_like_an_image(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(ImageError, match=r"x\.jpg: a folder, not an image"):
        SPEC.read(tmp_path / "x.jpg")


def test_links_are_followed_and_dangling_ones_named(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(SMALL["colour.png"])
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert np.array_equal(SPEC.read(tmp_path / "link.png"), SPEC.read(tmp_path / "real.png"))
    with pytest.raises(ImageError, match=r"dangling\.png: no such file"):
        SPEC.read(tmp_path / "dangling.png")
    with pytest.raises(ImageError, match=r"loop\.png: too many levels"):
        SPEC.read(tmp_path / "loop.png")


@pytest.mark.parametrize(
    "name",
    ["Grünspecht ♂ 木.png", "-v.png", "a b\tc.png", "[bold].png", "$(id).png", "ä" * 123 + ".png", b"\xff\xfe.png"],
)
def test_any_name_can_be_read(tmp_path: Path, name: str | bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + os.fsencode(name)))
    path.write_bytes(SMALL["colour.png"])
    assert SPEC.read(path).shape == (32, 48, 3)


@pytest.mark.parametrize(("name", "sentence"), [("x" * 300 + ".png", "name too long"), ("a\0b.png", "null byte")])
def test_impossible_names(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        SPEC.read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(SMALL["colour.png"])
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        SPEC.read(tmp_path / "secret.png")


def test_no_files_stay_open(tmp_path: Path) -> None:
    """A million unreadable files must not use up the process's handles."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(SMALL["colour.png"])
    os.mkfifo(tmp_path / "pipe.png")
    before = len(os.listdir("/proc/self/fd"))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for _ in range(20):
        SPEC.read(tmp_path / "good.png")
        for name in ("bad.png", "pipe.png"):
            with pytest.raises(ImageError):
                SPEC.read(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before < limit
