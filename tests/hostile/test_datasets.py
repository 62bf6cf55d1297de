"""Damaged, half-copied, mislabelled and malicious datasets: one clear sentence each, and odd but honest ones work."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bundle.errors import DatasetError, ImageError, OptionError
from bundle.image import SUFFIXES, ImageSpec
from training.data import check_outside, open_dataset
from training.data.check import NAMED, sound
from training.data.loading import images_array
from training.data.look import look

pytestmark = pytest.mark.hostile

CUB_FILES = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
SPEC = ImageSpec(height=8, width=8)


def image(path: Path, seed: int | None = None) -> Path:
    """A flat picture, or noise by a seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (20, 16), "teal")
    if seed is not None:
        picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 20, 3), dtype=np.uint8))
    picture.save(path, format="PNG")
    return path


def refusal(root: Path) -> str:
    """The one sentence, with its hint, that a user reads."""
    with pytest.raises(DatasetError) as caught:
        open_dataset(root)
    assert caught.value.what
    assert caught.value.hint, "it must say what to do"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unreadable(root: Path) -> dict[str, str]:
    """All images that cannot be read, and why; training refuses them by name, and goes on without them if told to."""
    dataset = open_dataset(root)
    found = look(dataset.samples).bad
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        sound(dataset, ImageSpec(height=32, width=32), skip_bad=False)
    assert all(f"{key}: {reason}" in str(caught.value) for key, reason in list(found.items())[:NAMED])
    return found


def folder(root: Path, *classes: str, count: int = 4) -> Path:
    for name in classes:
        for number in range(count):
            image(root / name / f"{number}.jpg")
    return root


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    """A valid CUB folder: images 1..12, two classes, of each six images: four to train, two to test."""
    root = tmp_path / "CUB_200_2011"
    names = [f"00{1 + n // 6}.Bird/{n % 6}.jpg" for n in range(12)]
    for name in names:
        image(root / "images" / name)
    content = {
        "images.txt": [f"{n + 1} {name}" for n, name in enumerate(names)],
        "classes.txt": ["1 001.Bird_a", "2 002.Bird_b"],
        "image_class_labels.txt": [f"{n + 1} {1 + n // 6}" for n in range(12)],
        "train_test_split.txt": [f"{n + 1} {int(n % 6 < 4)}" for n in range(12)],
        "bounding_boxes.txt": [f"{n + 1} 1.0 2.0 10.0 8.0" for n in range(12)],
        "parts/parts.txt": ["1 left wing", "2 tail"],
        "parts/part_locs.txt": ["1 1 4.0 5.0 1", "1 2 0.0 0.0 0"],
    }
    (root / "parts").mkdir()
    for file, lines in content.items():
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def edit(path: Path, line: int, text: str | None) -> None:
    """Replace a line, counted from 1; None removes it, and one past the end adds it."""
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


def cell(values: list[Any]) -> np.ndarray:
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def structs(records: list[dict[str, Any]]) -> np.ndarray:
    array = np.empty((1, len(records)), dtype=[(field, object) for field in records[0]])
    for column, record in enumerate(records):
        array[0, column] = tuple(record.values())
    return array


def annotation(name: str, label: int, **changes: Any) -> dict[str, Any]:
    corners = {"bbox_x1": 2, "bbox_y1": 3, "bbox_x2": 12, "bbox_y2": 9}
    return {**corners, "class": label, "fname": name, **changes}


class Cars:
    """A valid Cars folder with two classes; `annotate` writes one part's records, changed or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devkit = root / "devkit"
        self.devkit.mkdir(parents=True)
        self.test = root / "cars_test_annos_withlabels.mat"
        self.train = self.devkit / "cars_train_annos.mat"
        self.meta = self.devkit / "cars_meta.mat"
        scipy.io.savemat(self.meta, {"class_names": cell(["Audi S4", "BMW M3"])})
        self.records = [annotation(f"{n + 1:05}.jpg", 1 + n % 2) for n in range(8)]
        for record in self.records:
            image(root / "cars_train" / record["fname"])
            image(root / "cars_test" / record["fname"])
        self.annotate(self.train, self.records)
        self.annotate(self.test, self.records)

    def annotate(self, path: Path, records: list[dict[str, Any]]) -> None:
        scipy.io.savemat(path, {"annotations": structs(records)})

    def change(self, number: int, **changes: Any) -> None:
        """Change one training annotation, counted from 1."""
        self.records[number - 1] |= changes
        self.annotate(self.train, self.records)


@pytest.fixture
def cars(tmp_path: Path) -> Cars:
    return Cars(tmp_path / "cars")


@pytest.fixture
def outsider() -> Iterator[Path]:
    """A folder for permission tests, readable by others; the rights that the test drops come back afterwards."""
    root = Path(tempfile.mkdtemp())
    user = os.getresuid()
    try:
        root.chmod(0o755)
        folder(root, "a", "b")
        yield root
    finally:
        os.seteuid(user[2])
        os.setresuid(*user)
        (root / "a").chmod(0o755)
        shutil.rmtree(root)


def drop_rights() -> None:
    """An administrator may read everything; become nobody, but keep the way back."""
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 0)


class TestAnyFolder:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        assert f"no folder {tmp_path / 'nowhere'}" in refusal(tmp_path / "nowhere")

    def test_a_name_that_no_disk_can_hold(self, tmp_path: Path) -> None:
        assert "too long" in refusal(tmp_path / ("x" * 300))

    def test_a_name_with_a_nul_in_it(self, tmp_path: Path) -> None:
        assert "no folder" in refusal(tmp_path / "a\0b")

    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "birds.tgz").write_bytes(b"\x1f\x8b")
        assert "birds.tgz is a file, not a dataset folder" in refusal(tmp_path / "birds.tgz")

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert "no folder" in refusal(tmp_path / "loop")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert f"{tmp_path} holds no dataset" in refusal(tmp_path)

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        image(tmp_path / "0.jpg")
        assert "holds images but no class folders" in refusal(tmp_path)

    def test_an_empty_class(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        (tmp_path / "hollow").mkdir()
        assert f"class folder {tmp_path / 'hollow'} holds no images" in refusal(tmp_path)

    def test_a_class_that_holds_text_alone(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "notes.txt").write_text("no image")
        assert "notes holds no images" in refusal(tmp_path)

    def test_one_image_per_class(self, tmp_path: Path) -> None:
        sentence = refusal(folder(tmp_path, "a", "b", count=1))
        assert "'a' has 1 training image, but each class needs 4" in sentence
        assert "train, validation, calibration, test" in sentence

    def test_one_image_per_class_beside_a_test_folder(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", count=1)
        assert "'a' has 1 training image, but each class needs 3" in refusal(folder(tmp_path, "test/a", "test/b"))

    def test_only_one_class(self, tmp_path: Path) -> None:
        assert "has 1 class ('alone')" in refusal(folder(tmp_path, "alone"))

    def test_a_class_that_only_the_test_folder_knows(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", "test/a", "test/b", "test/c")
        assert f"{tmp_path / 'test' / 'c'} is a class without training images" in refusal(tmp_path)

    def test_classes_that_the_test_or_validation_folder_lacks_are_noted(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", "train/c", "train/d", "train/e", "test/a", "val/b")
        (tmp_path / "val" / "c").mkdir()  # as some copies have it: a folder, and nothing in it
        dataset = open_dataset(tmp_path)
        assert {sample.key for sample in dataset.parts["test"]} == {f"test/a/{number}.jpg" for number in range(4)}
        assert "test: 4 of 5 classes have no images ('b', 'c', 'd' and 1 more)" in dataset.notes
        assert "validation: 4 of 5 classes have no images ('a', 'c', 'd' and 1 more)" in dataset.notes
        assert dataset.division == "validation: given by the dataset (1 of 5 classes)"

    @pytest.mark.parametrize("empty", [("test",), ("val",), ("test", "val"), ("test/a", "val/b", "val/unknown")])
    def test_a_part_that_is_given_without_images_is_taken_from_training(
        self, tmp_path: Path, empty: tuple[str, ...]
    ) -> None:
        for name in "ab":
            for number in range(12):
                image(tmp_path / "train" / name / f"{number}.jpg", number * 9 + ord(name))
        for place in empty:
            (tmp_path / place).mkdir(parents=True)
        dataset = open_dataset(tmp_path)
        assert all(dataset.parts.values())
        parts = {"validation" if place[0] == "v" else "test" for place in empty}
        said = {f"{part}: the dataset gives no images, so they are taken from the training images" for part in parts}
        assert said <= set(dataset.notes)

    def test_an_empty_class_folder_of_training_is_refused_all_the_same(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", "test/a", "test/c")
        (tmp_path / "train" / "c").mkdir()
        assert f"class folder {tmp_path / 'train' / 'c'} holds no images" in refusal(tmp_path)

    def test_what_is_passed_over_is_counted_by_suffix(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        for number in range(30):
            (tmp_path / "a" / f"{number}.CR2").touch()
        for name in ("a/list.txt", "b/list.txt", "b/raw.cr2", "b/Makefile", "b/.hidden"):
            (tmp_path / name).touch()
        dataset = open_dataset(tmp_path)
        assert dataset.passed == {".cr2": 31, ".txt": 2, "": 1}
        assert "31 .cr2, 2 .txt and 1 without a suffix passed over" in dataset.notes

    def test_a_folder_of_unreadable_kinds_gets_the_list_of_readable_ones(self, tmp_path: Path) -> None:
        folder(tmp_path, "a")
        (tmp_path / "b").mkdir()
        for number in range(3):
            (tmp_path / "b" / f"{number}.cr2").touch()
        sentence = refusal(tmp_path)
        assert f"class folder {tmp_path / 'b'} holds no images (3 .cr2 passed over). Add images (.jpg" in sentence
        assert all(suffix in sentence for suffix in SUFFIXES)

    def test_a_share_that_the_dataset_makes_needless_is_said(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", "test/a", "test/b", count=8)
        dataset = open_dataset(tmp_path, test=0.5, calibration=0.5)
        assert "test: given by the dataset, so its share of 0.5 is not used" in dataset.notes
        assert len(dataset.parts["test"]) == 16

    def test_two_validation_folders(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b")
        assert "several validation folders (valid, val)" in refusal(tmp_path)

    def test_one_file_under_two_classes(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        (tmp_path / "b" / "again.jpg").symlink_to(tmp_path / "a" / "0.jpg")
        assert f"{tmp_path / 'a/0.jpg'} and {tmp_path / 'b/again.jpg'} are the same file" in refusal(tmp_path)

    def test_one_folder_as_train_and_test(self, tmp_path: Path) -> None:
        folder(tmp_path, "train/a", "train/b")
        (tmp_path / "test").symlink_to(tmp_path / "train")
        assert "are the same file" in refusal(tmp_path)

    def test_an_image_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "missing.jpg")
        assert unreadable(tmp_path) == {"b/gone.jpg": "no such file"}

    def test_loops_of_links_end(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b", "train_station/c")
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
        (tmp_path / "b" / "here").symlink_to(tmp_path / "b")
        (tmp_path / "b" / "again").symlink_to(tmp_path / "b" / "here")
        assert sum(len(samples) for samples in open_dataset(tmp_path).parts.values()) == 12

    def test_a_folder_that_may_not_be_listed(self, outsider: Path) -> None:
        open_dataset(outsider)
        (outsider / "a").chmod(0)
        drop_rights()
        assert f"{outsider / 'a'} cannot be read: Permission denied" in refusal(outsider)

    def test_an_image_that_may_not_be_read(self, outsider: Path) -> None:
        open_dataset(outsider)
        (outsider / "b" / "2.jpg").chmod(0)
        drop_rights()
        assert unreadable(outsider) == {"b/2.jpg": "permission denied"}


class TestOddButHonestNames:
    NAMES = (
        "ein Rotkehlchen mit Leerzeichen",
        "しじゅうから 🐦",
        "e\u0301 decomposed",
        "line\u2028separator\u00a0here",
        "quote'\"`$(x);&",
        "n" * 250,
    )

    def test_a_plain_folder(self, tmp_path: Path) -> None:
        for name in self.NAMES:
            for number in range(4):
                image(tmp_path / name / f"{name[:200].encode()[:240].decode(errors='ignore')}{number}.jpg")
        dataset = open_dataset(tmp_path)
        assert dataset.labels == tuple(sorted(self.NAMES))
        everything = tuple(sample for part in dataset.parts.values() for sample in part)
        assert images_array(everything, SPEC)[0].shape == (24, 8, 8, 3)

    def test_a_cub_folder(self, cub: Path) -> None:
        for number, name in enumerate(self.NAMES):
            inside = f"001.Bird/{name[:200].encode()[:240].decode(errors='ignore')}.jpg"
            image(cub / "images" / inside)
            for file, rest in (
                ("images.txt", inside),
                ("image_class_labels.txt", "1"),
                ("train_test_split.txt", "1"),
                ("bounding_boxes.txt", "0 0 5 5"),
            ):
                with (cub / file).open("a", encoding="utf-8") as stream:
                    stream.write(f"{100 + number} {rest}\n")
        dataset = open_dataset(cub)
        assert sum(len(samples) for samples in dataset.parts.values()) == 12 + len(self.NAMES)

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        folder(tmp_path, "a", "b")
        """They could be read, but run.json, index.csv and the bundle are UTF-8: said before an hour of training."""
        folder(tmp_path / "d", "a", "b")
        (tmp_path / "d" / "a" / "0.jpg").rename(tmp_path / "d" / "a" / os.fsdecode(b"\xff\xfe.jpg"))
        assert "an image is called 'a/\\udcff\\udcfe.jpg', which is not UTF-8. Rename it." in refusal(tmp_path / "d")
        folder(tmp_path / "e", "a", os.fsdecode(b"b\xff"))
        assert "a class is called 'b\\udcff', which is not UTF-8" in refusal(tmp_path / "e")
        folder(tmp_path / os.fsdecode(b"f\xff"), "a", "b")
        assert "the dataset folder is called" in refusal(tmp_path / os.fsdecode(b"f\xff"))

    def test_an_output_among_the_classes(self, tmp_path: Path) -> None:
        """A run in a plain folder would be a class without images the next time; attacked images, a class of them."""
        folder(tmp_path / "plain", "a", "b")
        folder(tmp_path / "split" / "train", "a", "b")
        plain, split = open_dataset(tmp_path / "plain"), open_dataset(tmp_path / "split")
        (tmp_path / "link").symlink_to(tmp_path / "plain", target_is_directory=True)
        for dataset, out in (
            (plain, tmp_path / "plain"),
            (plain, tmp_path / "plain" / "run"),
            (plain, tmp_path / "plain" / "a" / "run"),
            (plain, tmp_path / "link" / "run"),
            (split, tmp_path / "split" / "train" / "run"),
        ):
            with pytest.raises(OptionError, match="lies among the class folders"):
                check_outside(dataset, out)
        for dataset, out in (
            (plain, tmp_path / "plain-run"),
            (plain, tmp_path),
            (split, tmp_path / "split" / "run"),
        ):
            check_outside(dataset, out)


class TestCub:
    def test_the_folder_is_valid_before_anything_is_done_to_it(self, cub: Path) -> None:
        dataset = open_dataset(cub)
        assert {part: len(samples) for part, samples in dataset.parts.items()} == {
            "train": 4,
            "validation": 2,
            "calibration": 2,
            "test": 4,
        }

    @pytest.mark.parametrize("file", [*CUB_FILES, "parts/parts.txt", "parts/part_locs.txt"])
    def test_a_missing_file(self, cub: Path, file: str) -> None:
        (cub / file).unlink()
        assert f"{cub / file} is missing" in refusal(cub)
        assert f"{cub / file} is missing" in refusal(cub.parent)

    def test_a_missing_folder_of_landmarks_is_fine(self, cub: Path) -> None:
        shutil.rmtree(cub / "parts")
        assert open_dataset(cub).format == "cub"

    @pytest.mark.parametrize("file", CUB_FILES)
    def test_an_empty_file(self, cub: Path, file: str) -> None:
        (cub / file).write_text("")
        assert file in refusal(cub)

    def test_a_missing_folder_of_images(self, cub: Path) -> None:
        shutil.rmtree(cub / "images")
        assert set(unreadable(cub).values()) == {"no such file"}
        assert set(unreadable(cub)) == {sample.key for sample in open_dataset(cub).samples}

    def test_an_entry_that_points_at_nothing(self, cub: Path) -> None:
        (cub / "images/002.Bird/1.jpg").unlink()
        assert unreadable(cub) == {"images/002.Bird/1.jpg": "no such file"}

    def test_an_entry_that_points_at_a_folder(self, cub: Path) -> None:
        edit(cub / "images.txt", 8, "8 002.Bird")
        assert unreadable(cub) == {"images/002.Bird": "a folder, not an image"}

    @pytest.mark.parametrize(
        "path", ["../../etc/passwd", "/etc/passwd", "001.Bird/../../../secret.jpg", "a\0b.jpg", "."]
    )
    def test_an_entry_that_leaves_the_folder(self, cub: Path, path: str) -> None:
        edit(cub / "images.txt", 3, f"3 {path}")
        sentence = refusal(cub)
        assert "images.txt:3: the path" in sentence
        assert ("is absolute" if path.startswith("/") else "leads out of the dataset folder") in sentence

    @pytest.mark.parametrize(
        ("file", "line", "text", "says"),
        [
            ("images.txt", 5, "5", "images.txt:5 has 1 field instead of 2"),
            ("images.txt", 5, "five 001.Bird/4.jpg", "images.txt:5: 'five' is not a whole number"),
            ("classes.txt", 2, "2", "classes.txt:2 has 1 field instead of 2"),
            ("classes.txt", 2, "two 002.Bird_b", "classes.txt:2: 'two' is not a whole number"),
            ("image_class_labels.txt", 5, "5 1 1", "image_class_labels.txt:5 has 3 fields instead of 2"),
            ("image_class_labels.txt", 5, "5 1.0", "image_class_labels.txt:5: '1.0' is not a whole number"),
            ("train_test_split.txt", 5, "5", "train_test_split.txt:5 has 1 field instead of 2"),
            ("train_test_split.txt", 5, "5 2", "train_test_split.txt:5: '2' is neither 1 (training) nor 0 (test)"),
            ("bounding_boxes.txt", 5, "5 1.0 2.0 3.0", "bounding_boxes.txt:5 has 4 fields instead of 5"),
            ("bounding_boxes.txt", 5, "5 1.0 2.0 wide 4.0", "bounding_boxes.txt:5: 'wide' is not a number"),
            ("parts/parts.txt", 1, "one left wing", "parts.txt:1: 'one' is not a whole number"),
            ("parts/part_locs.txt", 1, "1 1 4.0 5.0", "part_locs.txt:1 has 4 fields instead of 5"),
            ("parts/part_locs.txt", 1, "1 1 left 5.0 1", "part_locs.txt:1: 'left' is not a number"),
            ("parts/part_locs.txt", 1, "99 1 4.0 5.0 1", "part_locs.txt:1: image 99 is not in images.txt"),
            ("parts/part_locs.txt", 1, "1 9 4.0 5.0 1", "part_locs.txt:1: part 9 is not in parts.txt"),
        ],
    )
    def test_a_malformed_line(self, cub: Path, file: str, line: int, text: str, says: str) -> None:
        edit(cub / file, line, text)
        assert says in refusal(cub)

    def test_a_line_number_of_a_thousand_digits(self, cub: Path) -> None:
        edit(cub / "image_class_labels.txt", 5, f"{'9' * 9000} 1")
        assert len(refusal(cub)) < 400

    @pytest.mark.parametrize("file", CUB_FILES)
    def test_a_duplicate_id(self, cub: Path, file: str) -> None:
        first = (cub / file).read_text().splitlines()[0]
        edit(cub / file, 2, first)
        assert f"{file}:2: " in refusal(cub)
        assert "1 stands there twice" in refusal(cub)

    @pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"])
    def test_an_id_in_one_file_but_not_in_another(self, cub: Path, file: str) -> None:
        edit(cub / file, 7, None)
        assert f"{cub / file} has no line for image 7 of images.txt" in refusal(cub)

    @pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"])
    def test_an_id_that_no_image_has(self, cub: Path, file: str) -> None:
        row = (cub / file).read_text().splitlines()[0].split()
        edit(cub / file, 13, " ".join(["13", *row[1:]]))
        assert f"{cub / file}:13: image 13 is not in images.txt" in refusal(cub)

    @pytest.mark.parametrize("label", ["0", "3", "-1", "201"])
    def test_a_label_out_of_range(self, cub: Path, label: str) -> None:
        edit(cub / "image_class_labels.txt", 4, f"4 {label}")
        assert f"image_class_labels.txt:4: class {label} is not in classes.txt" in refusal(cub)

    @pytest.mark.parametrize(
        "box", ["-1 2 10 8", "1 -2 10 8", "1 2 0 8", "1 2 10 0", "1 2 -5 8", "nan 2 10 8", "1 2 inf 8", "1 2 10 -1e300"]
    )
    def test_a_box_that_is_no_box(self, cub: Path, box: str) -> None:
        edit(cub / "bounding_boxes.txt", 6, f"6 {box}")
        assert "bounding_boxes.txt:6: the bounding box (left" in refusal(cub)

    def test_a_box_beside_the_image_is_named_when_the_image_is_read(self, cub: Path) -> None:
        edit(cub / "bounding_boxes.txt", 6, "6 100 100 10 8")
        dataset = open_dataset(cub)  # sizes are not known before an image is opened
        with pytest.raises(ImageError, match=r"001\.Bird/5\.jpg: the bounding box .* lies outside the 20x16 image"):
            images_array(dataset.parts["test"], SPEC)

    def test_an_image_listed_twice(self, cub: Path) -> None:
        edit(cub / "images.txt", 6, "6 001.Bird/./0.jpg")  # image 6 is a test image, and image 1 is one to train on
        assert "images/001.Bird/0.jpg is listed twice" in refusal(cub)

    def test_a_class_without_images(self, cub: Path) -> None:
        edit(cub / "classes.txt", 3, "3 003.Ghost")
        assert "'Ghost' has no images in its train part" in refusal(cub)

    def test_a_class_without_test_images_is_noted(self, cub: Path) -> None:
        for line in (5, 6):
            edit(cub / "train_test_split.txt", line, f"{line} 1")
        dataset = open_dataset(cub)
        assert {sample.label for sample in dataset.parts["test"]} == {1}
        assert "test: 1 of 2 classes have no images ('Bird a')" in dataset.notes

    def test_no_test_images_at_all(self, cub: Path) -> None:
        for line in range(1, 13):
            edit(cub / "train_test_split.txt", line, f"{line} 1")
        dataset = open_dataset(cub)
        assert [len(samples) for samples in dataset.parts.values()] == [6, 2, 2, 2]
        assert "test: the dataset gives no images, so they are taken from the training images" in dataset.notes

    def test_two_classes_of_one_name(self, cub: Path) -> None:
        edit(cub / "classes.txt", 2, "2 002.Bird_a")
        assert "2 classes have the name 'Bird a'" in refusal(cub)

    def test_two_training_images_of_a_class(self, cub: Path) -> None:
        for line in (1, 2):
            edit(cub / "train_test_split.txt", line, f"{line} 0")
        assert "'Bird a' has 2 training images, but each class needs 3" in refusal(cub)

    @pytest.mark.parametrize("file", CUB_FILES)
    def test_a_binary_file_in_place_of_an_index(self, cub: Path, file: str) -> None:
        (cub / file).write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
        assert f"{cub / file} is not UTF-8 text" in refusal(cub)

    def test_a_folder_in_place_of_an_index(self, cub: Path) -> None:
        (cub / "classes.txt").unlink()
        (cub / "classes.txt").mkdir()
        assert f"{cub / 'classes.txt'} cannot be read" in refusal(cub)


class TestCars:
    def test_the_folder_is_valid_before_anything_is_done_to_it(self, cars: Cars) -> None:
        assert [len(samples) for samples in open_dataset(cars.root).parts.values()] == [4, 2, 2, 8]

    @pytest.mark.parametrize("file", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"])
    def test_a_missing_file(self, cars: Cars, file: str) -> None:
        (cars.root / file).unlink()
        assert f"{cars.root / file} is missing" in refusal(cars.root)

    def test_no_annotations_at_all(self, cars: Cars) -> None:
        cars.test.unlink()
        shutil.rmtree(cars.devkit)
        assert "devkit/cars_meta.mat is missing" in refusal(cars.root)

    def test_no_annotations_of_the_test_images(self, cars: Cars) -> None:
        cars.test.unlink()
        assert "cars_test_annos_withlabels.mat is missing" in refusal(cars.root)

    def test_the_public_test_annotations_without_classes(self, cars: Cars) -> None:
        cars.test.unlink()
        unlabelled = [{field: value for field, value in r.items() if field != "class"} for r in cars.records]
        cars.annotate(cars.devkit / "cars_test_annos.mat", unlabelled)
        sentence = refusal(cars.root)
        assert f"{cars.devkit / 'cars_test_annos.mat'} does not hold the classes of the test images" in sentence
        assert "cars_test_annos_withlabels.mat" in sentence

    @pytest.mark.parametrize("content", [b"", b"no matlab here", b"MATLAB 5.0 MAT-file" + b"\0" * 200, b"\xff" * 5000])
    @pytest.mark.parametrize("file", ["meta", "train", "test"])
    def test_a_file_that_is_no_mat_file(self, cars: Cars, file: str, content: bytes) -> None:
        path: Path = getattr(cars, file)
        path.write_bytes(content)
        assert str(path) in refusal(cars.root)

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_a_cut_off_mat_file(self, cars: Cars, share: float) -> None:
        data = cars.train.read_bytes()
        cars.train.write_bytes(data[: int(len(data) * share)])
        assert f"{cars.train} is not a readable MATLAB file" in refusal(cars.root)

    def test_a_mat_file_of_matlab_7_3(self, cars: Cars) -> None:
        header = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM"
        cars.train.write_bytes(header + b"\0" * 384 + b"\x89HDF\r\n\x1a\n" + b"\0" * 64)
        assert f"{cars.train} is not a readable MATLAB file" in refusal(cars.root)

    def test_other_variables(self, cars: Cars) -> None:
        scipy.io.savemat(cars.train, {"boxes": np.zeros((3, 4))})
        assert f"{cars.train} lacks the struct array 'annotations'" in refusal(cars.root)
        scipy.io.savemat(cars.train, {"annotations": np.zeros((3, 4))})
        assert f"{cars.train} lacks the struct array 'annotations'" in refusal(cars.root)
        scipy.io.savemat(cars.meta, {"names": cell(["Audi S4", "BMW M3"])})
        assert f"{cars.meta} lacks the variable 'class_names'" in refusal(cars.root)

    @pytest.mark.parametrize("field", ["fname", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class"])
    def test_a_missing_field(self, cars: Cars, field: str) -> None:
        cars.annotate(cars.train, [{k: v for k, v in record.items() if k != field} for record in cars.records])
        assert f"{cars.train} lacks the field '{field}'" in refusal(cars.root)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"class": 0}, "class 0 is not in 1..2"),
            ({"class": 3}, "class 3 is not in 1..2"),
            ({"class": 1.5}, "1.5 is not a whole number"),
            ({"class": "Audi"}, "'Audi' is not a number"),
            ({"bbox_x1": 0}, "the bounding box (left -1"),
            ({"bbox_y1": -4}, "the bounding box (left 1, top -5"),
            ({"bbox_x2": 1}, "width 0"),
            ({"bbox_y2": 1}, "height -1"),
            ({"bbox_x2": float("nan")}, "width nan"),
            ({"bbox_x2": np.zeros((2, 2))}, "is not a number"),
            ({"fname": 7.0}, "'7.0' is not a name"),
            ({"fname": "../../etc/passwd"}, "leads out of the dataset folder"),
        ],
    )
    def test_a_wrong_annotation(self, cars: Cars, changes: dict[str, Any], says: str) -> None:
        cars.change(5, **changes)
        sentence = refusal(cars.root)
        assert f"{cars.train}, image 5: " in sentence
        assert says in sentence

    def test_a_box_of_one_pixel_is_a_box(self, cars: Cars) -> None:
        cars.change(5, bbox_x1=1, bbox_x2=1, bbox_y1=1, bbox_y2=1)
        boxes = {sample.key: sample.box for part in open_dataset(cars.root).parts.values() for sample in part}
        assert boxes["cars_train/00005.jpg"] == (0, 0, 1, 1)

    def test_an_image_listed_twice(self, cars: Cars) -> None:
        cars.change(5, fname="00001.jpg")
        assert "cars_train/00001.jpg is listed twice" in refusal(cars.root)

    def test_a_single_class_and_a_single_image(self, cars: Cars) -> None:
        scipy.io.savemat(cars.meta, {"class_names": cell(["Audi S4"])})
        for path in (cars.train, cars.test):
            cars.annotate(path, cars.records[:1])
        assert "has 1 class ('Audi S4')" in refusal(cars.root)

    def test_the_single_file_layout_without_its_file_or_its_images(self, tmp_path: Path) -> None:
        (tmp_path / "car_ims").mkdir()
        assert f"{tmp_path / 'cars_annos.mat'} is missing" in refusal(tmp_path)
        records = [annotation("", 1 + n % 2, relative_im_path=f"car_ims/{n}.jpg", test=0) for n in range(8)]
        names = {"class_names": cell(["Audi S4", "BMW M3"])}
        scipy.io.savemat(tmp_path / "cars_annos.mat", {"annotations": structs(records), **names})
        assert set(unreadable(tmp_path).values()) == {"no such file"}
