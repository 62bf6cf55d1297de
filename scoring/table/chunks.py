"""One chunk of a run: its rows become one data file, whose name follows from the run and the chunk's number alone.

So a chunk that is scored twice, because a worker died between its file and its record, or because two jobs run, is the
same file once more. It becomes part of the table with the run's one commit, or never.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bundle.places import scheme_of
from scoring.answers import MAX_READERS, Answers, Asking, Read, Row, Unfetched
from scoring.columns import ERROR
from scoring.sources import SourceFile
from scoring.table.data_file import data_file, rows_of
from scoring.table.place import Place
from scoring.table.runs import DONE, Begun, Chunk, Inventory, write_record
from scoring.table.spans import Task, read_chunk
from serving.client.prediction import Inference

NAMED = 10  # files without a score in a chunk's record
FETCHING = 8  # threads a core that read from stores: they wait most of their time, and then for their turn to decode


@dataclass(frozen=True, kw_only=True)
class ChunkScorer:
    """Scores chunks of a run with one inference, wherever it is; `cores` are those that it may use."""

    place: Place
    begun: Begun
    inventory: Inventory
    inference: Inference
    asking: Asking
    reader: Read
    check: Callable[[], None] = lambda: None  # called before a chunk is written, and may raise
    on_failure: Callable[[], None] = lambda: None  # called when a file gives no image, and may raise
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def score(self, numbers: Iterable[int], on_rows: Callable[[int], None] = lambda count: None) -> Iterator[Chunk]:
        """Score chunks, one after the other, and write each; decoding runs ahead over their ends.

        `on_rows(count)` is told of the rows of the chunk that are there; it may raise.
        """
        pieces = self._pieces(numbers)
        first = tuple(itertools.islice(pieces, 1))
        asking = replace(self.asking, workers=self.asking.workers or self._readers(first))
        answers: Answers[_Piece] = Answers(
            self.inference, asking, self.reader, on_rows=on_rows, on_failure=self.on_failure
        )
        for piece, rows in answers.of(itertools.chain(first, pieces)):
            self.check()
            yield self._write(piece.number, piece.tasks, rows)

    def _readers(self, first: Sequence[tuple["_Piece", Sequence[SourceFile]]]) -> int:
        """How many threads read: from this machine no more than decode, which would only be in each other's way."""
        stores = any(scheme_of(file.location) for _, files in first for file in files)
        return min(self.cores * FETCHING, MAX_READERS) if stores else self.cores

    def _pieces(self, numbers: Iterable[int]) -> Iterator[tuple["_Piece", Sequence[SourceFile]]]:
        for number in numbers:
            tasks = read_chunk(self.place, self.begun, self.inventory, number)
            yield _Piece(number, tasks), [task.file for task in tasks if not task.gone]

    def _write(self, number: int, tasks: Sequence[Task], rows: Sequence[Row]) -> Chunk:
        begun, table = self.begun, rows_of(self.begun, tasks, rows)
        path = f"day={begun.day}/bundle_id={begun.bundle_id}/part-{begun.token}-{number:06d}.parquet"
        data = data_file(table)
        self.place.write(path, data)
        failed = [(file.path, answer) for file, answer in rows if isinstance(answer, str)]
        chunk = Chunk(
            number=number,
            path=path,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            rows=table.num_rows,
            errors=table["status"].to_pylist().count(ERROR),
            gone=len(tasks) - len(rows),
            flagged=table["is_adversarial"].to_pylist().count(True),
            unfetched=tuple(file.id or 0 for file, answer in rows if isinstance(answer, Unfetched)),
            failed=tuple((path, str(sentence)) for path, sentence in failed[:NAMED]),
        )
        write_record(self.place, f"{begun.folder}/{DONE}/{number:06d}.json", chunk)
        return chunk


@dataclass(frozen=True, eq=False)
class _Piece:
    number: int
    tasks: Sequence[Task]
