"""CUB-200-2011 as published: five index files beside `images/`, and `parts/` where there are landmarks.

images.txt               <image id> <path below images/>
classes.txt              <class id> <class name, such as 001.Black_footed_Albatross>
image_class_labels.txt   <image id> <class id>
train_test_split.txt     <image id> <1 for training, 0 for test>
bounding_boxes.txt       <image id> <left> <top> <width> <height>, in pixels
parts/parts.txt          <part id> <part name, may hold spaces>
parts/part_locs.txt      <image id> <part id> <x> <y> <1 where visible>, in pixels
"""

import re
from pathlib import Path

from bundle.errors import DatasetError
from bundle.image import Box
from training.data.index import Index, Landmark, Sample, checked_box, located, number, text_rows, whole

SIGNS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")


def find(folder: Path) -> Path | None:
    """The CUB folder at or directly below `folder`; one index file tells, so that a missing one is named."""
    for place in (folder, folder / "CUB_200_2011"):
        if any((place / sign).is_file() for sign in SIGNS):
            return place
    return None


def read(root: Path) -> Index:
    """Read the index files; images are looked for but not decoded."""
    class_ids, labels = _classes(root / "classes.txt")
    images = _images(root)
    image_labels: dict[int, int] = {}
    for where, image_id, row in _per_image(root / "image_class_labels.txt", 2, images):
        class_id = whole(row[1], where)
        if class_id not in class_ids:
            raise DatasetError(
                f"{where}: class {class_id} is not in classes.txt", hint="Add the class there, or correct the line."
            )
        image_labels[image_id] = class_ids[class_id]
    is_training: dict[int, bool] = {}
    for where, image_id, row in _per_image(root / "train_test_split.txt", 2, images):
        if row[1] not in ("0", "1"):
            raise DatasetError(
                f"{where}: {row[1][:40]!r} is neither 1 (training) nor 0 (test)", hint="Correct the line."
            )
        is_training[image_id] = row[1] == "1"
    boxes: dict[int, Box] = {}
    for where, image_id, row in _per_image(root / "bounding_boxes.txt", 5, images):
        left, top, width, height = (number(field, where) for field in row[1:])
        boxes[image_id] = checked_box((left, top, width, height), where)
    landmarks = _landmarks(root / "parts", images)
    given: dict[str, list[Sample]] = {"train": [], "test": []}
    for image_id, (key, path) in images.items():
        given["train" if is_training[image_id] else "test"].append(
            Sample(
                key=key,
                path=path,
                label=image_labels[image_id],
                box=boxes[image_id],
                landmarks=tuple(landmarks.get(image_id, ())),
            )
        )
    return Index(format="cub", root=root, labels=labels, given=given)


def _classes(path: Path) -> tuple[dict[int, int], tuple[str, ...]]:
    names: dict[int, str] = {}
    for where, row in text_rows(path, 2, rest=True):
        class_id = whole(row[0], where)
        if class_id in names:
            raise DatasetError(f"{where}: class {class_id} stands there twice", hint="Remove one of the two lines.")
        names[class_id] = re.sub(r"^\d+\.", "", row[1].strip()).replace("_", " ")
    ordered = sorted(names)
    return {class_id: label for label, class_id in enumerate(ordered)}, tuple(names[class_id] for class_id in ordered)


def _images(root: Path) -> dict[int, tuple[str, Path]]:
    images: dict[int, tuple[str, Path]] = {}
    for where, row in text_rows(root / "images.txt", 2, rest=True):
        image_id = whole(row[0], where)
        if image_id in images:
            raise DatasetError(f"{where}: image {image_id} stands there twice", hint="Remove one of the two lines.")
        key, path = located(root / "images", row[1], where)
        images[image_id] = (f"images/{key}", path)
    return images


def _per_image(path: Path, fields: int, images: dict[int, tuple[str, Path]]) -> list[tuple[str, int, list[str]]]:
    """Rows of a file that holds each image of images.txt exactly once, as (where, image id, fields)."""
    rows: dict[int, tuple[str, int, list[str]]] = {}
    for where, row in text_rows(path, fields):
        image_id = whole(row[0], where)
        if image_id in rows:
            raise DatasetError(f"{where}: image {image_id} stands there twice", hint="Remove one of the two lines.")
        if image_id not in images:
            raise DatasetError(
                f"{where}: image {image_id} is not in images.txt", hint="Add the image there, or remove the line."
            )
        rows[image_id] = (where, image_id, row)
    for image_id in images:
        if image_id not in rows:
            raise DatasetError(
                f"{path} has no line for image {image_id} of images.txt", hint="Add the line, or remove the image."
            )
    return list(rows.values())


def _landmarks(folder: Path, images: dict[int, tuple[str, Path]]) -> dict[int, list[Landmark]]:
    if not folder.is_dir():
        return {}
    names = {whole(row[0], where): row[1].strip() for where, row in text_rows(folder / "parts.txt", 2, rest=True)}
    found: dict[int, list[Landmark]] = {}
    for where, (image, part, x, y, visible) in text_rows(folder / "part_locs.txt", 5):
        image_id, part_id = whole(image, where), whole(part, where)
        if image_id not in images or part_id not in names:
            missing = (
                f"image {image_id} is not in images.txt"
                if image_id not in images
                else f"part {part_id} is not in parts.txt"
            )
            raise DatasetError(f"{where}: {missing}", hint="Correct the line, or remove the folder parts/.")
        if visible != "0":
            found.setdefault(image_id, []).append((names[part_id], number(x, where), number(y, where)))
    return found
