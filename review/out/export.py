"""Out of the review, into a file or a folder that is whole or not there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle.errors import OptionError
from bundle.files import atomic_file, atomic_folder
from bundle.image import ImageSpec
from review.out.folders import FOLDERS
from review.out.records import write_csv, write_parquet
from review.sources.source import Source
from review.store.database import Database
from review.store.queue import Filter

FILES: dict[str, Callable[[Path, Database, Filter], None]] = {"csv": write_csv, "parquet": write_parquet}
FORMATS = (*FILES, *FOLDERS)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Where it lies, and how many images were gone, or none."""

    path: Path
    missing: int = 0


def export(format: str, out: Path, database: Database, source: Source, spec: ImageSpec, wanted: Filter) -> Exported:
    """Write the wanted items in one of FORMATS; raises OptionError for another, or where something is in the way."""
    if format in FILES:
        with atomic_file(out) as temporary:
            FILES[format](temporary, database, wanted)
        return Exported(path=out)
    if format not in FOLDERS:
        raise OptionError(f"there is no format {format[:40]!r}", hint=f"Choose from: {', '.join(FORMATS)}.")
    with atomic_folder(out) as temporary:
        missing = FOLDERS[format](temporary, database, wanted, source, spec)
    return Exported(path=out, missing=missing)
