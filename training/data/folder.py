"""A plain image folder: DIR/<class>/*.jpg, or DIR/train/<class>/ beside DIR/test/<class>/ and DIR/validation/<class>/.

Class names are folder names, sorted by name as torchvision's ImageFolder does. Images may lie deeper than one level;
links are followed. Hidden names are passed over; files that are not images too, and these are counted. A class needs
images in train/ and may lack them in the other parts.
"""

import os
from collections import Counter
from pathlib import Path

from bundle.errors import DatasetError
from bundle.formats import count_passed_over, is_image, passed_over, suffixes
from training.data.index import Index, Sample

VALIDATION_NAMES = ("validation", "valid", "val")
Identity = tuple[int, int]
"""Device and inode: what a folder or file is, by whatever name it is reached."""


def read(root: Path) -> Index:
    """List the images of each class folder; nothing is decoded."""
    sources = _sources(root)
    labels = tuple(entry.name for entry in _folders(sources["train"]))
    if not labels:
        raise DatasetError(_nothing_found(sources["train"]), hint="Put the images of each class into DIR/<class>/.")
    reader = _Reader(root, labels)
    given = {part: reader.part(source, needed=part == "train") for part, source in sources.items()}
    for source in sources.values():
        reader.count_beside(source)
    return Index(format="folder", root=root, labels=labels, given=given, passed=dict(reader.passed))


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


class _Reader:
    """Lists part after part, and remembers which files it has met and what it passed over."""

    def __init__(self, root: Path, labels: tuple[str, ...]) -> None:
        self.root, self.labels = root, labels
        self.seen: dict[Identity, str] = {}
        self.passed: Counter[str] = Counter()

    def part(self, source: Path, *, needed: bool) -> list[Sample]:
        """The images of each class folder in `source`; with `needed`, a class without any is refused."""
        samples: list[Sample] = []
        for folder in _folders(source):
            before, passed = len(samples), Counter(self.passed)
            around = {_identity(self.root.stat()), _identity(source.stat())}
            paths = self._images(Path(folder.path), around)
            if paths and folder.name not in self.labels:
                raise DatasetError(
                    f"{folder.path} is a class without training images",
                    hint="Give it a folder of the same name in train/, or remove it.",
                )
            for path in paths:
                key = path.relative_to(self.root).as_posix()
                samples.append(Sample(key=key, path=path, label=self.labels.index(folder.name), box=None))
            if needed and len(samples) == before:
                told = passed_over(self.passed - passed)
                raise DatasetError(
                    f"the class folder {folder.path} holds no images{told and f' ({told})'}",
                    hint=f"Add images ({' '.join(suffixes())}) or remove it.",
                )
        return samples

    def count_beside(self, source: Path) -> None:
        """What lies beside the class folders belongs to no class."""
        for entry in _entries(source):
            if _is_image(entry):
                self.passed[f"{Path(entry.name).suffix.lower()} beside the class folders"] += 1

    def _images(self, folder: Path, around: set[Identity]) -> list[Path]:
        """Images in and below `folder`. `around` ends loops of links; `seen` finds one file that has two names."""
        if (identity := _identity(folder.stat())) in around:
            return []
        around.add(identity)
        found: list[Path] = []
        for entry in _entries(folder):
            if _is_folder(entry):
                found += self._images(Path(entry.path), around)
            elif _is_image(entry):
                path = Path(entry.path)
                try:
                    first = self.seen.setdefault(_identity(entry.stat()), entry.path)
                except OSError:  # a link to nowhere: whoever decodes it says so
                    first = entry.path
                if first != entry.path:
                    raise DatasetError(
                        f"{first} and {path} are the same file, which could be trained on and tested on",
                        hint="Keep one of the two.",
                    )
                found.append(path)
            else:
                count_passed_over(self.passed, entry.name)
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
    return is_image(entry.name) and not _is_folder(entry)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _nothing_found(folder: Path) -> str:
    if any(_is_image(entry) for entry in _entries(folder)):
        return f"{folder} holds images but no class folders"
    return f"{folder} holds no dataset: no class folders with images, no CUB index files, no Stanford Cars annotations"
