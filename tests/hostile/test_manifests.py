"""Manifests that are damaged, mistyped or malicious: FILE:LINE, what is wrong, and what to do."""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from bundle.errors import DatasetError
from training.data import open_dataset

pytestmark = pytest.mark.hostile


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixteen images of two classes, in a folder beside a secret."""
    (tmp_path / "secret.png").write_bytes(b"not yours")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(16):
        Image.new("RGB", (20, 16), (number * 10, 100, 100)).save(folder / f"{number}.png")
    return folder


def rows(columns: str = "path,label", more: str = "") -> list[str]:
    """A valid manifest's lines: line 1 has the columns, line 2 the first image."""
    return [columns, *(f"{number}.png,{'ab'[number % 2]}{more}" for number in range(16))]


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(root: Path, lines: list[str]) -> str:
    (root / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return refusal(root / "m.csv").replace(f"{root}/", "")


def test_the_manifest_is_valid_before_anything_is_done_to_it(root: Path) -> None:
    (root / "m.csv").write_text("\n".join(rows()))
    assert len(open_dataset(root / "m.csv").samples) == 16


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3.png", "m.csv:5 has 1 field instead of 2"),
        ("3.png,b,train", "m.csv:5 has 3 fields instead of 2"),
        ("3.png,", "m.csv:5: there is no label"),
        (",b", "m.csv:5: the path '' leads out of the dataset folder"),
        ("0.png,b", "m.csv:5: the image 0.png is listed twice, before in m.csv:2"),
        ("./0.png,b", "m.csv:5: the image 0.png is listed twice"),
        ("../secret.png,b", "m.csv:5: the path '../secret.png' leads out of the dataset folder"),
        ("/etc/passwd,b", "m.csv:5: the path '/etc/passwd' is absolute"),
        ("https://example.org/3.png,b", "m.csv:5: 'https://example.org/3.png' is an address, not a path"),
        ("3\0.png,b", "m.csv:5"),
        ('"3.png,b', "is no row of a CSV file"),
    ],
)
def test_a_malformed_row(root: Path, line: str, says: str) -> None:
    lines = rows()
    lines[4] = line
    assert says in refused(root, lines)


@pytest.mark.parametrize(
    ("columns", "more", "says"),
    [
        (
            "path,class",
            "",
            "m.csv has an unknown column 'class'. Columns: path, label, part, group, x, y, width, height",
        ),
        ("path,label,grp", ",1", "m.csv has an unknown column 'grp'"),
        ("path,label,label", ",1", "m.csv has the column 'label' twice"),
        ("path,label,width,height", ",3,4", "m.csv lacks the column 'x' of a box"),
        ("path,label,part", ",training", "m.csv:2: 'training' is no part. Parts: train, validation, calibration, test"),
        ("path,label,x,y,width,height", ",1,2,3,", "m.csv:2: the box has no height"),
        ("path,label,x,y,width,height", ",1,2,wide,4", "m.csv:2: 'wide' is not a number"),
        ("path,label,x,y,width,height", ",1,2,0,4", "m.csv:2: the bounding box (left 1, top 2, width 0, height 4)"),
        ("path,label,x,y,width,height", ",-1,2,5,4", "m.csv:2: the bounding box (left -1"),
        ("path,label,x,y,width,height", ",nan,2,5,4", "m.csv:2: the bounding box (left nan"),
        ("path,label,part", ",test", "m.csv:2: the class 'a' has no training images"),
    ],
)
def test_wrong_columns_and_values(root: Path, columns: str, more: str, says: str) -> None:
    assert says in refused(root, rows(columns, more))


def test_a_missing_column_and_no_rows(root: Path) -> None:
    assert "m.csv lacks the column 'label'" in refused(root, ["path", "0.png"])
    assert "m.csv lacks the column 'path'" in refused(root, ["label", "a"])
    assert "m.csv names no images" in refused(root, ["path,label"])
    assert "m.csv names no images" in refused(root, [""])


def test_a_class_that_only_the_test_part_knows_is_named_with_its_row(root: Path) -> None:
    lines = rows("path,label,part", ",train")
    lines[7] = "6.png,heron,test"
    assert "m.csv:8: the class 'heron' has no training images" in refused(root, lines)


def test_one_class_and_too_few_images(root: Path) -> None:
    assert "has 1 class ('a')" in refused(root, ["path,label", "0.png,a", "1.png,a"])
    assert "the class 'b' has 1 training image, but each class needs 4" in refused(
        root, [*rows()[:1], *rows()[1::2], "1.png,b"]
    )


def test_bytes_that_are_no_text_and_names_that_are_not_utf8(root: Path) -> None:
    (root / "m.csv").write_bytes(b"path,label\n\xff\xfe.png,a\n")
    assert "is not UTF-8 text" in refusal(root / "m.csv")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 200 + b"PAR1", b"path,label\n0.png,a\n"])
def test_a_parquet_file_that_is_none(root: Path, content: bytes) -> None:
    (root / "m.parquet").write_bytes(content)
    assert f"{root / 'm.parquet'} is not a readable Parquet file" in refusal(root / "m.parquet")


def test_parquet_rows_are_counted_and_columns_have_kinds(root: Path) -> None:
    def write(**columns: list[object]) -> Path:
        pyarrow.parquet.write_table(pyarrow.table(columns), root / "m.parquet")
        return root / "m.parquet"

    names: list[object] = [f"{number}.png" for number in range(16)]
    labels: list[object] = [f"{'ab'[number % 2]}" for number in range(16)]
    assert "row 3: the path '/gone.png' is absolute" in refusal(
        write(path=[*names[:2], "/gone.png", *names[3:]], label=labels)
    )
    assert "m.parquet, row 2: there is no label" in refusal(write(path=names, label=["a", None, *labels[2:]]))
    assert "row 1: the label is neither text nor a number" in refusal(write(path=names, label=[[1]] * 16))
    assert "m.parquet has an unknown column 'url'" in refusal(write(path=names, label=labels, url=names))


def test_other_files_are_no_manifests(root: Path) -> None:
    (root / "m.txt").write_text("\n".join(rows()))
    assert "m.txt is a file, not a dataset folder. Unpack it and name the folder, or name a manifest" in refusal(
        root / "m.txt"
    )
    os.mkfifo(root / "pipe.csv")
    assert "pipe.csv is a file, not a dataset folder" in refusal(root / "pipe.csv")


def test_columns_separated_as_a_spreadsheet_does_it(root: Path) -> None:
    (root / "m.csv").write_text("path;label\n0.png;a\n", encoding="utf-8")
    assert "separates its columns by ';'. Save it with commas." in refusal(root / "m.csv")
