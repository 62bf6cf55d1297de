"""What the analyst sees of a job that writes shards."""

import json as jsonlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bundle.console import advise, lay_out, readable, say
from bundle.errors import FieldmarkError, ScoringError
from bundle.folder import Bundle
from bundle.formats import passed_over
from bundle.progress import Work
from scoring.local.jobs import read_state
from scoring.local.score import ScoreOptions, Summary, score_source
from scoring.sources import Source
from scoring.stopping import stopping
from serving.client.prediction import Inference


def score_shards(
    source: Path,
    bundle: Bundle,
    inference: Inference,
    out: Path,
    options: ScoreOptions,
    check: Callable[[], None],
    json: bool,
) -> tuple[int, int]:
    """Score a folder or a list into shards and tell what was done; gives the number of rows, and of errors."""
    with _progress(source) as work, stopping() as stop_or_go_on:

        def on_progress(done: int, scored: int) -> None:
            stop_or_go_on()
            work.at(done, scored)

        summary = score_source(source, inference, out, options, on_progress=on_progress, check=check)
    if json:
        sys.stdout.write(jsonlib.dumps(_record(summary)) + "\n")
    else:
        _show(summary, bundle, options)
    return summary.rows, summary.errors


@contextmanager
def _progress(source: Path) -> Iterator[Work]:
    """Shown on stderr. How many files there are a second walk over the source counts, beside the first."""
    with Work("scoring", rated=True) as work:
        stop = threading.Event()
        threading.Thread(target=_count, args=(source, work, stop), daemon=True).start()
        try:
            yield work
        finally:
            stop.set()


def _count(source: Path, work: Work, stop: threading.Event) -> None:
    total = 0
    try:
        for _ in Source.open(source).files():
            total += 1
            if stop.is_set():
                return
    except (FieldmarkError, OSError):  # the job itself meets it and reports it
        return
    work.total = total


def _show(summary: Summary, bundle: Bundle, options: ScoreOptions) -> None:
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
    lay_out(console, table)
    if summary.scored and (kept := summary.rows - summary.scored):
        say(console, f"{summary.scored:,} scored now, {kept:,} as they were")
    if words := passed_over(summary.passed_over):
        say(console, words)
    if alarm := options.asking.alarming(summary.flagged, ok, bundle.manifest):
        say(console, alarm)
    say(console, f"scores: {readable(summary.out)}")
    if ok:
        verb = "review" if summary.flagged else "drift"  # where nothing is flagged, nothing waits to be looked at
        advise(console, f"fieldmark {verb} {readable(summary.out)} --bundle {readable(bundle.path)}")
    if summary.failed_list is None:
        return
    errors = Console(stderr=True)
    for _, sentence in summary.failed:
        say(errors, f"error: {sentence}")
    more = f" and {summary.errors - len(summary.failed):,} more" if summary.errors > len(summary.failed) else ""
    say(errors, f"these{more} could not be scored; all are listed in {readable(summary.failed_list)}")


def _record(summary: Summary) -> dict[str, Any]:
    """A summary as JSON's own types."""
    failed = [{"file": readable(path), "error": sentence} for path, sentence in summary.failed]
    places = {"out": str(summary.out), "failed_list": str(summary.failed_list) if summary.failed_list else None}
    return {**asdict(summary), "failed": failed, **places}


def safe(out: Path) -> str:
    """What an interrupted job has finished, as a half sentence."""
    try:
        return read_state(out).safe_in(out) + "; "
    except (ScoringError, OSError):
        return ""
