"""What a review hands to `fieldmark calibrate`: the clean images of a random sample that was decided whole."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bundle import Bundle
from bundle.errors import ImageGone, ReviewError
from bundle.files import scratch
from review.follower import bytes_of, image_of
from review.sources.source import open_source
from review.store.database import Database
from review.store.sample import CALIBRATION, clean_images, use


@dataclass(frozen=True, kw_only=True)
class Handover:
    """`paths` of copies of the images, bytes as they were sent; `name` is what people call them; `left_out` says in
    words what of the sample is not among them. `taken` notes that a bundle was made of them.
    """

    paths: tuple[Path, ...]
    name: str
    left_out: str
    database: Database
    items: tuple[int, ...]

    def taken(self, bundle_id: str) -> None:
        """Note it: what has calibrated a bundle may teach nothing else."""
        use(self.database, self.items, CALIBRATION, bundle_id)


@contextlib.contextmanager
def clean_files(review: Path, bundle: Bundle, images: Path | None = None) -> Iterator[Handover]:
    """The clean images of the latest sample of a review that is decided whole, as long as the block runs.

    `images` is where a scored folder lies now. Raises ReviewError where no sample is decided whole, or its images are
    all gone: that some are, which depends on their age and not on their scores, is said and no harm.
    """
    with contextlib.closing(Database.open(review)) as database:
        yield from _handed(database, review, bundle, images)


def _handed(database: Database, review: Path, bundle: Bundle, images: Path | None) -> Iterator[Handover]:
    with database.reading() as connection:
        place = connection.execute("SELECT value FROM facts WHERE name = 'source'").fetchone()["value"]
    clean = clean_images(database)
    source = open_source(place, bundle, images=images)
    paths, items = [], []
    with scratch("clean") as folder:
        for item in clean.items:
            try:
                data = bytes_of(source, item, bundle.manifest.image.max_bytes)
            except ImageGone:
                continue
            path = folder / f"{item['id']:08d}{Path(image_of(item)).suffix.lower()}"
            path.write_bytes(data)
            paths.append(path)
            items.append(int(item["id"]))
        if not paths:
            raise ReviewError(
                f"all {len(clean.items):,} clean images of sample {clean.sample.number} are gone from {place}",
                hint="Draw another sample, and calibrate before its images are removed by age; if they moved, "
                "name where they lie now: --images DIR.",
            )
        gone = len(clean.items) - len(paths)
        left_out = ", ".join(filter(None, (clean.left_out, f"{gone:,} that are gone" if gone else "")))
        yield Handover(
            paths=tuple(paths),
            name=f"review {review.name}, sample {clean.sample.number}",
            left_out=left_out,
            database=database,
            items=tuple(items),
        )
