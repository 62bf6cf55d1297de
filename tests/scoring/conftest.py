"""Photographs and a crew for the tests of tables: real files, the toy bundle, ONNX Runtime in this process."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle, image
from scoring.answers import Asking
from scoring.cluster.crew import Cluster
from scoring.cluster.worker import Worker, leave
from scoring.table.crew_of_one import CrewOfOne
from scoring.table.job import Briefing, TableOptions, TableSummary, score_into_table
from scoring.table.runs import Chunk
from serving.client.local import LocalInference

Score = Callable[..., TableSummary]
UNREADABLE = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.EACCES)


@dataclass
class InThisProcess:
    """A worker as a cluster makes it, without the cluster; `work` is what it was given."""

    threads: int = 1
    work: list[Briefing] = field(default_factory=list)

    def score(self, work: Briefing, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        self.work.append(work)
        leave(work.bundle, work.place)
        worker = Worker(Cluster(address="local", threads=self.threads).parcel(work))
        for number in numbers:
            yield worker.score(number)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def unreadable(patch: pytest.MonkeyPatch, number: int, *paths: Path) -> None:
    """Let the disk refuse some files with an error's number, though it tells of their sizes and times."""
    content = image._content

    def refused(path: Path, max_bytes: int) -> bytes:
        if path in paths:
            raise OSError(number, os.strerror(number), str(path))
        return content(path, max_bytes)

    patch.setattr(image, "_content", refused)


@pytest.fixture
def photos(tmp_path: Path, toy_images: np.ndarray) -> Path:
    """Twenty clean images in two folders, noise, one that is no image, and one under a hidden name."""
    folder = tmp_path / "photos"
    for index, pixels in enumerate(toy_images):
        save(folder / f"{'a' if index < 8 else 'b'}" / f"{index:02d}.png", pixels)
    save(folder / "noise.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
    (folder / "b" / "broken.png").write_bytes(b"no image at all")
    save(folder / ".hidden.png", toy_images[0])
    return folder


@pytest.fixture(scope="session")
def inference(toy_bundle: Bundle) -> LocalInference:
    return LocalInference(toy_bundle, threads=1)


@pytest.fixture
def score(toy_bundle: Bundle, inference: LocalInference) -> Score:
    """`score(source, table, chunk_rows=7, bundle=..., alpha=..., ...)` scores in this process."""

    def run(
        source: Path | str,
        table: Path | str,
        *,
        chunk_rows: int = 7,
        bundle: Bundle = toy_bundle,
        network: str = "full",
        alpha: float | None = None,
        another_bundle: bool = False,
        **more: object,
    ) -> TableSummary:
        options = TableOptions(
            asking=Asking(network=network, alpha=alpha, batch=4),
            chunk_rows=chunk_rows,
            another_bundle=another_bundle,
        )
        own = inference if bundle is toy_bundle else LocalInference(bundle, threads=1)
        crew = CrewOfOne(inference=own, pauses=(0.01, 0.01))
        return score_into_table(str(source), bundle, str(table), options, crew, **more)  # type: ignore[arg-type]

    return run
