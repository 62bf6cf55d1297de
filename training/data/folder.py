"""A plain image folder: DIR/<class>/*.jpg, or DIR/train/<class>/ beside DIR/test/<class>/ and DIR/validation/<class>/.

Class names are folder names, sorted by name as torchvision's ImageFolder does. Images may lie deeper than one level;
links are followed. Hidden names and files that are not images are passed over.
"""

import os
from pathlib import Path

from bundle.errors import DatasetError
from bundle.image import SUFFIXES
from training.data.index import Index, Sample, check_readable

VALIDATION_NAMES = ("validation", "valid", "val")
Identity = tuple[int, int]
"""Device and inode: what a folder or file is, by whatever name it is reached."""


def read(root: Path) -> Index:
    """List the images of each class folder; nothing is decoded."""
    sources = _sources(root)
    labels = tuple(entry.name for entry in _folders(sources["train"]))
    if not labels:
        raise DatasetError(_nothing_found(sources["train"]), hint="Put the images of each class into DIR/<class>/.")
    seen: dict[Identity, str] = {}
    given = {part: _read_part(root, source, labels, seen) for part, source in sources.items()}
    return Index(format="folder", root=root, labels=labels, given=given)


def _sources(root: Path) -> dict[str, Path]:
    """Where each given part lies. A folder `train` that holds images itself is a class, not a part."""
    train = root / "train"
    if not (train.is_dir() and _folders(train)) or any(_is_image(entry) for entry in _entries(train)):
        return {"train": root}
    sources = {"train": train}
    if (root / "test").is_dir():
        sources["test"] = root / "test"
    validation = [root / name for name in VALIDATION_NAMES if (root / name).is_dir()]
    if len(validation) > 1:
        raise DatasetError(
            f"{root} has several validation folders ({', '.join(path.name for path in validation)})", hint="Keep one."
        )
    if validation:
        sources["validation"] = validation[0]
    return sources


def _read_part(root: Path, source: Path, labels: tuple[str, ...], seen: dict[Identity, str]) -> list[Sample]:
    samples: list[Sample] = []
    for folder in _folders(source):
        if folder.name not in labels:
            raise DatasetError(
                f"{folder.path} is a class without training images",
                hint="Give it a folder of the same name in train/, or remove it.",
            )
        before = len(samples)
        passed = {_identity(root.stat()), _identity(source.stat())}
        for path in _images(Path(folder.path), passed, seen):
            key = path.relative_to(root).as_posix()
            samples.append(Sample(key=key, path=path, label=labels.index(folder.name), box=None))
        if len(samples) == before:
            raise DatasetError(
                f"the class folder {folder.path} holds no images",
                hint=f"Add images ({' '.join(SUFFIXES)}) or remove it.",
            )
    return samples


def _images(folder: Path, passed: set[Identity], seen: dict[Identity, str]) -> list[Path]:
    """Images in and below `folder`. `passed` ends loops of links; `seen` finds one file that has two names."""
    if (identity := _identity(folder.stat())) in passed:
        return []
    passed.add(identity)
    found: list[Path] = []
    for entry in _entries(folder):
        if _is_folder(entry):
            found += _images(Path(entry.path), passed, seen)
        elif _is_image(entry):
            path = Path(entry.path)
            check_readable(path, str(folder))
            first = seen.setdefault(_identity(entry.stat()), entry.path)
            if first != entry.path:
                raise DatasetError(
                    f"{first} and {path} are the same file, which could be trained on and tested on",
                    hint="Keep one of the two.",
                )
            found.append(path)
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is not hidden, by name: the order must not depend on the file system."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also through a link; a link to itself is no folder, where `DirEntry.is_dir` would raise."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not _is_folder(entry)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _nothing_found(folder: Path) -> str:
    if any(_is_image(entry) for entry in _entries(folder)):
        return f"{folder} holds images but no class folders"
    return f"{folder} holds no dataset: no class folders with images, no CUB index files, no Stanford Cars annotations"
