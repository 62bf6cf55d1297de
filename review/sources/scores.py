"""A folder that `fieldmark score` has filled: its flagged rows, and some of the others, drawn by their names alone."""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.errors import FieldmarkError, ImageGone, ReviewError
from bundle.places import local_path, scheme_of, store_url
from review.sources.source import FOLDERS, Stamp, read_file
from review.store.item import Item, chance
from scoring.columns import OK, Scored, arrow, exact_paths
from scoring.local.jobs import STATE, Job, read_state
from scoring.local.shards import read_scores
from scoring.table.objects import CATALOGUES
from scoring.table.place import filesystem, reached
from serving.quarantine.entry import FLAGGED, SAMPLE

DRAWN = 4000  # images that are in the random sample, about
MOST_FLAGGED = 100_000
COLUMNS = (
    "path", "path_bytes", "status", "label", "probability", "instance_score", "p_value", "is_adversarial",
    "layer_scores", "size", "mtime_ns",
)  # fmt: skip


class ScoreSource:
    """Tells of a set that is finished, and again after the set has changed."""

    words, whole = FOLDERS, False

    def __init__(self, path: Path, bundle: Bundle, images: Path | None) -> None:
        self.place, self.bundle = os.path.abspath(path), bundle
        self.path = Path(self.place)
        self.totals: dict[str, int] = {}
        self.notices: list[str] = []
        self.tellings = 0
        self._seen: tuple[int, int] | None = None
        self.job = self._checked()
        self._files = ScoredFiles(self.job.source_at, images)

    def news(self) -> Iterator[Item]:
        """Rows in the set's order, if there are other ones than the last time."""
        stamp = _stamp(self.path / STATE)
        if stamp == self._seen:
            return
        self.job = self._checked()
        rows = read_scores(self.path, COLUMNS)
        self._seen = stamp
        rows = rows.filter(arrow().compute.equal(rows["status"], OK))
        self.totals, self.whole = {self.job.network: rows.num_rows}, rows.num_rows <= DRAWN
        yield from kept(rows, self.job, self._files)
        self.tellings += 1

    def forget(self) -> None:
        """Tell of every row again."""
        self._seen = None

    def read(self, image: str, most: int, was: Stamp) -> bytes:
        """The file's bytes, if they are what was scored."""
        return self._files.read(image, most, was)

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


class ScoredFiles:
    """Where scored files lie: in the folder that was scored, or where it lies now (`moved`); those of a list, where the
    list says; those of a bucket, below the address that was scored, or where a catalogue in a bucket says.
    """

    def __init__(self, source: str, moved: Path | None = None) -> None:
        if moved is not None and not moved.is_dir():
            raise ReviewError(f"there is no folder of images at {moved}", hint="Name the one that was scored.")
        is_far, self.moved = bool(scheme_of(source)), moved
        self._is_told = source.lower().endswith(CATALOGUES)  # the times are the catalogue's, who knows how precise
        self._is_catalogue = is_far and self._is_told
        self._is_list = not is_far and os.path.isfile(source)
        self.source = os.path.dirname(source) if self._is_catalogue else source.rstrip("/")

    def read(self, image: str, most: int, was: Stamp) -> bytes:
        """The bytes of a scored file, at most one more than `most`; raises ImageGone.

        Of an object in a bucket, of a file that was moved, and of one whose time a catalogue gave, only the size is
        compared with what it was.
        """
        local = local_path(image)
        if self._is_told or self.moved is not None:
            was = Stamp(size=was.size)
        if self.moved is None and local is None:
            return self._fetched(image, most, was)
        if self.moved is None and self._is_catalogue:
            return self._fetched(os.path.join(self.source, image), most, was)
        if self._is_list and self.moved is None:
            return read_file(Path(os.path.join(os.path.dirname(self.source), local or image)), most, was)
        root = self.moved or Path(self.source)
        return read_file(root / self._inner(image), most, was, inside=root)

    def folder(self, image: str) -> str:
        """The folder of a scored file, without that of the source."""
        return os.path.dirname(self._inner(image))

    def _inner(self, image: str) -> str:
        """A file's name below the source, which may have been given by a relative name: its end, then, is known."""
        if image.startswith(f"{self.source}/"):
            return image[len(self.source) + 1 :]
        parts, there = Path(image).parts, Path(self.source).parts
        for count in range(min(len(parts) - 1, len(there)), 0, -1):
            if parts[:count] == there[-count:]:
                return os.path.join(*parts[count:])
        return image.lstrip("/")

    def _fetched(self, image: str, most: int, was: Stamp) -> bytes:
        named = self._is_list or (self._is_catalogue and scheme_of(image))  # no path of this machine from a bucket
        if not named and not image.startswith(f"{self.source}/"):
            raise ImageGone("the image lies outside its source, so it is not fetched")
        try:
            store = filesystem(scheme_of(image))
            data: bytes = reached(image, lambda: store.cat_file(store_url(image), start=0, end=most + 1))
        except FieldmarkError as problem:
            raise ImageGone(f"the image cannot be fetched ({problem.what})") from None
        if len(data) <= most:
            was.check(len(data))
        return data


def kept(rows: Any, job: Scored, files: ScoredFiles) -> Iterator[Item]:
    """Items of a table of rows that have a score: of those flagged, the MOST_FLAGGED most suspicious; and of all rows,
    whatever their p-values, about DRAWN, by their names.
    """
    compute, share = arrow().compute, min(1.0, DRAWN / max(1, rows.num_rows))
    worst = rows.filter(rows["is_adversarial"])
    if worst.num_rows > MOST_FLAGGED:
        order = compute.sort_indices(worst["p_value"])
        yield from _items(worst.take(order[MOST_FLAGGED:]), FLAGGED, share, job, files, drawn_alone=True)
        worst = worst.take(order[:MOST_FLAGGED])
    yield from _items(worst, FLAGGED, share, job, files)
    others = rows.filter(compute.invert(rows["is_adversarial"]))
    yield from _items(others, SAMPLE, share, job, files, drawn_alone=True)


def _items(
    rows: Any, reason: str, share: float, job: Scored, files: ScoredFiles, *, drawn_alone: bool = False
) -> Iterator[Item]:
    for batch in rows.to_batches(4096):
        plain = batch.to_pylist()
        paths = exact_paths(arrow().Table.from_batches([batch]))
        for row, path in zip(plain, paths, strict=True):
            key = _key(path, row, job)
            drawn = chance(key, "drawn") < share
            if drawn_alone and not drawn:
                continue
            yield Item(
                key=key,
                image=path,
                received=_time(row["mtime_ns"]),
                label=row["label"],
                probability=row["probability"],
                score=row["instance_score"],
                p_value=row["p_value"],
                alpha=job.alpha,
                reason=reason,
                drawn=drawn,
                origin=files.folder(path),
                network=job.network,
                bundle_id=job.bundle_id,
                layers=tuple(row["layer_scores"]),
                size=row["size"],
                mtime_ns=row["mtime_ns"],
            )


def _key(path: str, row: dict[str, Any], job: Scored) -> str:
    """Another file under an old name is another item."""
    facts = f"{path}\0{row['size']}\0{row['mtime_ns']}\0{job.bundle_id}\0{job.network}"
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
