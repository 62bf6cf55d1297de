"""What a run writes down of its data, by which they are found again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bundle.errors import CheckpointError
from bundle.records import to_plain
from training.data.dataset import Dataset, open_dataset
from training.data.division import Shares


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Which data a run saw, and how they were divided; `digest` changes when a file, label, box or part does."""

    name: str
    format: str
    root: str
    digest: str
    seed: int  # of the division
    shares: Shares
    counts: dict[str, int]
    division: str  # how validation came about, to stand beside every figure on it
    series: tuple[tuple[str, ...], ...]  # keys of images that were found to belong together
    bad: dict[str, str]  # keys of images that were left out, and why

    @classmethod
    def of(cls, dataset: Dataset) -> "DatasetRecord":
        return cls(
            name=dataset.name,
            format=dataset.format,
            root=str(dataset.root.resolve()),
            digest=dataset.digest,
            seed=dataset.seed,
            shares=dataset.shares,
            counts={name: len(samples) for name, samples in dataset.parts.items()},
            division=dataset.division,
            series=dataset.series,
            bad=dataset.bad,
        )

    def open(self, root: Path) -> Dataset:
        """The dataset that lies at `root` now, divided by the same settings; raises DatasetError."""
        return open_dataset(root, seed=self.seed, **asdict(self.shares), without=self.bad, series=self.series)

    def unchanged_at(self, root: Path) -> Dataset:
        """The same; raises CheckpointError when it is not what the run saw."""
        dataset = self.open(root)
        if dataset.digest != self.digest:
            raise CheckpointError(
                f"{root} is not the data this run was trained on (files, labels or boxes differ)",
                hint="Restore it, or name the right folder with --data.",
            )
        return dataset

    def published(self) -> dict[str, Any]:
        """What goes into a bundle and a report: no path of this machine, and no lists of files."""
        return {key: value for key, value in to_plain(self).items() if key not in ("root", "series", "bad")}
