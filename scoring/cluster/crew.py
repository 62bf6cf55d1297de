"""The crew of many: chunks are scored by workers of a Ray cluster, each with one session of its own.

A worker that dies is started again by Ray, and its chunk with it; one that dies in the same chunk again and again ends
the job, which then tells the chunk. When the driver dies, its workers end, and the same command goes on with the chunks
that have no record yet. What a chunk is, and why twice is harmless, stands in scoring/table/chunks.py.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bundle.errors import FieldmarkError, ScoringError, first_line
from bundle.version import version
from scoring.cluster.connection import connected, ray_library
from scoring.cluster.worker import Parcel, Worker, leave, names_of
from scoring.table.job import Briefing
from scoring.table.runs import Chunk

DEATHS = 3  # of workers in one chunk before the job ends
AHEAD = 2  # chunks a worker has been given: the next one is there when one is done


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Scores chunks on the Ray cluster at `address`, `local` for one on this machine for as long as the job lasts.

    `threads` are the cores of a worker, `workers` how many there are (default: as many as the cluster has cores for, or
    one for each of its GPUs). `memory` is the bytes of the object store of a local one.
    """

    address: str
    threads: int = 1
    workers: int | None = None
    memory: int = 200_000_000

    def score(self, work: Briefing, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        if not numbers:
            return
        with connected(self.address, self.workers, self.threads, self.memory) as resources:
            count, needs = self._count(resources)
            leave(work.bundle, work.place)
            workers = self._workers(work, min(count, len(numbers)), needs)
            try:
                self._check_versions(workers)
                yield from _scored(workers, numbers, on_rows)
            finally:
                for worker in workers:
                    ray_library().kill(worker)

    def _count(self, resources: dict[str, float]) -> tuple[int, dict[str, float]]:
        """How many workers, and what each needs."""
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        count = self.workers or gpus or cores // self.threads
        if count < 1:
            raise ScoringError(
                f"the cluster at {self.address} has {cores} cores, and a worker needs {self.threads}",
                hint="Pass a smaller --threads, or start more nodes.",
            )
        return count, {"num_cpus": float(self.threads)} | ({"num_gpus": 1.0} if gpus else {})

    def _workers(self, work: Briefing, count: int, needs: dict[str, float]) -> list[Any]:
        parcel = self.parcel(work)
        kind = ray_library().remote(Worker).options(**needs, max_restarts=-1, max_task_retries=DEATHS - 1)
        return [kind.remote(parcel) for _ in range(count)]

    def parcel(self, work: Briefing) -> Parcel:
        """What each worker is given. How many threads of it read follows from its cores."""
        return Parcel(
            place=work.place,
            begun=work.begun,
            inventory=work.inventory,
            asking=replace(work.asking, workers=None),
            threads=self.threads,
            files=names_of(work.bundle),
            folder=None if work.folder is None else work.folder.path,
        )

    def _check_versions(self, workers: Sequence[Any]) -> None:
        """Raise ScoringError where a worker has another version of Fieldmark or Python than this process."""
        ours = (version(), platform.python_version())
        for theirs in _gathered([worker.versions.remote() for worker in workers]):
            if theirs != ours:
                raise ScoringError(
                    f"the cluster at {self.address} has fieldmark {theirs[0]} on Python {theirs[1]}, and here is "
                    f"{ours[0]} on {ours[1]}",
                    hint="Start the job from the image that the cluster runs.",
                )


def _scored(workers: Sequence[Any], numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
    """Every chunk, as soon as it is written; whoever is done gets the next one."""
    ray = ray_library()
    left = iter(numbers)
    given: dict[Any, tuple[Any, int]] = {}  # what Ray promises -> worker, chunk

    def give(worker: Any) -> None:
        number = next(left, None)
        if number is not None:
            given[worker.score.remote(number)] = worker, number

    for _ in range(AHEAD):
        for worker in workers:
            give(worker)
    while given:
        ready, _ = ray.wait(list(given), timeout=1.0)
        on_rows(0)
        for promise in ready:
            worker, number = given.pop(promise)
            (chunk,) = _gathered([promise], f" in chunk {number}")
            give(worker)
            yield chunk


def _gathered(promises: list[Any], where: str = "") -> list[Any]:
    """What workers gave; their own errors as they raised them, and one sentence for what befell the cluster."""
    ray = ray_library()
    try:
        found: list[Any] = ray.get(promises)
    except ray.exceptions.RayTaskError as problem:
        if isinstance(problem.cause, FieldmarkError):
            raise problem.cause from None
        raise ScoringError(
            f"a worker failed{where} ({type(problem.cause).__name__}: {first_line(problem.cause)[:300]})",
            hint="What was finished is safe; run the same command again to continue.",
        ) from None
    except ray.exceptions.RayError as problem:
        if getattr(problem, "actor_init_failed", False):  # no line of ours ran: its node has another package, or none
            raise ScoringError(
                f"a worker cannot be started ({str(problem).strip().splitlines()[-1][:300]})",
                hint="Start the job from the image that the cluster runs.",
            ) from None
        raise ScoringError(
            f"the cluster lost a worker{where} more often than {DEATHS} times, or is gone ({type(problem).__name__})",
            hint="What was finished is safe; run the same command again to continue, with less --batch or fewer "
            "workers a node if memory ran out.",
        ) from None
    return found
