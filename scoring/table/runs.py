"""A run: one pass of a job over its source, from the list of objects to one commit. Its files lie beside the rows.

    TABLE/_fieldmark/runs/000001-1f6e.../
        begun.json                what the run is pinned to
        listing/000000.parquet    every object, ascending by path, with its id and stamps
        work/000000.parquet       of those: what is to be scored, and what is gone
        manifest.json             how many there are, and the SHA-256 of it all: the list is whole
        done/000000.json          a chunk that is scored: its data file, and what is in it
    TABLE/day=.../bundle_id=.../part-1f6e...-000000.parquet    the chunk's rows

Engines that read the table pass over names with an underscore in front. A run that the table's log does not know is not
finished; one that it knows is what the next run compares the source with.
"""

import datetime
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bundle.errors import ScoringError
from bundle.records import from_plain, to_plain
from bundle.version import version
from scoring.table.place import Place

FORMAT = 1
RUNS = "_fieldmark/runs"
_FOLDER = re.compile(r"([0-9]{6,})-[0-9a-f]{16}")
BEGUN, INVENTORY, LISTING, WORK, DONE = "begun.json", "manifest.json", "listing", "work", "done"


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a run is pinned to. `number` counts runs of the table, `before` is the folder of the one that it follows;
    `day` is the day of scoring, in UTC, and part of the data files' names, as is `token`; `calibration_n` is how many
    calibration scores are behind a p-value."""

    format: int
    version: str
    number: int
    token: str
    before: str | None
    source: str
    bundle_id: str
    network: str
    alpha: float
    calibration_n: int
    day: str
    chunk_rows: int

    def __post_init__(self) -> None:
        datetime.date.fromisoformat(self.day)  # it names a folder of the table; raises ValueError

    @property
    def folder(self) -> str:
        """Where its files are, below the table."""
        return f"{RUNS}/{self.number:06d}-{self.token}"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A whole list: `objects` in the source, `work` rows in each file of work, `gone` of them tombstones; ids from
    `next_id` on are free. `digest` is over all of it."""

    objects: int
    work: tuple[int, ...]
    gone: int
    next_id: int
    digest: str

    @property
    def rows(self) -> int:
        """How many rows the run writes."""
        return sum(self.work)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A scored chunk: its data file below the table, and what is in it.

    `unfetched` are ids to be tried again next time, `failed` the first files without a score and why.
    """

    number: int
    path: str
    bytes: int
    sha256: str
    rows: int
    errors: int
    gone: int
    flagged: int
    unfetched: tuple[int, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


def begin(number: int, before: str | None, pinned: dict[str, Any], chunk_rows: int) -> Begun:
    """A new run; `pinned` are source, bundle_id, network, alpha and calibration_n."""
    return Begun(
        format=FORMAT,
        version=version(),
        number=number,
        token=secrets.token_hex(8),
        before=before,
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
        chunk_rows=chunk_rows,
        **pinned,
    )


def key_of(begun: Begun, inventory: Inventory) -> str:
    """What no other input shares: a digest over the list, the bundle, the network and alpha.

    The run's number is in it, since a source may return to what it was the night before last.
    """
    facts = [inventory.digest, begun.bundle_id, begun.network, repr(begun.alpha), begun.number]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_record(place: Place, name: str, kind: type[Any]) -> Any:
    """A record of a run; None where there is none. Raises ScoringError for one that cannot be understood."""
    try:
        plain = json.loads(place.read(name))
        if kind is Begun and isinstance(plain, dict) and plain.get("format") != FORMAT:
            raise ScoringError(
                f"{place.url} was scored by another version of fieldmark: {plain.get('version')}",
                hint="Use that version, or another table.",
            )
        return from_plain(kind, plain)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as problem:
        raise damaged(place, name, problem) from None


def damaged(place: Place, name: str, problem: object) -> ScoringError:
    """The error of a file of a run that is not what was written."""
    return ScoringError(
        f"{place.url}/{name} is damaged ({problem})", hint="Remove the run's folder, and run the same command again."
    )


def write_record(place: Place, name: str, record: Any) -> None:
    """Write a record of a run, in ASCII, because a name may hold bytes that are not UTF-8."""
    place.write(name, (json.dumps(to_plain(record), indent=1, ensure_ascii=True) + "\n").encode())


def runs_of(place: Place, number: int) -> Iterator[Begun]:
    """The runs of this number that were begun: more than one where two jobs ran at once.

    Raises ScoringError for one that says it is in another folder, which would be read, written and removed for it.
    """
    for name in place.names(RUNS):
        if name.startswith(f"{number:06d}-"):
            begun = read_record(place, f"{RUNS}/{name}/{BEGUN}", Begun)
            if begun is None:
                continue
            if begun.folder != f"{RUNS}/{name}":
                raise damaged(place, f"{RUNS}/{name}/{BEGUN}", "it belongs to another folder")
            yield begun


def run_number(name: str) -> int | None:
    """The number of the run whose folder has this name; None of what is no run's."""
    found = _FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def done_chunks(place: Place, begun: Begun) -> dict[int, Chunk]:
    """The chunks of a run that are scored, by number."""
    names = place.names(f"{begun.folder}/{DONE}")
    found = (read_record(place, f"{begun.folder}/{DONE}/{name}", Chunk) for name in names)
    return {chunk.number: chunk for chunk in found if chunk is not None}


def read_inventory(place: Place, begun: Begun) -> Inventory | None:
    """A run's list where it is whole, else None."""
    found: Inventory | None = read_record(place, f"{begun.folder}/{INVENTORY}", Inventory)
    return found
