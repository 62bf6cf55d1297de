"""Score a source into a Delta table: list, score what is new or has changed, commit, each once, whoever dies meanwhile.

    list      the source is written down beside the table, a span at a time   scoring/table/planning.py
    score     chunks of the list become data files, here or on many machines  scoring/table/chunks.py, scoring/cluster/
    commit    one commit makes all of the run's data files part of the table  scoring/table/delta.py

Stopped at any point, the same command goes on there: a list behind its last span, chunks that have a record are left
alone, and a run whose commit landed is over.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bundle.errors import OptionError, ScoringError
from bundle.folder import Bundle
from scoring.answers import Asking
from scoring.columns import arrow
from scoring.sources import Source
from scoring.table.current import last_begun
from scoring.table.data_file import table_schema
from scoring.table.delta import ScoreTable
from scoring.table.failures import FAILED, list_failed
from scoring.table.lease import held
from scoring.table.objects import check_any, open_objects
from scoring.table.place import Place
from scoring.table.planning import plan
from scoring.table.runs import (
    BEGUN,
    RUNS,
    Begun,
    Chunk,
    Inventory,
    begin,
    done_chunks,
    key_of,
    read_inventory,
    run_number,
    runs_of,
    write_record,
)

MAX_CHUNK_ROWS = 1_000_000  # a chunk's rows are held in memory
NAMED = 10  # failed files in a summary; their list has all

OnProgress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How to score into a table. `chunk_rows` is rows a data file; `another_bundle` lets a bundle score everything
    again in a table that another one has scored."""

    asking: Asking
    chunk_rows: int = 4096
    another_bundle: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_rows <= MAX_CHUNK_ROWS:
            raise OptionError(f"--shard-rows {self.chunk_rows} is not between 1 and {MAX_CHUNK_ROWS:,}")


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """What whoever scores a run's chunks must know; `folder` is the source, where it is a folder."""

    place: Place
    begun: Begun
    inventory: Inventory
    bundle: Bundle
    asking: Asking
    folder: Source | None

    def check_present(self) -> None:
        """Raise ScoringError when the source's folder has gone away."""
        if self.folder is not None:
            self.folder.check_present()


class Crew(Protocol):
    """Whoever scores chunks: this process, or a cluster."""

    def score(self, work: Briefing, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        """Score chunks in any order; each is written when it is given. `on_rows` is told of rows meanwhile."""
        ...


@dataclass(frozen=True, kw_only=True)
class TableSummary:
    """What this command did: `objects` are in the source, `rows` were written by `runs` commits, in `seconds`.

    `failed` are the first files that it could not score and why. `unscored` files have no score in the table, whichever
    run tried them, and `failed_list` names all of them.
    """

    table: str
    runs: int
    objects: int
    rows: int = 0
    errors: int = 0
    gone: int = 0
    flagged: int = 0
    chunks: int = 0
    scored: int = 0
    seconds: float
    images_per_second: float
    failed: tuple[tuple[str, str], ...] = ()
    unscored: int = 0
    failed_list: str | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)


def score_into_table(
    source: str,
    bundle: Bundle,
    table: str,
    options: TableOptions,
    crew: Crew,
    *,
    on_progress: OnProgress = lambda done, scored, total: None,
    on_listed: Callable[[int], None] = lambda count: None,
) -> TableSummary:
    """Score all of `source` that is new or has changed into `table`.

    `on_progress(done, scored, total)` is called with the rows of the run that are there, the files that this command
    has scored, and the rows of the run; `on_listed(count)` while the source is listed. Both may raise KeyboardInterrupt
    to stop the job cleanly.
    """
    return _TableJob(source, bundle, table, options, crew, on_progress, on_listed).run()


class _TableJob:
    def __init__(
        self,
        source: str,
        bundle: Bundle,
        table: str,
        options: TableOptions,
        crew: Crew,
        on_progress: OnProgress,
        on_listed: Callable[[int], None],
    ) -> None:
        self.bundle, self.options, self.crew = bundle, options, crew
        self.on_progress, self.on_listed = on_progress, on_listed
        self.passed: Counter[str] = Counter()
        self.chunks: list[Chunk] = []
        self.runs = self.scored = 0
        arrow()
        self.objects = open_objects(source)
        self.place = Place(table)
        self.table = ScoreTable(self.place)
        asking = options.asking
        asking.check(bundle.manifest)
        detector = bundle.manifest.networks[asking.network].detector
        self.pinned = {
            "source": self.objects.name,
            "bundle_id": bundle.bundle_id,
            "network": asking.network,
            "alpha": detector.alpha if asking.alpha is None else asking.alpha,
            "calibration_n": detector.calibration_n,
        }

    def run(self) -> TableSummary:
        """Look at everything before anything is written; then finish what was begun, and do what is new."""
        begun = time.perf_counter()
        self.before()
        check_any(self.objects)
        with held(self.place):
            while not (last := self.one()).fresh:
                continue
        seconds = time.perf_counter() - begun
        total = Counter[str]()
        for chunk in self.chunks:
            total.update({name: getattr(chunk, name) for name in ("rows", "errors", "gone", "flagged")})
        failed = tuple(itertools.islice((each for chunk in self.chunks for each in chunk.failed), NAMED))
        unscored = list_failed(self.table, self.objects)  # whatever a run before has left, or not come to
        return TableSummary(
            table=self.place.url,
            runs=self.runs,
            objects=last.objects,
            **total,
            chunks=len(self.chunks),
            scored=self.scored,
            seconds=seconds,
            images_per_second=self.scored / seconds,
            failed=failed,
            unscored=unscored,
            failed_list=f"{self.place.url}/{FAILED}" if unscored else None,
            passed_over=dict(self.passed),
        )

    def before(self) -> Begun | None:
        """The last run that the table knows; raises ScoringError for a table of another job."""
        if not self.table.exists():
            return None
        self.table.check_schema(table_schema(begin(1, None, self.pinned, 1)))
        begun = last_begun(self.table)
        if begun is not None:
            self._check_pinned(begun)
        return begun

    def _check_pinned(self, begun: Begun) -> None:
        words = {"source": "SOURCE", "network": "network", "alpha": "alpha"}
        for name, word in words.items():
            old, new = getattr(begun, name), self.pinned[name]
            if old != new:
                raise ScoringError(
                    f"{self.place.url} holds scores of another job: its {word} is {old!r}, and this run has {new!r}",
                    hint="Use another table.",
                )
        if begun.bundle_id != self.bundle.bundle_id and not self.options.another_bundle:
            raise ScoringError(
                f"{self.place.url} was scored with bundle {begun.bundle_id[:12]}, and this one is "
                f"{self.bundle.bundle_id[:12]}",
                hint="Pass --another-bundle to score everything again with it, in partitions of its own.",
            )

    def one(self) -> "_Done":
        """Finish the run that was begun, or make the next one; not `fresh` where it had been listed before."""
        before = self.before()
        begun, fresh = self._begun(before)
        inventory = None if fresh else read_inventory(self.place, begun)
        fresh = inventory is None  # a list that was not whole is of now
        if inventory is None:
            inventory = self._planned(before, begun)
        if not inventory.rows:
            self.place.remove(begun.folder)
            return _Done(fresh, inventory.objects)
        done = self._scored(begun, inventory)
        self.table.make_ready(table_schema(begun), f"Scores of {begun.source} by 'fieldmark score'.")
        facts = {
            "source": begun.source,
            "bundle_id": begun.bundle_id,
            "network": begun.network,
            "alpha": repr(begun.alpha),
            "day": begun.day,
            "version": begun.version,
        }
        self.table.commit(begun.number, key_of(begun, inventory), done, facts)
        self.chunks += done
        self.runs += 1
        for name in self.place.names(RUNS):  # what came before is not looked at any more
            if (number := run_number(name)) is not None and number < begun.number:
                self.place.remove(f"{RUNS}/{name}")
        return _Done(fresh, inventory.objects)

    def _begun(self, before: Begun | None) -> tuple[Begun, bool]:
        """The run to do, and whether it is a new one. One that was begun for another job is thrown away."""
        number = before.number + 1 if before else 1
        for begun in runs_of(self.place, number):
            wanted = {**self.pinned, "before": before.folder if before else None, "chunk_rows": self.options.chunk_rows}
            if all(getattr(begun, name) == value for name, value in wanted.items()):
                return begun, False
            self.place.remove(begun.folder)
        begun = begin(number, before.folder if before else None, self.pinned, self.options.chunk_rows)
        write_record(self.place, f"{begun.folder}/{BEGUN}", begun)
        return begun, True

    def _planned(self, before: Begun | None, begun: Begun) -> Inventory:
        everything = before is not None and before.bundle_id != begun.bundle_id
        unfetched, next_id = set[int](), 0
        if before is not None:
            known = read_inventory(self.place, before)
            next_id = known.next_id if known else 0
            for chunk in done_chunks(self.place, before).values():
                unfetched.update(chunk.unfetched)
        return plan(
            self.place,
            begun,
            self.objects,
            again=lambda number: everything or number in unfetched,
            next_id=next_id,
            passed=self.passed,
            on_listed=self.on_listed,
        )

    def _scored(self, begun: Begun, inventory: Inventory) -> list[Chunk]:
        """All chunks of a run, in order; those without a record are scored."""
        done = done_chunks(self.place, begun)
        left = [number for number in range(-(-inventory.rows // begun.chunk_rows)) if number not in done]

        def on_rows(count: int) -> None:
            there = sum(chunk.rows for chunk in done.values())
            self.on_progress(there + count, self.scored + count, inventory.rows)

        on_rows(0)
        work = Briefing(
            place=self.place,
            begun=begun,
            inventory=inventory,
            bundle=self.bundle,
            asking=self.options.asking,
            folder=self.objects.folder,
        )
        for chunk in self.crew.score(work, left, on_rows):
            done[chunk.number] = chunk
            self.scored += chunk.rows - chunk.gone
            on_rows(0)
        return [done[number] for number in sorted(done)]


@dataclass(frozen=True)
class _Done:
    """A run that is over: `fresh` says that its list is of this command."""

    fresh: bool
    objects: int
