"""A manifest: one CSV or Parquet file that names every image, its class and, if it wants, its part, group and box.

path                 relative to the manifest's folder, and inside it
label                the class's name; classes are sorted by name
part                 optional: train, validation (val, valid), calibration or test; empty is train
group                optional: what was taken together (a shop, a burst, an animal) and so is never divided
x, y, width, height  optional, all four or none: the box in pixels of the full image; empty is the whole image

CSV is UTF-8 with a line of column names. An unknown column is refused: it may be one of these, misspelt.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.errors import DatasetError, MissingExtra, first_line
from bundle.image import Box
from training.data.index import Index, Sample, checked_box, located, number

SUFFIXES = (".csv", ".parquet")
BOX = ("x", "y", "width", "height")
NEEDED, COLUMNS = ("path", "label"), ("path", "label", "part", "group", *BOX)
PARTS = {
    "": "train",
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "calibration": "calibration",
    "test": "test",
}
Row = dict[str, str]


def find(path: Path) -> Path | None:
    """`path`, if it is named like a manifest."""
    return path if path.is_file() and path.suffix.lower() in SUFFIXES else None


def read(path: Path) -> Index:
    """Read every row; images are looked for but not decoded."""
    rows = list(_parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path))
    if not rows:
        raise DatasetError(f"{path} names no images", hint="Each row after the column names is an image.")
    labels = tuple(sorted({row["label"] for _, row in rows} - {""}))
    codes = {label: code for code, label in enumerate(labels)}
    given: dict[str, list[Sample]] = {"train": []}
    first: dict[str, str] = {}
    for where, row in rows:
        if not row["label"]:
            raise DatasetError(f"{where}: there is no label", hint="Give the image its class, or remove the row.")
        part = PARTS.get(row.get("part", "").lower())
        if part is None:
            raise DatasetError(
                f"{where}: {row['part'][:40]!r} is no part", hint="Parts: train, validation, calibration, test."
            )
        key, image = located(path.parent, row["path"], where)
        if key in first:
            raise DatasetError(
                f"{where}: the image {key} is listed twice, before in {first[key]}", hint="Remove one of the two rows."
            )
        first[key] = where
        sample = Sample(
            key=key, path=image, label=codes[row["label"]], box=_box(row, where), group=row.get("group", "")
        )
        given.setdefault(part, []).append(sample)
    learnt = {sample.label for sample in given["train"]}
    for where, row in rows:
        if codes[row["label"]] not in learnt:
            raise DatasetError(
                f"{where}: the class {row['label']!r} has no training images",
                hint="Leave the part of some of its images empty, or remove the class.",
            )
    return Index(format="manifest", root=path, labels=labels, given=given)


def _box(row: Row, where: str) -> Box | None:
    fields = [row.get(name, "") for name in BOX]
    if not any(fields):
        return None
    if not all(fields):
        missing = next(name for name, field in zip(BOX, fields, strict=True) if not field)
        raise DatasetError(f"{where}: the box has no {missing}", hint=f"Give all of {', '.join(BOX)}, or none.")
    left, top, width, height = (number(field, where) for field in fields)
    return checked_box((left, top, width, height), where)


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """("FILE:LINE", fields by column) of each row that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DatasetError(f"{path} is not UTF-8 text ({problem.reason})", hint="Save it as UTF-8.") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if not any(field.strip() for field in fields):
                continue
            if columns is None:
                columns = _checked_columns([field.strip() for field in fields], path)
            elif len(fields) != len(columns):
                raise DatasetError(
                    f"{where} has {len(fields)} field{'s' * (len(fields) != 1)} instead of {len(columns)}",
                    hint='Correct the row; what holds a comma stands in "quotation marks".',
                )
            else:
                yield where, dict(zip(columns, (field.strip() for field in fields), strict=True))
    except csv.Error as problem:
        raise DatasetError(
            f"{path}:{reader.line_num} is no row of a CSV file ({problem})", hint="Correct it."
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """("FILE, row N", fields by column as text); rows are counted from 1."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra.named("scoring", "Reading a Parquet manifest", error) from None
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        columns = _checked_columns(table.column_names, path)
        rows = zip(*(table.column(position).to_pylist() for position in range(len(columns))), strict=True)
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        raise DatasetError(
            f"{path} is not a readable Parquet file ({first_line(problem)})", hint="Write it again."
        ) from None
    for place, values in enumerate(rows, start=1):
        where = f"{path}, row {place}"
        yield where, {name: _text(value, name, where) for name, value in zip(columns, values, strict=True)}


def _text(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise DatasetError(f"{where}: the {column} is neither text nor a number", hint="Correct the column's type.")


def _checked_columns(columns: list[str], path: Path) -> list[str]:
    for name in columns:
        if columns.count(name) > 1:
            raise DatasetError(f"{path} has the column {name!r} twice", hint="Remove one of the two.")
        if len(columns) == 1 and (mark := next((each for each in ";\t" if each in name), "")):
            raise DatasetError(f"{path} separates its columns by {mark!r}", hint="Save it with commas.")
        if name not in COLUMNS:
            raise DatasetError(
                f"{path} has an unknown column {name[:40]!r}",
                hint=f"Columns: {', '.join(COLUMNS)}. Rename it, or remove it.",
            )
    for name in NEEDED:
        if name not in columns:
            raise DatasetError(f"{path} lacks the column {name!r}", hint=f"It needs: {', '.join(NEEDED)}.")
    if (boxed := set(columns) & set(BOX)) and len(boxed) < len(BOX):
        missing = next(name for name in BOX if name not in boxed)
        raise DatasetError(
            f"{path} lacks the column {missing!r} of a box", hint=f"Give all of {', '.join(BOX)}, or none."
        )
    return columns
