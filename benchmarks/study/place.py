"""Where a study keeps its runs and what its figures are called: every dataset and backbone has a place of its own."""

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import read_kept
from bundle.errors import OptionError
from training.backbones import BACKBONES

_FOLDER = re.compile(rf"(?:(.+)-)?((?:{'|'.join(BACKBONES)})(?:-[1-9][0-9]{{1,3}})?)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder of runs named ROW-SEED; `backbone` is as in a preset's name, `dataset` empty for the built-in birds."""

    folder: Path
    backbone: str
    dataset: str = ""

    @classmethod
    def under(cls, out: Path, backbone: str, data: Path | None) -> "Place":
        """Of a study of `data`, or of the built-in birds, whose folders are in `out`."""
        name = "" if data is None else data.stem if data.is_file() else data.resolve().name
        dataset = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        folder = out / "-".join(filter(None, (dataset, backbone)))
        begun = out / backbone / "options.json"  # an earlier version had no folder for every dataset
        if begun.is_file() and data is not None and read_kept(begun, "data")["data"] == str(data):
            folder = begun.parent
        return cls(folder=folder, backbone=backbone, dataset=dataset)

    @classmethod
    def of(cls, folder: Path) -> "Place":
        """Of a study's folder, by its name."""
        match = _FOLDER.fullmatch(folder.resolve().name)
        if match is None:
            raise OptionError(
                f"{folder} is not named as a study names its folder", hint="BACKBONE, or DATASET-BACKBONE."
            )
        return cls(folder=folder, backbone=match[2], dataset=match[1] or "")

    @property
    def mark(self) -> str:
        """Between which marks of docs/results.md its tables stand."""
        return " ".join(filter(None, (self.dataset, self.backbone)))

    def name(self, what: str) -> str:
        """Of benchmarks/results/NAME.json."""
        return f"{what}_{self.mark.replace(' ', '_')}"

    def run(self, row: str, seed: int) -> Path:
        """The folder of one training."""
        return self.folder / f"{row}-{seed}"
