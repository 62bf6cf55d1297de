"""What belongs together is found in the files themselves: bytes, pictures, times, names; and what does not, is not."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter

from training.data import open_dataset
from training.data.division import PARTS
from training.data.index import Sample
from training.data.look import COPY, SAME_COLOURS, SCENE, Look, alike, joined, look, same_bytes
from training.data.series import find_series

NOTHING = Look(bad={}, prints={}, taken={})


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Soft coloured blots: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 255, (7, 9, 3), dtype=np.uint8))
    return blots.resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, *, quality: int = 90, taken: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if taken is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    image.save(path, quality=quality, exif=exif)
    return path


def samples(root: Path, names: Iterable[str], label: int = 0) -> list[Sample]:
    return [Sample(key=name, path=root / name, label=label, box=None) for name in names]


def named(*names: str, fill: int = 12) -> set[tuple[str, ...]]:
    """The series of one class that the names alone tell; `fill` further images that merely count."""
    found = samples(Path("nowhere"), [*(f"c/{name}" for name in names), *(f"d/{n:03}.jpg" for n in range(fill))])
    return {tuple(Path(key).name for key in keys) for keys in find_series(found, NOTHING)}


@pytest.mark.parametrize(
    "again",
    [
        lambda image: image.resize((80, 60)),
        lambda image: image.resize((480, 360), Image.Resampling.LANCZOS),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: image.point(lambda level: min(255, level + 5)),
        lambda image: image.crop((1, 1, 159, 119)),
    ],
    ids=["smaller", "larger", "blurred", "brighter", "trimmed"],
)
def test_a_photograph_saved_again_is_a_copy(tmp_path: Path, again: Callable[[Image.Image], Image.Image]) -> None:
    save(picture(1), tmp_path / "a.jpg")
    save(again(picture(1)), tmp_path / "b.jpg", quality=50)
    save(picture(2), tmp_path / "c.jpg")
    seen = look(samples(tmp_path, ("a.jpg", "b.jpg", "c.jpg")))
    assert alike(seen.prints, COPY, SAME_COLOURS) == [("a.jpg", "b.jpg")]


def test_hundreds_of_different_pictures_are_no_copies_and_the_fast_search_equals_the_naive_one(tmp_path: Path) -> None:
    names = [save(picture(seed, (64, 48)), tmp_path / f"{seed}.jpg").name for seed in range(600)]  # above one block
    prints = look(samples(tmp_path, names)).prints
    assert len(prints) == 600
    assert alike(prints, SCENE) == []
    bits = {key: np.unpackbits(np.frombuffer(each[:32], np.uint8)) for key, each in prints.items()}
    wide = 100  # where random pictures begin to meet
    pairs = [(a, b) for a in names for b in names if a < b and (bits[a] != bits[b]).sum() <= wide]
    assert pairs
    assert alike(prints, wide) == joined(pairs)


def test_flat_pictures_resemble_nothing_and_colours_tell_drawings_apart(tmp_path: Path) -> None:
    for name, colour in (("a", "teal"), ("b", "navy")):
        save(Image.new("RGB", (40, 40), colour), tmp_path / f"{name}.jpg")
    grey = picture(3).convert("L")
    save(Image.merge("RGB", (grey, grey, grey)), tmp_path / "c.jpg")
    save(Image.merge("RGB", (grey, grey.point(lambda level: level // 2), grey)), tmp_path / "d.jpg")
    seen = look(samples(tmp_path, ("a.jpg", "b.jpg", "c.jpg", "d.jpg")))
    assert set(seen.prints) == {"c.jpg", "d.jpg"}
    assert alike(seen.prints, COPY) == [("c.jpg", "d.jpg")]
    assert alike(seen.prints, COPY, SAME_COLOURS) == []


def test_the_same_bytes_are_found_under_any_name_and_class(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-1] + b"x")  # of one size
    found = [*samples(tmp_path, ("a.jpg", "c.jpg")), *samples(tmp_path, ("b.jpg",), label=1)]
    assert same_bytes(found) == [("a.jpg", "b.jpg")]


def test_what_cannot_be_read_is_told_and_belongs_to_nothing(tmp_path: Path) -> None:
    whole = save(picture(1), tmp_path / "whole.jpg").read_bytes()
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    found = samples(tmp_path, ("whole.jpg", "x.jpg", "y.jpg"))
    seen = look(found)
    assert set(seen.bad) == {"x.jpg", "y.jpg"}
    assert all("damaged" in reason and str(tmp_path) not in reason for reason in seen.bad.values())
    assert find_series(found, seen) == ()


def test_exposures_within_seconds_are_a_series_in_one_class_and_not_in_two(tmp_path: Path) -> None:
    times = ("12:00:00", "12:00:02", "12:00:04", "12:00:09", "12:30:00")
    names = [f"{n}.jpg" for n in range(len(times))]
    for seed, (name, time) in enumerate(zip(names, times, strict=True)):
        save(picture(seed), tmp_path / name, taken=f"2024:05:01 {time}")
    save(picture(9), tmp_path / "other.jpg", taken="2024:05:01 12:00:01")
    found = [*samples(tmp_path, names), *samples(tmp_path, ("other.jpg",), label=1)]
    assert find_series(found, look(found)) == (("0.jpg", "1.jpg", "2.jpg"),)


def test_a_clock_that_stands_still_tells_nothing(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(14)]
    for seed, name in enumerate(names):
        save(picture(seed, (64, 48)), tmp_path / name, taken="2000:01:01 00:00:00")
    found = samples(tmp_path, names)
    seen = look(found)
    assert len(set(seen.taken.values())) == 1
    assert find_series(found, seen) == ()


@pytest.mark.parametrize(
    "together",
    [
        ("IMG_20240501_120000.jpg", "IMG_20240501_120002.jpg"),
        ("PXL_20240501_120000123.jpg", "PXL_20240501_120001987.jpg"),
        ("2024-05-01 12.00.00.jpg", "2024-05-01 12.00.03.jpg"),
        ("00000IMG_00000_BURST20240501120000_COVER.jpg", "00000IMG_00000_BURST20240501120000.jpg"),
        ("market_1_of_3.jpg", "market_2_of_3.jpg", "market_3_of_3.jpg"),
        ("film7_frame0001.jpg", "film7_frame0250.jpg"),
        ("DSC0001-2.jpg", "DSC0001.jpg"),
        ("IMG_0001 (1).jpg", "IMG_0001.jpg"),
        ("IMG_0001.jpg", "IMG_0002.jpg", "IMG_0003.jpg"),
        ("P1010007.jpg", "P1010008.jpg"),
    ],
)
def test_names_that_speak_of_one_scene(together: tuple[str, ...]) -> None:
    assert named(*together) == {tuple(sorted(together))}


@pytest.mark.parametrize(
    "apart",
    [
        [f"{n:03}.jpg" for n in range(50)],
        [f"Apple_{n:03}.jpg" for n in range(50)],
        [f"apple ({n}).jpg" for n in range(50)],
        [f"apple-{n}.jpg" for n in range(50)],
        [f"starburst{n}.jpg" for n in range(50)],
        [f"IMG_{n:04}.jpg" for n in range(50)],  # one album, in which no gap tells where a scene ends
        ["IMG_20240501_120000.jpg", "IMG_20240501_120100.jpg"],
        ["IMG_20249999_999999.jpg", "IMG_20249999_999998.jpg"],
        ["IMG_0001.jpg", "IMG_0003.jpg"],
    ],
    ids=lambda names: names[0],
)
def test_names_that_merely_count(apart: list[str]) -> None:
    assert named(*apart) == set()
    assert named(*apart, fill=0) == set()


def test_look_alikes_of_two_classes_are_no_series(tmp_path: Path) -> None:
    """Fine-grained classes resemble each other: only a copy joins two."""
    base = np.asarray(picture(1)).astype(int)
    shift = np.asarray(picture(2)).astype(int)
    for name, share in (("a", 0.0), ("b", 0.22)):
        mixed = (base * (1 - share) + shift * share).astype(np.uint8)
        save(Image.fromarray(mixed), tmp_path / f"{name}.png")
    names = ("a.png", "b.png")
    seen = look(samples(tmp_path, names))
    assert alike(seen.prints, SCENE) == [names]
    assert alike(seen.prints, COPY, SAME_COLOURS) == []
    assert find_series(samples(tmp_path, names), seen) == (names,)
    assert find_series([*samples(tmp_path, names[:1]), *samples(tmp_path, names[1:], label=1)], seen) == ()


def scenes(root: Path, classes: int = 3, number: int = 12) -> Path:
    """Each scene of a class photographed three times."""
    for label in range(classes):
        for scene in range(number):
            image = picture(100 * label + scene)
            for take in range(3):
                moved = image.crop((2 * take, take, 156 + take, 118))
                save(moved, root / f"class {label}" / f"{number * take + scene:03}.jpg")
    return root


def test_a_folder_of_scenes_is_divided_by_scene(tmp_path: Path) -> None:
    dataset = open_dataset(scenes(tmp_path))
    assert len(dataset.series) == 36
    assert dataset.division == "validation: 10 % of the training images, series kept together (36 found)"
    part_of = {sample.key: part for part in PARTS for sample in dataset.parts[part]}
    for keys in dataset.series:
        assert len(keys) == 3
        assert len({part_of[key] for key in keys}) == 1
    assert all({sample.label for sample in dataset.parts[part]} == {0, 1, 2} for part in PARTS)
    again = open_dataset(tmp_path, series=dataset.series)  # as a run opens it, without looking
    assert again.looked is None
    assert (again.parts, again.digest, again.division) == (dataset.parts, dataset.digest, dataset.division)


def test_nothing_is_looked_at_where_there_is_nothing_to_divide_or_a_format_publishes_its_parts(
    tmp_path: Path, tiny_birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("every image was decoded")

    monkeypatch.setattr("training.data.dataset.look", never)
    dataset = open_dataset(tiny_birds)
    assert dataset.series == ()
    assert dataset.division == "validation: 10 % of the training images, image by image"
    scenes(tmp_path, number=2)
    rows = ["path,label,part"]
    for path in sorted(tmp_path.rglob("*.jpg")):
        part = ("train", "val", "calibration", "test")[int(path.stem) % 4]
        rows.append(f"{path.relative_to(tmp_path)},{path.parent.name},{part}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    assert open_dataset(tmp_path / "all.csv").division == "validation: given by the dataset (3 of 3 classes)"
