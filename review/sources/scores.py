"""A folder that `fieldmark score` has filled: its flagged rows, and some of the others, drawn by their names alone."""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.errors import ReviewError
from review.sources.source import read_file
from review.store.item import FLAGGED, SAMPLE, Item, chance
from scoring.local.jobs import STATE, Job, read_state
from scoring.local.shards import read_scores
from scoring.rows import OK, arrow, exact_paths
from scoring.sources import Source as Files

DRAWN = 4000  # images that are in the random sample, about
MOST_FLAGGED = 100_000
COLUMNS = (
    "path", "path_bytes", "status", "label", "probability", "instance_score", "p_value", "is_adversarial",
    "layer_scores", "size", "mtime_ns",
)  # fmt: skip


class ScoreSource:
    """Tells of a set that is finished, and again after the set has changed."""

    def __init__(self, path: Path, bundle: Bundle, images: Path | None) -> None:
        self.path, self.bundle = path, bundle
        self.place = os.path.abspath(path)
        self.totals: dict[str, int] = {}
        self.notices: list[str] = []
        self._seen: tuple[int, int] | None = None
        self.job = self._checked()
        self._images = Images(Path(self.job.source), Path(self.job.source_at), images)

    def news(self) -> Iterator[Item]:
        """Rows in the set's order, if there are other ones than the last time."""
        stamp = _stamp(self.path / STATE)
        if stamp == self._seen:
            return
        self.job = self._checked()
        rows = read_scores(self.path, COLUMNS)
        self._seen = stamp
        rows = rows.filter(arrow().compute.equal(rows["status"], OK))
        self.totals = {self.job.network: rows.num_rows}
        yield from kept(rows, self.job.alpha, self.job.network, self.job.bundle_id, self._images)

    def read(self, image: str, most: int) -> bytes:
        """The file's bytes as they are now."""
        return self._images.read(image, most)

    def _checked(self) -> Job:
        state = read_state(self.path)
        if state.job.bundle_id != self.bundle.bundle_id:
            raise ReviewError(
                f"{self.path} was scored with bundle {state.job.bundle_id[:12]}, and {self.bundle.path} is "
                f"{self.bundle.bundle_id[:12]}",
                hint="Give the bundle that scored it.",
            )
        if not state.complete:
            raise ReviewError(
                f"{self.path} is not finished: {state.safe_in(self.path)}",
                hint="Run its 'fieldmark score' again to finish it.",
            )
        return state.job


class Images:
    """Where scored files lie: below the source as it was given, or as it lies now; files of a list, or of nobody knows
    which source (`found` is None), lie where their names say.
    """

    def __init__(self, given: Path, found: Path | None, moved: Path | None) -> None:
        self.given = os.fspath(given)
        if moved is not None and not moved.is_dir():
            raise ReviewError(f"there is no folder of images at {moved}", hint="Name the one that was scored.")
        is_list = found is not None and found.is_file()
        self.root = moved or (None if is_list else found)
        self._list = Files.open(found) if found is not None and is_list and moved is None else None

    def read(self, image: str, most: int) -> bytes:
        """The bytes of a scored file; raises ImageGone."""
        if self.root is None:
            return read_file(Path(self._list.place_of(image) if self._list else image), most)
        inner = os.path.relpath(image, self.given) if image.startswith(self.given) else image.lstrip("/")
        return read_file(self.root / inner, most, inside=self.root)

    def folder(self, image: str) -> str:
        """The folder of a scored file, as the source names it, without the source itself."""
        inner = os.path.relpath(image, self.given) if image.startswith(self.given) else image
        return os.path.dirname(inner)


def kept(rows: Any, alpha: float, network: str, bundle_id: str, images: Images) -> Iterator[Item]:
    """Items of a table of rows that have a score: those flagged, and of all about DRAWN, by their names."""
    flags = rows["is_adversarial"]
    flagged = arrow().compute.sum(flags).as_py() or 0
    share = min(1.0, DRAWN / max(1, rows.num_rows))
    worst = rows.filter(flags)
    if flagged > MOST_FLAGGED:
        worst = worst.take(arrow().compute.sort_indices(worst["p_value"])[:MOST_FLAGGED])
    yield from _items(worst, FLAGGED, share, alpha, network, bundle_id, images)
    yield from _items(rows.filter(arrow().compute.invert(flags)), SAMPLE, share, alpha, network, bundle_id, images)


def _items(
    rows: Any, reason: str, share: float, alpha: float, network: str, bundle_id: str, images: Images
) -> Iterator[Item]:
    for batch in rows.to_batches(4096):
        plain = batch.to_pylist()
        paths = exact_paths(arrow().Table.from_batches([batch]))
        for row, path in zip(plain, paths, strict=True):
            key = _key(path, row, bundle_id, network)
            drawn = chance(key, "drawn") < share
            if reason == SAMPLE and not drawn:
                continue
            yield Item(
                key=key,
                image=path,
                received=_time(row["mtime_ns"]),
                label=row["label"],
                probability=row["probability"],
                score=row["instance_score"],
                p_value=row["p_value"],
                alpha=alpha,
                reason=reason,
                drawn=drawn,
                origin=images.folder(path),
                network=network,
                bundle_id=bundle_id,
                layers=tuple(row["layer_scores"]),
            )


def _key(path: str, row: dict[str, Any], bundle_id: str, network: str) -> str:
    """Another file under an old name is another item."""
    facts = f"{path}\0{row['size']}\0{row['mtime_ns']}\0{bundle_id}\0{network}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _time(nanoseconds: int | None) -> str:
    return datetime.fromtimestamp((nanoseconds or 0) / 1e9, UTC).isoformat(timespec="milliseconds")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError as problem:
        raise ReviewError(
            f"{path} cannot be reached ({problem.strerror})", hint="What was decided is safe. Bring it back."
        ) from None
    return status.st_mtime_ns, status.st_ino
