"""Stanford Cars-196 in its two published layouts. Annotations are MATLAB files, boxes are 1-based and inclusive.

By folders:      cars_train/*.jpg, cars_test/*.jpg, devkit/cars_meta.mat (class_names), devkit/cars_train_annos.mat and
                 cars_test_annos_withlabels.mat: `annotations` with bbox_x1, bbox_y1, bbox_x2, bbox_y2, class, fname.
                 Copies that nest (cars_train/cars_train/, car_devkit/devkit/) are read too.
By a single file: car_ims/*.jpg and cars_annos.mat: class_names, and `annotations` with relative_im_path, the four
                 corners, class, test (1 for a test image).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import DatasetError, MissingExtra
from bundle.image import Box
from training.data.index import Index, Sample, checked_box, located

CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
DEVKITS = ("devkit", "car_devkit/devkit", ".")
WITH_LABELS = "cars_test_annos_withlabels.mat"
INCOMPLETE = "The copy of the dataset is incomplete or damaged; fetch the file again."


def find(folder: Path) -> Path | None:
    """The Cars folder at or directly below `folder`."""
    for place in (folder, folder / "stanford_cars"):
        if any(any((place / kit).glob("cars_*.mat")) for kit in DEVKITS) or (place / "car_ims").is_dir():
            return place
        if (place / "cars_train").is_dir() and (place / "cars_test").is_dir():
            return place
    return None


def read(root: Path) -> Index:
    """Read the annotations; images are looked for but not decoded."""
    has_file, has_folder = (root / "cars_annos.mat").is_file(), (root / "car_ims").is_dir()
    if (has_file and has_folder) or ((has_file or has_folder) and not (root / "cars_train").is_dir()):
        return _by_single_file(root)
    return _by_folders(root)


def _by_single_file(root: Path) -> Index:
    path = root / "cars_annos.mat"
    content = _load(path)
    labels = _class_names(content, path)
    given: dict[str, list[Sample]] = {"train": [], "test": []}
    for where, row in _rows(content, path, ("relative_im_path", *CORNERS, "class", "test")):
        part = "test" if _whole(row["test"], where) else "train"
        given[part].append(_sample(root, _text(row["relative_im_path"], where), row, labels, where))
    return Index(format="cars", root=root, labels=labels, given=given)


def _by_folders(root: Path) -> Index:
    meta = _existing(root, *(f"{kit}/cars_meta.mat" for kit in DEVKITS))
    train = _existing(root, *(f"{kit}/cars_train_annos.mat" for kit in DEVKITS))
    test = _existing(root, *(f"{kit}/{name}" for name in (WITH_LABELS, "cars_test_annos.mat") for kit in DEVKITS))
    labels = _class_names(_load(meta), meta)
    given: dict[str, list[Sample]] = {}
    for part, path in (("train", train), ("test", test)):
        images = f"cars_{part}/cars_{part}" if (root / f"cars_{part}/cars_{part}").is_dir() else f"cars_{part}"
        given[part] = [
            _sample(root, f"{images}/{_text(row['fname'], where)}", row, labels, where)
            for where, row in _rows(_load(path), path, ("fname", *CORNERS, "class"))
        ]
    return Index(format="cars", root=root, labels=labels, given=given)


def _existing(root: Path, *names: str) -> Path:
    """The first of `names` that is there; the error names the first."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DatasetError(f"{root / names[0]} is missing", hint=INCOMPLETE)


def _load(path: Path) -> dict[str, Any]:
    try:
        import scipy.io
    except ImportError as error:
        raise MissingExtra.named("training", "Reading Stanford Cars", error) from None
    try:
        content: dict[str, Any] = scipy.io.loadmat(str(path), appendmat=False, squeeze_me=True)
        return content
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing", hint=INCOMPLETE) from None
    except PermissionError:
        raise DatasetError(f"{path} cannot be read", hint="Give yourself read permission (chmod u+r).") from None
    except Exception as problem:  # the reader raises whatever it meets in damaged data
        reason = " ".join(str(problem).split())
        raise DatasetError(f"{path} is not a readable MATLAB file ({reason})", hint=INCOMPLETE) from None


def _class_names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    if "class_names" not in content:
        raise DatasetError(f"{path} lacks the variable 'class_names'", hint=INCOMPLETE)
    names = np.atleast_1d(content["class_names"]).tolist()
    return tuple(_text(name, f"{path}, class {number}") for number, name in enumerate(names, start=1))


def _rows(content: dict[str, Any], path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE, image N", fields by name) for each element of the struct array `annotations`."""
    annotations = content.get("annotations")
    present = getattr(getattr(annotations, "dtype", None), "names", None)
    if annotations is None or present is None:
        raise DatasetError(f"{path} lacks the struct array 'annotations'", hint=INCOMPLETE)
    if "class" not in present and path.name.startswith("cars_test_annos"):
        raise DatasetError(
            f"{path} does not hold the classes of the test images",
            hint=f"Put the published file {WITH_LABELS} beside it.",
        )
    if missing := [field for field in fields if field not in present]:
        raise DatasetError(f"{path} lacks the field {missing[0]!r} in 'annotations'", hint=INCOMPLETE)
    columns = [np.atleast_1d(annotations[field]).tolist() for field in fields]
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        yield f"{path}, image {number}", dict(zip(fields, row, strict=True))


def _sample(root: Path, relative: str, row: dict[str, Any], labels: tuple[str, ...], where: str) -> Sample:
    class_id = _whole(row["class"], where)
    if not 1 <= class_id <= len(labels):
        raise DatasetError(f"{where}: class {class_id} is not in 1..{len(labels)}", hint="Correct the annotation.")
    key, path = located(root, relative, where)
    return Sample(key=key, path=path, label=class_id - 1, box=_box(row, where))


def _box(row: dict[str, Any], where: str) -> Box:
    """Corners that both belong to the car, counted from 1, as (left, top, width, height) counted from 0."""
    x1, y1, x2, y2 = (_number(row[corner], where) for corner in CORNERS)
    return checked_box((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), where)


def _number(value: Any, where: str) -> float:
    # MATLAB stores the smallest type that fits; as float, x2 - x1 cannot wrap around in 8 bits.
    if isinstance(value, int | float | np.number):
        return float(value)
    raise DatasetError(f"{where}: {str(value)[:40]!r} is not a number", hint="Correct the annotation.")


def _whole(value: Any, where: str) -> int:
    number = _number(value, where)
    if not number.is_integer():
        raise DatasetError(f"{where}: {number} is not a whole number", hint="Correct the annotation.")
    return int(number)


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise DatasetError(f"{where}: {str(value)[:40]!r} is not a name", hint="Correct the annotation.")
