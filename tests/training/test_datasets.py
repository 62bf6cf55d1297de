"""Each published layout is read as published: names, parts, boxes to the pixel, landmarks, and then tensors."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from bundle.errors import ImageError
from bundle.image import ImageSpec
from training.data import Dataset, Sample, open_dataset
from training.data.loading import ImageParts, Share, image_loader, images_array, load_part

SPEC = ImageSpec(height=8, width=12)
RED = (255, 0, 0)


def draw(path: Path, seed: int = 0, *, box: tuple[int, int, int, int] | None = None) -> Path:
    """Write noise without red as a lossless image; `box` = (x0, y0, x1, y1), half open and 0-based, is painted red."""
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    pixels[..., 0] = 0
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = RED
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")  # readers go by content, so a .jpg may be lossless here
    return path


def cub_folder(root: Path, *, classes: int = 3, train: int = 6, test: int = 2) -> Path:
    """A CUB folder whose image ids, class ids and line orders are not the obvious ones."""
    rows: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    rows |= {"bounding_boxes": [], "classes": []}
    image_id = 500
    for code in reversed(range(classes)):
        folder = f"{code + 1:03}.Bird_no_{code}"
        rows["classes"].append(f"{code + 1} {folder}")
        for number in range(train + test):
            image_id -= 3
            draw(root / "images" / folder / f"{number}.jpg", image_id, box=(5, 3, 25, 13))
            rows["images"].append(f"{image_id} {folder}/{number}.jpg")
            rows["image_class_labels"].append(f"{image_id} {code + 1}")
            rows["train_test_split"].append(f"{image_id} {int(number < train)}")
            rows["bounding_boxes"].append(f"{image_id} 5.0 3.0 20.0 10.0")
    for name, lines in rows.items():
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def save_mat(path: Path, **variables: Any) -> None:
    """Write lists of strings as MATLAB cells, and lists of records as a 1xN struct array, as Matlab itself does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {}
    for name, values in variables.items():
        if isinstance(values[0], str):
            cell = np.empty((1, len(values)), dtype=object)
            cell[0, :] = values
        else:
            cell = np.empty((1, len(values)), dtype=[(field, object) for field in values[0]])
            for column, record in enumerate(values):
                cell[0, column] = tuple(record.values())
        content[name] = cell
    scipy.io.savemat(path, content)


def corners() -> dict[str, np.uint8]:
    """The red box (5, 3, 25, 13) as the devkit writes it: from 1, both corners inside, in the smallest type."""
    return {name: np.uint8(value) for name, value in zip(("x1", "y1", "x2", "y2"), (6, 4, 25, 13), strict=True)}


def record(name: str, label: int | None, name_field: str = "fname", **more: Any) -> dict[str, Any]:
    kind = {} if label is None else {"class": np.uint8(label)}
    fields = {f"bbox_{corner}": value for corner, value in corners().items()}
    if name_field == "fname":
        return fields | kind | {"fname": name}
    return {name_field: name} | fields | kind | more


CARS = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012")


def cars_by_folders(root: Path, *, devkit: str = "devkit", nested: bool = False) -> Path:
    save_mat(root / devkit / "cars_meta.mat", class_names=list(CARS))
    for part, count, where in (("train", 5, root / devkit), ("test", 2, root)):
        folder = root / f"cars_{part}" / (f"cars_{part}" if nested else "")
        names = [f"{number:05}.jpg" for number in range(1, 3 * count + 1)]
        for seed, name in enumerate(names):
            draw(folder / name, seed, box=(5, 3, 25, 13))
        records = [record(name, 1 + position % 3) for position, name in enumerate(names)]
        save_mat(where / f"cars_{part}_annos{'_withlabels' * (part == 'test')}.mat", annotations=records)
    return root


def cars_by_single_file(root: Path) -> Path:
    records = []
    for number in range(21):
        name = f"car_ims/{number + 1:06}.jpg"
        draw(root / name, number, box=(5, 3, 25, 13))
        records.append(record(name, 1 + number // 7, "relative_im_path", test=np.uint8(number % 7 >= 5)))
    save_mat(root / "cars_annos.mat", annotations=records, class_names=list(CARS))
    return root


def keys(dataset: Dataset, *parts: str) -> set[str]:
    return {sample.key for part in parts for sample in dataset.parts[part]}


def check_red(samples: tuple[Sample, ...]) -> None:
    """The crop holds the box, all of it and nothing else: one pixel too many would bring in another colour."""
    spec = ImageSpec(height=10, width=20)
    for sample in samples:
        assert (spec.read(sample.path, sample.box) == RED).all(), sample
        with Image.open(sample.path) as image:
            assert sum(pixel == RED for pixel in image.getdata()) == 10 * 20


class TestCub:
    def test_the_index_is_read_as_published(self, tmp_path: Path) -> None:
        dataset = open_dataset(cub_folder(tmp_path / "birds"))
        assert (dataset.name, dataset.format, dataset.root) == ("birds", "cub", tmp_path / "birds")
        assert dataset.labels == ("Bird no 0", "Bird no 1", "Bird no 2")
        assert {part: len(samples) for part, samples in dataset.parts.items()} == {
            "train": 12,
            "validation": 3,
            "calibration": 3,
            "test": 6,
        }
        for part, samples in dataset.parts.items():
            assert list(samples) == sorted(samples, key=lambda sample: sample.key)
            for sample in samples:
                assert sample.path == dataset.root / sample.key
                assert sample.key.startswith(f"images/{sample.label + 1:03}.Bird_no_{sample.label}/")
                assert (int(Path(sample.key).stem) >= 6) == (part == "test")
                assert sample.landmarks == ()
        check_red(dataset.parts["test"])

    def test_the_parent_folder_gives_the_same_dataset(self, tmp_path: Path) -> None:
        inner = open_dataset(cub_folder(tmp_path / "CUB_200_2011"))
        (tmp_path / "attributes.txt").write_text("1 has_bill_shape::curved\n")
        assert open_dataset(tmp_path) == inner

    def test_visible_parts_become_landmarks(self, tmp_path: Path) -> None:
        root = cub_folder(tmp_path)
        (root / "parts").mkdir()
        (root / "parts" / "parts.txt").write_text("1 back\n7 left eye\n")
        (root / "parts" / "part_locs.txt").write_text("497 1 10.5 4.0 1\n497 7 20.0 5.0 1\n494 1 0.0 0.0 0\n")
        by_key = {sample.key: sample for samples in open_dataset(root).parts.values() for sample in samples}
        first, second = "images/003.Bird_no_2/0.jpg", "images/003.Bird_no_2/1.jpg"
        assert by_key[first].landmarks == (("back", 10.5, 4.0), ("left eye", 20.0, 5.0))
        assert by_key[second].landmarks == ()

    def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_fine(self, tmp_path: Path) -> None:
        root = cub_folder(tmp_path)
        before = open_dataset(root)
        for path in root.glob("*.txt"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
        assert open_dataset(root) == before


class TestCars:
    def test_the_folder_layout(self, tmp_path: Path) -> None:
        dataset = open_dataset(cars_by_folders(tmp_path))
        assert (dataset.format, dataset.labels) == ("cars", CARS)
        assert keys(dataset, "test") == {f"cars_test/{number:05}.jpg" for number in range(1, 7)}
        assert keys(dataset, "train", "validation", "calibration") == {
            f"cars_train/{number:05}.jpg" for number in range(1, 16)
        }
        for samples in dataset.parts.values():
            for sample in samples:
                assert sample.label == (int(Path(sample.key).stem) - 1) % 3
                assert sample.box == (5, 3, 20, 10)
            check_red(samples)

    def test_the_single_file_layout(self, tmp_path: Path) -> None:
        dataset = open_dataset(cars_by_single_file(tmp_path))
        assert (dataset.format, dataset.labels) == ("cars", CARS)
        assert keys(dataset, "test") == {f"car_ims/{number + 1:06}.jpg" for number in range(21) if number % 7 >= 5}
        assert all(len(dataset.parts[part]) == count for part, count in (("train", 9), ("validation", 3)))
        for samples in dataset.parts.values():
            assert all(sample.label == (int(Path(sample.key).stem) - 1) // 7 for sample in samples)
            check_red(samples)

    def test_the_single_file_wins_over_a_devkit_without_its_images(self, tmp_path: Path) -> None:
        cars_by_folders(tmp_path)
        cars_by_single_file(tmp_path)
        assert keys(open_dataset(tmp_path), "test") <= {f"car_ims/{number + 1:06}.jpg" for number in range(21)}

    @pytest.mark.parametrize("place", ["devkit/cars_test_annos_withlabels.mat", "devkit/cars_test_annos.mat"])
    def test_test_annotations_may_lie_in_the_devkit(self, tmp_path: Path, place: str) -> None:
        before = open_dataset(cars_by_folders(tmp_path))
        (tmp_path / "cars_test_annos_withlabels.mat").rename(tmp_path / place)
        assert open_dataset(tmp_path) == before

    def test_nested_copies_and_the_parent_folder(self, tmp_path: Path) -> None:
        cars_by_folders(tmp_path / "stanford_cars", devkit="car_devkit/devkit", nested=True)
        (tmp_path / "stanford_cars" / "cars_annos.mat").write_bytes(b"such copies hold it without car_ims/")
        dataset = open_dataset(tmp_path)
        assert dataset.root == tmp_path / "stanford_cars"
        assert keys(dataset, "test") == {f"cars_test/cars_test/{number:05}.jpg" for number in range(1, 7)}

    def test_corners_beyond_eight_bits_do_not_wrap(self, tmp_path: Path) -> None:
        cars_by_single_file(tmp_path)
        content = scipy.io.loadmat(tmp_path / "cars_annos.mat")
        for number in range(21):  # put in anew: one byte that scipy has read is Python's own object for that byte
            corner = np.array([[255]], dtype=np.uint8)  # x1 = 6, so width 250; x2 + 1 as uint8 would be 0
            content["annotations"]["bbox_x2"][0, number] = corner
        content["annotations"]["bbox_x1"][0, 0] = np.array([[1]], dtype=np.uint8)
        scipy.io.savemat(tmp_path / "cars_annos.mat", {k: content[k] for k in ("annotations", "class_names")})
        boxes = {sample.key: sample.box for part in open_dataset(tmp_path).parts.values() for sample in part}
        assert boxes["car_ims/000001.jpg"] == (0, 3, 255, 10)
        assert boxes["car_ims/000002.jpg"] == (5, 3, 250, 10)


class TestFolder:
    def fill(self, root: Path, *places: str, count: int = 4) -> Path:
        for place in places:
            for number in range(count):
                draw(root / place / f"{number}.jpg", number)
        return root

    def test_classes_are_sorted_by_name_and_images_may_lie_deeper(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "b", "a10", "a9", "Z", "b/deeper/still")
        dataset = open_dataset(tmp_path)
        assert (dataset.format, dataset.labels) == ("folder", ("Z", "a10", "a9", "b"))
        everything = [sample for part in dataset.parts.values() for sample in part]
        assert len(everything) == 20
        assert all(sample.label == dataset.labels.index(sample.key.split("/")[0]) for sample in everything)
        assert all(sample.box is None for sample in everything)

    def test_a_test_folder_of_its_own_is_the_test_part(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "train/a", "train/b", "test/a", "test/b")
        dataset = open_dataset(tmp_path)
        assert keys(dataset, "test") == {f"test/{name}/{number}.jpg" for name in "ab" for number in range(4)}
        assert len(keys(dataset, "train", "validation", "calibration")) == 8
        assert all(key.startswith("train/") for key in keys(dataset, "train", "validation", "calibration"))

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_a_validation_folder_is_the_validation_part(self, tmp_path: Path, name: str) -> None:
        self.fill(tmp_path, "train/a", "train/b", f"{name}/a", f"{name}/b")
        dataset = open_dataset(tmp_path)
        assert keys(dataset, "validation") == {f"{name}/{cls}/{number}.jpg" for cls in "ab" for number in range(4)}
        assert all(len(keys(dataset, part)) > 0 for part in ("train", "calibration", "test"))
        assert len(keys(dataset, "train", "calibration", "test")) == 8

    def test_a_class_called_train_is_a_class(self, tmp_path: Path) -> None:
        dataset = open_dataset(self.fill(tmp_path, "train", "train/steam", "tram", "test"))
        assert dataset.labels == ("test", "train", "tram")

    def test_hidden_names_and_other_files_are_passed_over(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "a", "b", ".cache", "a/.thumbnails")
        for name in ("._0.jpg", ".DS_Store", "notes.txt", "labels.csv", "0.jpg.json"):
            (tmp_path / "a" / name).write_text("no image")
        (tmp_path / "README.md").write_text("read me")
        dataset = open_dataset(tmp_path)
        assert dataset.labels == ("a", "b")
        assert keys(dataset, *dataset.parts) == {f"{name}/{number}.jpg" for name in "ab" for number in range(4)}

    def test_images_beside_the_class_folders_belong_to_no_class_and_are_said(self, tmp_path: Path) -> None:
        self.fill(tmp_path, "a", "b")
        for name in ("0.jpg", "1.JPG", "README.md"):
            (tmp_path / name).write_bytes((tmp_path / "a" / "0.jpg").read_bytes())
        dataset = open_dataset(tmp_path)
        assert "2 .jpg beside the class folders passed over" in dataset.notes

    def test_upper_case_and_every_image_suffix_count(self, tmp_path: Path) -> None:
        names = ["0.JPG", "1.jpeg", "2.PNG", "3.webp", "4.bmp", "5.Gif", "6.tif", "7.TIFF"]
        for folder in ("a", "b"):
            for name in names:
                draw(tmp_path / folder / name)
        assert len(keys(open_dataset(tmp_path), "train", "validation", "calibration", "test")) == 2 * len(names)

    def test_links_to_images_and_folders_elsewhere_are_followed(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "pool", "x", "y")
        root = tmp_path / "data"
        (root / "a").mkdir(parents=True)
        (root / "b").symlink_to(tmp_path / "pool" / "y")
        for number in range(4):
            (root / "a" / f"linked {number}.jpg").symlink_to(tmp_path / "pool" / "x" / f"{number}.jpg")
        dataset = open_dataset(root)
        assert keys(dataset, *dataset.parts) == {f"a/linked {n}.jpg" for n in range(4)} | {
            f"b/{n}.jpg" for n in range(4)
        }


class TestDigest:
    def test_it_does_not_depend_on_where_the_dataset_lies(self, tmp_path: Path) -> None:
        here, there = cub_folder(tmp_path / "here"), cub_folder(tmp_path / "there")
        assert open_dataset(here).digest == open_dataset(there).digest

    @pytest.mark.parametrize(
        ("file", "old", "new"),
        [
            ("bounding_boxes.txt", "497 5.0", "497 6.0"),
            ("image_class_labels.txt", "497 3", "497 2"),
            ("train_test_split.txt", "497 1", "497 0"),
            ("classes.txt", "no_2", "number_2"),
        ],
    )
    def test_it_changes_with_box_label_part_and_class_name(self, tmp_path: Path, file: str, old: str, new: str) -> None:
        root = cub_folder(tmp_path)
        before = open_dataset(root).digest
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))
        assert open_dataset(root).digest != before

    def test_it_changes_where_only_the_border_between_parts_moves(self, tmp_path: Path) -> None:
        numbers = range(9)
        for number in numbers:
            draw(tmp_path / "images" / f"{number}.jpg")
        rows = {"images": "{0} {0}.jpg", "image_class_labels": "{0} {1}", "bounding_boxes": "{0} 0 0 9 9"}
        for name, row in rows.items():
            (tmp_path / f"{name}.txt").write_text("\n".join(row.format(n, 1 + n % 2) for n in numbers))
        (tmp_path / "classes.txt").write_text("1 001.Odd\n2 002.Even\n")
        digests = set()
        for border in (3, 4, 5):
            (tmp_path / "train_test_split.txt").write_text("\n".join(f"{n} {int(n < border)}" for n in numbers))
            digests.add(open_dataset(tmp_path, validation=0, calibration=0).digest)
        assert len(digests) == 3

    def test_it_changes_with_the_name_of_an_image_and_with_the_seed(self, tmp_path: Path) -> None:
        root = TestFolder().fill(tmp_path, "a", "b", count=9)
        before = open_dataset(root).digest
        assert open_dataset(root, seed=1).digest != before
        (root / "a" / "0.jpg").rename(root / "a" / "new.jpg")
        assert open_dataset(root).digest != before


def test_opening_a_dataset_loads_no_torch() -> None:
    code = "import sys, training.data; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


class TestLoading:
    @pytest.fixture
    def samples(self, tmp_path: Path) -> tuple[Sample, ...]:
        return tuple(
            Sample(
                key=f"{n}.jpg", path=draw(tmp_path / f"{n}.jpg", n), label=n % 4, box=(n, 1, 15, 20) if n % 2 else None
            )
            for n in range(11)
        )

    def spoilt(self, samples: tuple[Sample, ...], tmp_path: Path) -> tuple[Sample, ...]:
        (tmp_path / "spoilt.jpg").write_bytes(b"\xff\xd8\xff but no image")
        return (*samples[:6], replace(samples[6], path=tmp_path / "spoilt.jpg"), *samples[7:])

    def test_the_array_equals_reading_one_by_one(self, samples: tuple[Sample, ...]) -> None:
        images, labels = images_array(samples, SPEC)
        assert (images.shape, images.dtype, labels.dtype) == ((11, 8, 12, 3), np.uint8, np.int64)
        for index, sample in enumerate(samples):
            np.testing.assert_array_equal(images[index], SPEC.read(sample.path, sample.box))
        assert labels.tolist() == [n % 4 for n in range(11)]

    def test_memory_and_files_give_the_same_items(self, samples: tuple[Sample, ...]) -> None:
        size = 11 * 8 * 12 * 3
        cached, lazy = load_part(samples, SPEC, cache_bytes=size), load_part(samples, SPEC, cache_bytes=size - 1)
        assert (cached.in_memory, lazy.in_memory, len(cached), len(lazy)) == (True, False, 11, 11)
        for index in range(11):
            image, label, place = lazy[index]
            assert (image.dtype, tuple(image.shape), label, place) == (torch.uint8, (8, 12, 3), index % 4, index)
            assert torch.equal(image, cached[index][0])
            assert cached[index][1:] == (label, place)

    def test_a_part_in_memory_is_decoded_once(self, samples: tuple[Sample, ...]) -> None:
        part = load_part(samples, SPEC)
        for sample in samples:
            sample.path.unlink()
        assert len(list(image_loader(part, SPEC, batch_size=4, shuffle_seed=None))) == 3

    def order(self, part: ImageParts, *, epochs: int, seed: int | None) -> list[list[int]]:
        loader = image_loader(part, SPEC, batch_size=4, shuffle_seed=seed)
        return [[int(i) for _, _, indices in loader for i in indices] for _ in range(epochs)]

    def test_the_order_is_that_of_the_seed_and_the_epoch(self, samples: tuple[Sample, ...]) -> None:
        part = load_part(samples, SPEC)
        first = self.order(part, epochs=3, seed=7)
        assert first == self.order(part, epochs=3, seed=7)
        assert first != self.order(part, epochs=3, seed=70)
        assert all(sorted(epoch) == list(range(11)) for epoch in first)
        assert len({tuple(epoch) for epoch in first}) == 3
        assert self.order(part, epochs=1, seed=7 + 2) == first[2:]  # how a resumed run goes on
        assert self.order(part, epochs=2, seed=None) == [list(range(11))] * 2

    def test_processes_divide_every_batch_of_the_common_order(self, samples: tuple[Sample, ...]) -> None:
        part = load_part(samples, SPEC)
        for seed in (7, None):
            whole = [batch[2].tolist() for batch in image_loader(part, SPEC, batch_size=4, shuffle_seed=seed)]
            shares = [
                [batch[2].tolist() for batch in image_loader(part, SPEC, batch_size=4, shuffle_seed=seed, share=share)]
                for share in (Share(0, 2), Share(1, 2))
            ]
            assert [sorted(a + b) for a, b in zip(*shares, strict=False)][:2] == [sorted(batch) for batch in whole[:2]]
            if seed is None:  # measuring: every image once
                assert sorted(index for batch in shares[0] + shares[1] for index in batch) == list(range(11))
            else:  # training: equal shares, so the odd eleventh image waits for another epoch
                assert [len(batch) for batch in shares[0]] == [len(batch) for batch in shares[1]] == [2, 2, 1]

    def test_batches_hold_images_labels_and_indices(self, samples: tuple[Sample, ...]) -> None:
        images, labels = images_array(samples, SPEC)
        batches = list(image_loader(samples, SPEC, batch_size=4, shuffle_seed=3))
        assert [len(batch[0]) for batch in batches] == [4, 4, 3]
        for batch in batches:
            assert (batch[0].dtype, batch[1].dtype, batch[2].dtype) == (torch.uint8, torch.int64, torch.int64)
            np.testing.assert_array_equal(batch[0].numpy(), images[batch[2]])
            np.testing.assert_array_equal(batch[1].numpy(), labels[batch[2]])

    def test_workers_give_the_same_batches(self, samples: tuple[Sample, ...]) -> None:
        alone = image_loader(samples, SPEC, batch_size=4, shuffle_seed=3, workers=2)
        helped = image_loader(load_part(samples, SPEC, cache_bytes=0), SPEC, batch_size=4, shuffle_seed=3, workers=2)
        assert (alone.num_workers, helped.num_workers) == (0, 2)
        for mine, theirs in zip(alone, helped, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def test_a_damaged_image_is_named(self, samples: tuple[Sample, ...], tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"spoilt\.jpg"):
            load_part(self.spoilt(samples, tmp_path), SPEC)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_image_is_named_even_by_a_worker(
        self, samples: tuple[Sample, ...], tmp_path: Path, workers: int
    ) -> None:
        broken = load_part(self.spoilt(samples, tmp_path), SPEC, cache_bytes=0)
        loader = image_loader(broken, SPEC, batch_size=4, shuffle_seed=None, workers=workers)
        with pytest.raises(ImageError, match=r"spoilt\.jpg") as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)

    def test_progress_of_a_long_decoding_goes_to_stderr(
        self, samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        images_array(samples, SPEC)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr("training.data.loading.SLOW_SECONDS", -1.0)
        images_array(samples, SPEC)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "decoding" in printed.err
        assert "11/11 images" in printed.err

    def test_an_empty_part_is_empty(self) -> None:
        assert list(image_loader((), SPEC, batch_size=4, shuffle_seed=None)) == []
