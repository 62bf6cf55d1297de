"""From files to rows: decoding runs ahead in threads, inference runs in the calling thread.

Pillow releases the GIL while it decodes, so a job of one process keeps all its cores busy. A batch never reaches over
the end of a piece of work, so the work alone decides which images are inferred together, not who does it, or when.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bundle.errors import EndpointError, ImageError, ImageUnread, OptionError
from bundle.false_alarms import beyond_promise
from bundle.image import ImageSpec
from bundle.manifest import PER_CLASS, Manifest
from scoring.columns import Answer
from scoring.sources import SourceFile
from serving.client.prediction import Inference, Outputs, check_alpha, predictions

MAX_READERS = 256  # threads
MAX_AHEAD_BYTES = 512 * 1024 * 1024  # of decoded images that wait for inference

Pixels = npt.NDArray[np.uint8]
Read = Callable[[SourceFile], "Pixels | str"]
Row = tuple[SourceFile, Answer]
Work = TypeVar("Work")


class Unfetched(str):
    """Why the bytes of a file or an object did not come: the next run of the job tries it again, though it has not
    changed."""


def read_file(spec: ImageSpec, file: SourceFile) -> "Pixels | str":
    """The image in a file of this machine, or the sentence why there is none."""
    try:
        return spec.read(Path(file.location))
    except ImageUnread as problem:
        return Unfetched(problem)
    except ImageError as problem:
        return str(problem)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How images are asked about. `alpha` replaces the bundle's; `batch` is images a call; `workers` is threads that
    decode (default: one a core); `pauses` are the seconds before a call is repeated that an endpoint did not answer."""

    network: str
    alpha: float | None = None
    batch: int = 64
    workers: int | None = None
    pauses: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise OptionError(f"--batch {self.batch} is not at least 1")
        if self.workers is not None and not 1 <= self.workers <= MAX_READERS:
            raise OptionError(f"--workers {self.workers} is not between 1 and {MAX_READERS}")

    def check(self, manifest: Manifest) -> None:
        """Raise OptionError where the bundle has no such network, or no such alpha."""
        if self.network not in manifest.networks:
            have = ", ".join(manifest.networks)
            raise OptionError(f"the bundle carries no network {self.network!r}", hint=f"It carries: {have}.")
        check_alpha(manifest, self.network, self.alpha)

    def alarming(self, flagged: int, rows: int, manifest: Manifest) -> str | None:
        """A sentence where more of `rows` were flagged than clean images explain; None of p-values per class, which
        promise each class its own.
        """
        detector = manifest.networks[self.network].detector
        if detector.calibration == PER_CLASS:
            return None
        alpha = detector.alpha if self.alpha is None else self.alpha
        return beyond_promise(flagged, rows, detector.calibration_n, alpha)


class _Item(NamedTuple):
    """A file on its way, and its image or the sentence why there is none; no file where a piece has none."""

    piece: int
    work: Any
    file: SourceFile | None
    image: "Future[Pixels | str] | None"


class Answers(Generic[Work]):
    """The rows of pieces of work, one after the other.

    `read` gives a file's image or the sentence why there is none; `on_rows(count)` is told how many rows of the piece
    are there, `on_failure()` that a file could not be read, before it becomes a row: both may raise.
    """

    def __init__(
        self,
        inference: Inference,
        asking: Asking,
        read: Read,
        *,
        on_rows: Callable[[int], None] = lambda count: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.inference, self.asking, self.read = inference, asking, read
        self.on_rows, self.on_failure = on_rows, on_failure

    def of(self, pieces: Iterable[tuple[Work, Sequence[SourceFile]]]) -> Iterator[tuple[Work, list[Row]]]:
        """Each piece of work and the rows of its files, in their order."""
        workers = self.asking.workers or len(os.sched_getaffinity(0))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        try:
            decoded = self._decoded(pieces, pool, workers)
            for (_, work), items in itertools.groupby(decoded, key=lambda item: (item.piece, item.work)):
                yield work, self._rows(items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decoded(
        self, pieces: Iterable[tuple[Work, Sequence[SourceFile]]], pool: ThreadPoolExecutor, workers: int
    ) -> Iterator[_Item]:
        """The files, each with its image on the way; a bounded number of them is ahead of the caller."""
        spec = self.inference.manifest.image
        room = MAX_AHEAD_BYTES // (spec.height * spec.width * 3)
        limit = max(workers, min(2 * self.asking.batch, room))
        ahead: deque[_Item] = deque()
        for number, (work, files) in enumerate(pieces):
            todo: Sequence[SourceFile | None] = files or (None,)  # a piece without files is a piece still
            for file in todo:
                image = None if file is None else pool.submit(self.read, file)
                ahead.append(_Item(number, work, file, image))
                if len(ahead) > limit:
                    yield ahead.popleft()
        while ahead:  # popped, so that an image is freed as soon as it is used
            yield ahead.popleft()

    def _rows(self, items: Iterable[_Item]) -> list[Row]:
        """One piece's rows, in order."""
        rows: list[Row] = []
        waiting: dict[int, Pixels] = {}  # row -> image, until a batch is full
        for _, _, file, image in items:
            if file is None or image is None:
                continue
            result = image.result()
            if isinstance(result, str):
                self.on_failure()
                rows.append((file, result))
            else:
                waiting[len(rows)] = result
                rows.append((file, ""))
            if len(waiting) == self.asking.batch:
                self._fill(rows, waiting)
        self._fill(rows, waiting)
        return rows

    def _fill(self, rows: list[Row], waiting: dict[int, Pixels]) -> None:
        """Run the images that wait, and put the answers into their rows."""
        if waiting:
            network, alpha = self.asking.network, self.asking.alpha
            outputs = self._infer(np.stack(list(waiting.values())))
            answers = predictions(outputs, self.inference.manifest, network, alpha=alpha)
            for row, answer in zip(waiting, answers, strict=True):
                rows[row] = (rows[row][0], answer)
            waiting.clear()
        self.on_rows(len(rows))

    def _infer(self, images: Pixels) -> Outputs:
        """One call. A full queue or a restarting server passes; a night's job should not end with it."""
        for pause in self.asking.pauses:
            try:
                return self.inference.infer(images, self.asking.network)
            except EndpointError:
                time.sleep(pause)
        return self.inference.infer(images, self.asking.network)
