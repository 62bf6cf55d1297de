"""The crew of one: chunks are scored in this process, on all its cores."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from scoring.table.chunks import ChunkScorer
from scoring.table.fetching import PAUSES, Reader
from scoring.table.job import Briefing
from scoring.table.runs import Chunk
from serving.client.prediction import Inference


@dataclass(frozen=True, kw_only=True)
class CrewOfOne:
    """Scores chunks one after the other with one inference; `check()` raises when that is no longer what it was."""

    inference: Inference
    check: Callable[[], None] = lambda: None
    pauses: tuple[float, ...] = field(default=PAUSES)

    def score(self, work: Briefing, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        cores = len(os.sched_getaffinity(0))
        decoders = threading.Semaphore(work.asking.workers or cores)
        scorer = ChunkScorer(
            place=work.place,
            begun=work.begun,
            inventory=work.inventory,
            inference=self.inference,
            asking=work.asking,
            reader=Reader(spec=self.inference.manifest.image, pauses=self.pauses, decoders=decoders),
            check=self.check,
            on_failure=work.check_present,
            cores=cores,
        )
        yield from scorer.score(numbers, on_rows)
