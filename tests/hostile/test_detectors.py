"""Detector files from strangers: archives that claim, hide or unpack, and arrays that do not fit each other."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.arrays import read_arrays
from bundle.errors import BundleCorrupt
from detector.model import Detector
from scoring.drift.scored import read_calibration
from tests.conftest import MakeToyBundle

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

Members = dict[str, bytes]


def arrays(classes: int = 3) -> dict[str, Any]:
    """A detector of two layers, 4 and 5 channels wide."""
    random = np.random.default_rng(0)
    found: dict[str, Any] = {
        "layers": np.array(["a", "b"]),
        "weights": np.ones(6, np.float32),
        "bias": np.float64(0.5),
        "calibration": np.arange(9, dtype=np.float32),
        "calibration_classes": np.arange(9) % classes,
        "alpha": np.float64(0.05),
    }
    for layer, width in (("a", 4), ("b", 5)):
        found |= {
            f"{layer}/whitening": random.normal(size=(width, width)).astype(np.float32),
            f"{layer}/center": random.normal(size=width).astype(np.float32),
            f"{layer}/means": random.normal(size=(classes, width)).astype(np.float32),
            f"{layer}/shrinkage": np.float64(0.1),
            f"{layer}/overall": random.normal(size=(width, width)).astype(np.float32),
        }
    return found


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(array), **options)
    return stream.getvalue()


def claim(shape: str, descr: str = "'<f4'", body: bytes = b"") -> bytes:
    """An .npy file that says what it likes of itself."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body


def pack(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members(**changes: Any) -> Members:
    return {f"{name}.npy": npy(value) for name, value in (arrays() | changes).items()}


def use(detector: Detector) -> None:
    """What is done with a loaded detector: nothing may fail in it any more."""
    features = {
        layer: np.zeros((2, fitted.center.size), np.float32)
        for layer, fitted in zip(detector.layers, detector.gaussians, strict=True)
    }
    answers = np.zeros(2, np.int64)
    with np.errstate(all="ignore"):  # finite numbers of any size may overflow, which is no exception
        detector.p_values(detector.score(features, answers), answers)


def test_the_detector_is_whole(tmp_path: Path) -> None:
    detector = Detector.load(pack(tmp_path / "d.npz", members()))
    assert detector.layers == ("a", "b")
    use(detector)


# Archives


def bomb(path: Path) -> None:
    pack(path, members(calibration=np.zeros(25_000_000, np.float32)), zipfile.ZIP_DEFLATED)


def overlapping(path: Path) -> None:
    """A thousand names for one member: each is stored, and together they are a thousand times the file."""
    pack(path, {"big.npy": npy(np.zeros(50_000))})
    data = path.read_bytes()
    start, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    entry, tail = data[start:end], bytearray(data[end:])
    entries = b"".join(entry.replace(b"big.npy", b"%03d.npy" % index) for index in range(1000))
    tail[8:12] = (1000).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(data[:start] + entries + bytes(tail))


def twice(path: Path) -> None:
    pack(path, members())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("alpha.npy", npy(np.float64(0.5)))


def locked(path: Path) -> None:
    pack(path, members())
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)


def plain_array(path: Path) -> None:
    path.write_bytes(npy(np.zeros(3)))


def plain_pickle(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (bomb, "is compressed"),
    "overlapping members": (overlapping, "are said to hold"),
    "a name twice": (twice, "a name appears twice"),
    "a member that is no array": (lambda path: pack(path, members() | {"run.py": b"1"}), "'run.py' is no array"),
    "encrypted": (locked, "encrypted"),
    "one array without an archive": (plain_array, "is not a detector"),
    "a pickle": (plain_pickle, "is not a detector"),
    "a folder": (Path.mkdir, "not a regular file"),
    "no file": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("way", ARCHIVES)
def test_archives_that_are_none(tmp_path: Path, way: str) -> None:
    make, sentence = ARCHIVES[way]
    make(tmp_path / "d.npz")
    with pytest.raises(BundleCorrupt, match=r"d\.npz is not a detector \(") as caught:
        Detector.load(tmp_path / "d.npz")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("make", [bomb, overlapping])
def test_nothing_takes_more_memory_than_its_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "d.npz")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"compressed|hold"):
            read_arrays(tmp_path / "d.npz")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# Arrays

ARRAYS: dict[str, tuple[bytes, str]] = {
    "a trillion numbers": (claim("(1000000000000,)"), "has not the size"),
    "more than there is": (claim("(9,)", body=bytes(35)), "has not the size"),
    "less than there is": (claim("(9,)", body=bytes(37)), "has not the size"),
    "sizes that overflow": (claim("(4294967296, 4294967296)"), "has not the size"),
    "negative sizes": (claim("(-3, -3)", body=bytes(36)), "has not the size"),
    "sizes of nothing": (claim("(1000000000000,)", "'<U0'"), "has the type '<U0'"),
    "objects": (npy(np.array([{}]), allow_pickle=True), "has the type 'object'"),
    "objects inside records": (claim("(1,)", "[('x', '|O')]", bytes(8)), "has the type"),
    "raw bytes": (claim("(1,)", "'|V4'", bytes(4)), "has the type"),
    "a shape that is code": (claim("(__import__('os').getpid(),)"), "is not a detector"),
    "a header of brackets": (claim("(" * 4000 + ")" * 4000), "is not a detector"),
    "a future format": (b"\x93NUMPY\x09\0" + bytes(100), "is not a detector"),
    "no magic": (bytes(200), "is not a detector"),
    "nothing": (b"", "is not a detector"),
}


@pytest.mark.parametrize("way", ARRAYS)
def test_arrays_that_are_none(tmp_path: Path, way: str) -> None:
    data, sentence = ARRAYS[way]
    pack(tmp_path / "d.npz", members() | {"calibration.npy": data})
    with pytest.raises(BundleCorrupt, match=r"d\.npz is not a detector") as caught:
        Detector.load(tmp_path / "d.npz")
    assert sentence in str(caught.value)


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": np.array([], "U1")}, "its layers are none"),
    "a layer twice": ({"layers": np.array(["a", "a"])}, "one is there twice"),
    "a layer that is missing": ({"layers": np.array(["a", "c"])}, "c/whitening"),
    "another width": ({"a/means": np.zeros((3, 5), np.float32)}, "its a/means is not [3, 4] finite numbers"),
    "another number of classes": ({"b/means": np.zeros((2, 5), np.float32)}, "its b/means is not [3, 5]"),
    "a flat matrix": ({"a/whitening": np.zeros(16, np.float32)}, "its a/whitening is not [4, 4]"),
    "no channels": ({"a/center": np.zeros(0, np.float32)}, "its a/center is not [0]"),
    "not a number": ({"a/overall": np.full((4, 4), np.nan, np.float32)}, "its a/overall is not"),
    "integers": ({"a/center": np.zeros(4, np.int64)}, "its a/center is not"),
    "text": ({"a/center": np.array(["x"] * 4)}, "its a/center is not"),
    "one weight too few": ({"weights": np.ones(5, np.float32)}, "its weights is not [6]"),
    "a bias of text": ({"bias": np.array("much")}, "is not a detector"),
    "an infinite bias": ({"bias": np.float64(np.inf)}, "its bias is not"),
    "an empty calibration": ({"calibration": np.zeros(0, np.float32)}, "its calibration is not"),
    "a falling calibration": ({"calibration": -np.arange(9, dtype=np.float32)}, "not in ascending order"),
    "an alpha of one": ({"alpha": np.float64(1)}, "its alpha is not between 0 and 1"),
    "no number for alpha": ({"alpha": np.float64(np.nan)}, "its alpha is not between 0 and 1"),
    "a class too many": ({"calibration_classes": np.arange(9) % 4}, "its calibration_classes are not"),
    "a class below none": ({"calibration_classes": np.arange(9) % 3 - 1}, "its calibration_classes are not"),
    "classes of fractions": ({"calibration_classes": np.zeros(9)}, "its calibration_classes are not"),
    "fewer classes than scores": ({"calibration_classes": np.zeros(8, np.int64)}, "its calibration_classes are not"),
}


@pytest.mark.parametrize("way", PARTS)
def test_parts_that_do_not_fit(tmp_path: Path, way: str) -> None:
    change, sentence = PARTS[way]
    pack(tmp_path / "d.npz", members(**change))
    with pytest.raises(BundleCorrupt, match="is not a detector") as caught:
        Detector.load(tmp_path / "d.npz")
    assert sentence in str(caught.value)


# Any damage


@settings(max_examples=150, deadline=None, derandomize=True)
@given(place=st.floats(0, 1), new=st.binary(max_size=8), cut=st.integers(0, 64))
def test_any_damage_is_an_error_or_a_detector_that_works(
    tmp_path_factory: pytest.TempPathFactory, place: float, new: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    data = pack(path, members()).read_bytes()
    start = int(place * len(data))
    path.write_bytes(data[:start] + new + data[start + cut :])
    load_or_refuse(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(arrays())), place=st.integers(0, 300), new=st.binary(min_size=1, max_size=8))
def test_any_damage_below_right_checksums(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, new: bytes
) -> None:
    """The archive's own CRC made right again: the damage reaches header, shape or numbers."""
    found = members()
    data = found[f"{name}.npy"]
    found[f"{name}.npy"] = data[: place % len(data)] + new + data[place % len(data) + len(new) :]
    load_or_refuse(pack(tmp_path_factory.getbasetemp() / "damaged.npz", found))


def load_or_refuse(path: Path) -> None:
    try:
        detector = Detector.load(path)
    except BundleCorrupt:
        return
    use(detector)


def test_what_reads_the_calibration_reads_it_as_carefully(make_toy_bundle: MakeToyBundle, tmp_path: Path) -> None:
    bundle = make_toy_bundle(tmp_path / "bundle")
    for data, _ in ARRAYS.values():
        pack(bundle.file("detector/full.npz"), {"calibration.npy": data})
        with pytest.raises(BundleCorrupt, match=r"full\.npz is not a detector"):
            read_calibration(bundle, "full")
