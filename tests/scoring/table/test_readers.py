"""How many threads read: a worker of a cluster takes its cores, not its node's; objects of a store are waited for."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bundle import Bundle
from scoring.answers import Asking, Pixels
from scoring.cluster.crew import Cluster
from scoring.cluster.worker import Worker, leave
from scoring.sources import SourceFile
from scoring.table.chunks import FETCHING, ChunkScorer
from scoring.table.fetching import Reader
from scoring.table.job import TableOptions, Work, score_into_table
from scoring.table.runs import Chunk
from serving.client.local import LocalInference


@dataclass
class InThisProcess:
    """A worker as a cluster makes it, without the cluster; `work` is what it was given."""

    threads: int
    work: list[Work] = field(default_factory=list)

    def score(self, work: Work, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        self.work.append(work)
        leave(work.bundle, work.place)
        worker = Worker(Cluster(address="local", threads=self.threads).parcel(work))
        for number in numbers:
            yield worker.score(number)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were read at a time, whenever one was: each waits a moment for others."""
    now, seen, lock, call = 0, [], threading.Lock(), Reader.__call__
    alone = threading.Event()

    def counted(self: Reader, file: SourceFile) -> Pixels | str:
        nonlocal now
        with lock:
            now += 1
            seen.append(now)
        alone.wait(0.02)
        try:
            return call(self, file)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(Reader, "__call__", counted)
    return seen


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_reads_with_its_own_cores(
    photos: Path, toy_bundle: Bundle, tmp_path: Path, reading: list[int], threads: int
) -> None:
    options = TableOptions(asking=Asking(network="full", batch=4, workers=7), chunk_rows=30)
    score_into_table(str(photos), toy_bundle, str(tmp_path / "table"), options, InThisProcess(threads))
    assert max(reading) == threads, "--workers says how many of them there are"


def test_objects_of_a_store_are_waited_for_by_more(
    photos: Path, toy_bundle: Bundle, inference: LocalInference, tmp_path: Path, reading: list[int]
) -> None:
    crew = InThisProcess(1)
    options = TableOptions(asking=Asking(network="full", batch=4), chunk_rows=30)
    score_into_table(str(photos), toy_bundle, str(tmp_path / "table"), options, crew)
    reading.clear()
    scorer = ChunkScorer(
        place=crew.work[0].place,
        begun=replace(crew.work[0].begun, source="s3://archive"),
        inventory=crew.work[0].inventory,
        inference=inference,
        asking=options.asking,
        reader=Reader(spec=inference.manifest.image),
        cores=1,
    )
    assert len(list(scorer.score([0]))) == 1
    assert max(reading) == FETCHING
