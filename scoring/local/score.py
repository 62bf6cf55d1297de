"""Score every image of a source, each exactly once, however often the job is stopped and started again.

Rows go to disk a shard at a time. A shard that is not finished is scored again, so a stop costs at most one shard of
work. A finished job that is started again scores what is new or has changed; the rows of files that are gone go.
"""

import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundle.errors import EndpointError, OptionError
from bundle.image import ImageSpec
from scoring.answers import Answers, Asking, Pixels, Row, Unfetched, read_file
from scoring.local.jobs import Job
from scoring.local.shards import FAILED, ScoreFolder, Taken, failures
from scoring.local.stretches import Stretch, stretches
from scoring.sources import Source, SourceFile
from serving.client.prediction import Inference

MAX_SHARD_ROWS = 1_000_000  # a shard's rows are held in memory
NAMED = 10  # failed files in a summary; their list has all
AGAIN = "run the same command again to continue"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A shard to be written: its stretch, and what of it need not be scored."""

    stretch: Stretch
    taken: Taken


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How to score. Nothing but `network`, `alpha` and `shard_rows` changes what is written.

    `alpha` replaces the bundle's false-positive rate of `is_adversarial`; `batch` is images a call; `shard_rows` is
    files a shard; `workers` is decoding threads (default: one a core); `restart` throws away what `out` holds; `pauses`
    are the seconds to wait before a call is repeated that the endpoint did not answer.
    """

    network: str = "full"
    alpha: float | None = None
    batch: int = 64
    shard_rows: int = 4096
    workers: int | None = None
    restart: bool = False
    pauses: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not 1 <= self.shard_rows <= MAX_SHARD_ROWS:
            raise OptionError(f"--shard-rows {self.shard_rows} is not between 1 and {MAX_SHARD_ROWS:,}")
        _ = self.asking  # which looks at the others

    @property
    def asking(self) -> Asking:
        """The part of it that concerns images, not shards."""
        return Asking(
            network=self.network, alpha=self.alpha, batch=self.batch, workers=self.workers, pauses=self.pauses
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished job holds, and what this run did of it: `scored` files in `seconds`.

    `failed` are the first files without a score and the sentences why, `failed_list` names all of them, and
    `passed_over` counts those in the source that are no images by their suffix.
    """

    rows: int
    errors: int
    flagged: int
    shards: int
    scored: int
    seconds: float
    images_per_second: float
    out: Path
    failed: tuple[tuple[str, str], ...] = ()
    failed_list: Path | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)


def score_source(
    path: Path,
    inference: Inference,
    out: Path,
    options: ScoreOptions,
    *,
    on_progress: OnProgress = lambda done, scored: None,
    check: Callable[[], None] = lambda: None,
) -> Summary:
    """Score all images of `path` into `out`, or what is missing there.

    `on_progress(done, scored)` is called with the files done so far, and those of them that this run has scored. It is
    never called during a write, so it may raise KeyboardInterrupt to stop the job cleanly.
    `check()` is called before each shard is written and raises EndpointError when `inference` is no longer what it was.
    An unreadable image is a row with status `error`; whatever else goes wrong raises, and what is finished stays.
    """
    options.asking.check(inference.manifest)
    source = Source.open(path)
    source.check_any()
    alpha = options.alpha
    job = Job(
        source=os.fspath(path),
        source_at=os.path.abspath(path),
        bundle_id=inference.bundle_id,
        network=options.network,
        alpha=inference.manifest.networks[options.network].detector.alpha if alpha is None else alpha,
        shard_rows=options.shard_rows,
    )
    begun = time.perf_counter()
    with ScoreFolder.open(out, job, restart=options.restart) as folder:
        run = _Run(source, inference, folder, options, on_progress)
        run.run(check)
        if not folder.state.complete:
            folder.finish(source)
        state = folder.state
        failed = tuple(itertools.islice(failures(out), NAMED)) if state.errors else ()
    scored, seconds = run.written, time.perf_counter() - begun
    return Summary(
        rows=state.total("rows"),
        errors=state.total("errors"),
        flagged=state.total("flagged"),
        shards=len(state.shards),
        scored=scored,
        seconds=seconds,
        images_per_second=scored / seconds,
        out=out,
        failed=failed,
        failed_list=out / FAILED if failed else None,
        passed_over=dict(run.passed),
    )


class _Run:
    """One pass over the source: `skipped` counts files whose rows are there, `written` those of this run's rows, and
    `passed` what is no image by its suffix."""

    def __init__(
        self,
        source: Source,
        inference: Inference,
        folder: ScoreFolder,
        options: ScoreOptions,
        on_progress: OnProgress,
    ) -> None:
        self.source, self.inference, self.folder, self.options = source, inference, folder, options
        self.on_progress = on_progress
        self.skipped = self.written = 0
        self.passed: Counter[str] = Counter()

    def run(self, check: Callable[[], None]) -> None:
        """Score every file that has no row yet, or has changed since, and let the rows of those go that are gone."""
        answers: Answers[_Plan] = Answers(
            self.inference,
            self.options.asking,
            functools.partial(_read, self.inference.manifest.image),
            on_rows=self._report,
            on_failure=self.source.check_present,
        )
        try:
            for plan, rows in answers.of(self._plans()):
                check()
                self.folder.write(*_forgotten(plan, rows))
                self.written += len(rows)
        except EndpointError as problem:
            raise EndpointError(problem.what, hint=f"{self.folder.state.safe_in(self.folder.path)}; {AGAIN}.") from None

    def _plans(self) -> Iterator[tuple[_Plan, list[SourceFile]]]:
        """What is to be written, and its files to score; a shard whose files are as they were is verified and stays."""
        files = self.source.files(self.passed)
        for stretch in stretches(files, self.folder.old, self.options.shard_rows):
            stretch = replace(stretch, files=tuple(file.looked_at() for file in stretch.files))
            if self.folder.is_whole(stretch):
                self.skipped += len(stretch.files)
            else:
                taken = self.folder.still_true(stretch)
                self.skipped += len(taken.places)
                there = set(taken.places)
                left = [file for place, file in enumerate(stretch.files) if place not in there]
                yield _Plan(stretch, taken), left
            self._report(0)

    def _report(self, unwritten: int) -> None:
        scored = self.written + unwritten
        self.on_progress(self.skipped + scored, scored)


def _read(spec: ImageSpec, file: SourceFile) -> "Pixels | str":
    """Decode one file; an unreadable one gives its sentence."""
    return file.problem or read_file(spec, file)


def _forgotten(plan: _Plan, rows: Sequence[Row]) -> tuple[Stretch, Taken, list[Row]]:
    """What to write, without size and time of the files whose bytes did not come: so the next run tries them again."""
    unread = {file for file, answer in rows if isinstance(answer, Unfetched)}
    files = (file.not_looked_at() if file in unread else file for file in plan.stretch.files)
    left = [(file.not_looked_at() if file in unread else file, answer) for file, answer in rows]
    return replace(plan.stretch, files=tuple(files)), plan.taken, left
