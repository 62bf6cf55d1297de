"""`fieldmark score`: what the analyst sees of a scoring job."""

import json as jsonlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bundle import tensors
from bundle.console import readable, say
from bundle.errors import FieldmarkError, ScoringError
from bundle.folder import Bundle
from bundle.formats import passed_over
from bundle.progress import Work

if TYPE_CHECKING:
    from scoring.local.score import Summary
    from serving.prediction import Inference

OnProgress = Callable[[int, int], None]
SOME_FAILED = 4  # 1 to 3 are errors: see bundle/errors.py


def score(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images (recursive), or a text file with a path a line and nothing else: no comments, no "
            "quotes, no URLs; a relative path starts at the file's own folder.",
        ),
    ],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle to score with.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the Parquet shards.")],
    network: Annotated[
        str | None,
        typer.Option("--network", help="full or attention; else the one that the bundle names.", show_default=False),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="HOST:PORT", help="Ask this Triton instead of ONNX Runtime in this process."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images a call.")] = 64,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", help="Files a shard; a stop costs at most one shard.")
    ] = 4096,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="False-positive rate of is_adversarial, instead of the bundle's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Threads that decode images. Default: one a core.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away the scores in --out and begin anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
) -> None:
    """Score a folder or a list of images into Parquet shards. Run the same command again after a stop: it continues;
    after the end: it scores what is new or has changed, and drops the rows of what is gone.

    Ends with 4 when some files could not be scored, with 1 when none could.
    """
    from scoring.local.score import AGAIN, ScoreOptions, score_source

    options = ScoreOptions(
        network=network or tensors.FULL,
        alpha=alpha,
        batch=batch,
        shard_rows=shard_rows,
        workers=workers,
        restart=restart,
    )
    try:
        opened = Bundle.open(bundle)
        if network is None:
            options = replace(options, network=opened.manifest.main_network)
        inference = open_inference(opened, url)
        with _progress(source) as show, _stopping(show) as on_progress:
            summary = score_source(
                source, inference, out, options, on_progress=on_progress, check=lambda: check_served(opened, url)
            )
    except KeyboardInterrupt as stop:
        say(Console(stderr=True), f"stopped; {_safe(out)}{AGAIN}.")
        raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None
    if json:
        sys.stdout.write(jsonlib.dumps(_record(summary)) + "\n")
    else:
        _show(summary)
    if summary.errors:
        raise typer.Exit(1 if summary.errors == summary.rows else SOME_FAILED)


def open_inference(bundle: Bundle, url: str | None) -> "Inference":
    """ONNX Runtime in this process, or the Triton at `url` when it serves exactly this bundle."""
    if url is None:
        from serving.local import LocalInference

        return LocalInference(bundle)
    from serving.client import TritonInference

    return TritonInference.connect(url, expect_bundle=bundle.bundle_id)


def check_served(bundle: Bundle, url: str | None) -> None:
    """Raise EndpointError when `url` serves another bundle by now: a gRPC channel reconnects to whatever is there."""
    if url is not None:
        from serving.client import TritonInference

        TritonInference.connect(url, expect_bundle=bundle.bundle_id).close()


@contextmanager
def _stopping(on_progress: OnProgress) -> Iterator[OnProgress]:
    """Let Ctrl-C and SIGTERM stop the job between two batches, never inside a write; a second one stops it at once."""
    caught: list[int] = []

    def remember(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt(number)
        caught.append(number)

    def stop_or_go_on(done: int, scored: int) -> None:
        if caught:
            raise KeyboardInterrupt(caught[0])
        on_progress(done, scored)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_or_go_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _progress(source: Path) -> Iterator[OnProgress]:
    """Shown on stderr. How many files there are a second walk over the source counts, beside the first."""
    with Work("scoring", rated=True) as work:
        stop = threading.Event()
        threading.Thread(target=_count, args=(source, work, stop), daemon=True).start()
        try:
            yield work.at
        finally:
            stop.set()


def _count(source: Path, work: Work, stop: threading.Event) -> None:
    from scoring.sources import Source

    total = 0
    try:
        for _ in Source.open(source).files():
            total += 1
            if stop.is_set():
                return
    except (FieldmarkError, OSError):  # the job itself meets it and reports it
        return
    work.total = total


def _show(summary: "Summary") -> None:
    console = Console()
    ok = summary.rows - summary.errors
    if not summary.scored:
        console.print("This job was complete already; nothing new or changed was left to score.")
    table = Table("files", "ok", "errors", "flagged", "images/s", "seconds", "shards")
    table.add_row(
        f"{summary.rows:,}",
        f"{ok:,}",
        f"{summary.errors:,}",
        f"{summary.flagged / ok:.1%}" if ok else "-",
        f"{summary.images_per_second:,.1f}" if summary.scored else "-",
        f"{summary.seconds:,.1f}",
        f"{summary.shards:,}",
    )
    console.print(table)
    if summary.scored and (kept := summary.rows - summary.scored):
        say(console, f"{summary.scored:,} scored now, {kept:,} as they were")
    if words := passed_over(summary.passed_over):
        say(console, words)
    say(console, f"scores: {readable(summary.out)}")
    if summary.failed_list is None:
        return
    errors = Console(stderr=True)
    for _, sentence in summary.failed:
        say(errors, f"error: {sentence}")
    more = f" and {summary.errors - len(summary.failed):,} more" if summary.errors > len(summary.failed) else ""
    say(errors, f"these{more} could not be scored; all are listed in {readable(summary.failed_list)}")


def _record(summary: "Summary") -> dict[str, Any]:
    """A summary as JSON's own types."""
    failed = [{"file": readable(path), "error": sentence} for path, sentence in summary.failed]
    places = {"out": str(summary.out), "failed_list": str(summary.failed_list) if summary.failed_list else None}
    return {**asdict(summary), "failed": failed, **places}


def _safe(out: Path) -> str:
    """What an interrupted job has finished, as a half sentence."""
    from scoring.local.jobs import read_state

    try:
        return read_state(out).safe_in(out) + "; "
    except (ScoringError, OSError):
        return ""
