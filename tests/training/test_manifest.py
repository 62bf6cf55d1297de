"""A manifest names every image: CSV and Parquet alike, with parts, groups and boxes, and wherever its folder lies."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from bundle.errors import DatasetError
from bundle.image import ImageSpec
from training.data import Dataset, open_dataset
from training.data.check import examine, sound
from training.data.cli import app
from training.data.division import PARTS

RED = (255, 0, 0)
Rows = list[dict[str, Any]]


def photographs(root: Path, *, each: int = 12) -> Rows:
    """Two classes in one folder, red in the box (5, 3, 20, 10); the rows that name them."""
    rows: Rows = []
    for number in range(2 * each):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        pixels[..., 0] = 0
        pixels[3:13, 5:25] = RED
        path = root / "shots" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append({"path": f"shots/{number}.png", "label": ("wren", "tit")[number % 2]})
    return rows


def write(path: Path, rows: Rows) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def counts(dataset: Dataset) -> list[int]:
    return [len(dataset.parts[part]) for part in PARTS]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_path_and_label_are_enough(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"garden{suffix}", photographs(tmp_path))
    dataset = open_dataset(file)
    assert (dataset.name, dataset.format, dataset.root) == ("garden", "manifest", file)
    assert dataset.labels == ("tit", "wren")
    assert sum(counts(dataset)) == 24
    assert all(counts(dataset))
    for sample in dataset.samples:
        assert sample.path == tmp_path / sample.key
        assert dataset.labels[sample.label] == ("wren", "tit")[int(Path(sample.key).stem) % 2]
        assert (sample.box, sample.group) == (None, "")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_parts_groups_and_boxes(tmp_path: Path, suffix: str) -> None:
    rows = photographs(tmp_path)
    names = ("train", "Val", "calibration", "test", "", "valid")
    for number, row in enumerate(rows):
        box = (5, 3, 20, 10) if number % 4 else (None,) * 4
        row |= {"part": names[number // 2 % 6], "group": f"g{number // 4}"}
        row |= dict(zip(("x", "y", "width", "height"), box, strict=True))
    dataset = open_dataset(write(tmp_path / f"m{suffix}", rows))
    assert counts(dataset) == [8, 8, 4, 4]
    assert dataset.division == "validation: given by the dataset (2 of 2 classes)"
    spec = ImageSpec(height=10, width=20)
    for sample in dataset.samples:
        number = int(Path(sample.key).stem)
        assert sample.group == f"g{number // 4}"
        assert sample.box == ((5, 3, 20, 10) if number % 4 else None)
        assert (spec.read(sample.path, sample.box) == RED).all() == bool(number % 4)


def test_csv_and_parquet_say_the_same_and_numbers_are_names(tmp_path: Path) -> None:
    rows = [{**row, "label": number % 2 + 7} for number, row in enumerate(photographs(tmp_path))]
    one, other = (open_dataset(write(tmp_path / name, rows)) for name in ("m.csv", "m.parquet"))
    assert one.labels == other.labels == ("7", "8")
    assert one.digest == other.digest


def test_given_groups_are_not_divided_and_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "group": f"garden {number // 6}"} for number, row in enumerate(photographs(tmp_path, each=36))]
    dataset = open_dataset(write(tmp_path / "m.csv", rows))
    assert dataset.division == "validation: 10 % of the training images, groups kept together (12 given)"
    assert dataset.looked is None
    places = {(sample.group, part) for part in PARTS for sample in dataset.parts[part]}
    assert len(places) == 12
    assert all(counts(dataset))


def test_a_group_that_the_dataset_itself_tears_apart_is_found(tmp_path: Path) -> None:
    rows = [{**row, "group": "g", "part": "test" * (n > 19)} for n, row in enumerate(photographs(tmp_path))]
    for row in rows[:16]:
        row["group"] = ""
    dataset = open_dataset(write(tmp_path / "m.csv", rows))
    findings = examine(dataset, None)
    assert not findings.clean
    assert findings.document()["groups_in_two_parts"] == {"g": ["train", "test"]}
    said = "1 group stands in two parts, as the dataset gives them ('g' in train and test): figures on them flatter"
    assert said in findings.sentences()
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path / "m.csv")])
    assert (done.exit_code, said in done.output, "nothing wrong" in done.output) == (4, True, False)


def test_missing_images_are_listed_together_and_can_be_left_out(tmp_path: Path) -> None:
    rows = photographs(tmp_path)
    file = write(tmp_path / "m.csv", rows)
    for name in (gone := [rows[3]["path"], rows[7]["path"]]):
        (tmp_path / name).unlink()
    done = CliRunner().invoke(app, ["data", "check", str(file), "--json"])
    assert done.exit_code == 4, done.output
    assert json.loads(done.output)["bad"] == [{"path": name, "reason": "no such file"} for name in sorted(gone)]
    spec = ImageSpec(height=32, width=32)
    with pytest.raises(DatasetError, match=r"2 images of .* cannot be read: .*: no such file; .*: no such file"):
        sound(open_dataset(file), spec, skip_bad=False)
    left = sound(open_dataset(file), spec, skip_bad=True)
    assert len(left.samples) == len(rows) - 2
    assert set(left.bad) == set(gone)


def test_the_folder_may_move_and_order_does_not_matter(tmp_path: Path) -> None:
    rows = photographs(tmp_path / "here")
    before = open_dataset(write(tmp_path / "here" / "m.csv", rows))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    write(tmp_path / "there" / "m.csv", rows[::-1])
    assert open_dataset(tmp_path / "there" / "m.csv").digest == before.digest


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, quoted commas, blank lines and rows of commas."""
    rows = photographs(tmp_path)
    shutil.copy(tmp_path / "shots" / "0.png", tmp_path / "shots" / "wren, female.png")
    text = "\r\n".join(["path , label", *(f"{row['path']}, {row['label']} " for row in rows[2:]), "", ","])
    (tmp_path / "m.csv").write_bytes(f'\ufeff{text}\r\n"shots/wren, female.png",wren\r\n'.encode())
    dataset = open_dataset(tmp_path / "m.csv")
    assert len(dataset.samples) == 23
    assert "shots/wren, female.png" in {sample.key for sample in dataset.samples}


def test_a_published_list_becomes_a_manifest(tmp_path: Path) -> None:
    """The Grocery Store Dataset's own shape, by the lines that docs/own-images.md gives."""
    rows = photographs(tmp_path)
    names = {row["label"]: number for number, row in enumerate(rows[:2])}
    (tmp_path / "classes.csv").write_text("Class Name (str),Class ID (int)\nwren,0\ntit,1\n")
    for part, chosen in (("train", rows[:18]), ("val", rows[18:19]), ("test", rows[19:])):
        lines = [f"{row['path']}, {names[row['label']]}, 0\n" for row in chosen]
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    page = (Path(__file__).parents[2] / "docs" / "own-images.md").read_text(encoding="utf-8")
    script = page.split("```python\n", 1)[1].split("```", 1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(script, {})  # the documented lines themselves
    dataset = open_dataset(tmp_path / "grocery.csv")
    assert dataset.labels == ("tit", "wren")
    assert (len(dataset.parts["validation"]), len(dataset.parts["test"])) == (1, 5)
    assert dataset.division == "validation: given by the dataset (1 of 2 classes)"
    assert "validation: 1 of 2 classes have no images ('tit')" in dataset.notes
