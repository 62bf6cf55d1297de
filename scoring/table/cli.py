"""What the analyst sees of a job that writes a table."""

import json as jsonlib
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from bundle.console import advise, lay_out, readable, say
from bundle.folder import Bundle
from bundle.formats import passed_over
from bundle.progress import Work
from scoring.stopping import stopping
from scoring.table.job import Crew, TableOptions, TableSummary, score_into_table


def score_table(
    source: str, bundle: Bundle, table: str, options: TableOptions, crew: Crew, json: bool
) -> tuple[int, int]:
    """Score a source into a table and tell what was done; gives how many files it has, and how many have no score."""
    with Work("listing", rated=True) as work, stopping() as stop_or_go_on:

        def on_listed(count: int) -> None:
            stop_or_go_on()
            work.at(count, count)

        def on_progress(done: int, scored: int, total: int) -> None:
            stop_or_go_on()
            work.what, work.total = "scoring", total
            work.at(done, scored)

        summary = score_into_table(source, bundle, table, options, crew, on_progress=on_progress, on_listed=on_listed)
    if json:
        sys.stdout.write(jsonlib.dumps(_record(summary)) + "\n")
    else:
        _show(summary, bundle, options)
    return summary.objects, summary.unscored


def _show(summary: TableSummary, bundle: Bundle, options: TableOptions) -> None:
    console = Console()
    if summary.rows:
        lay_out(console, _lines(summary))
    else:
        say(console, f"Nothing is new or has changed: all {summary.objects:,} files are in the table as they are.")
    if words := passed_over(summary.passed_over):
        say(console, words)
    ok = summary.rows - summary.errors - summary.gone
    if alarm := options.asking.alarming(summary.flagged, ok, bundle.manifest):
        say(console, alarm)
    say(console, f"table: {readable(summary.table)}")
    if summary.unscored < summary.objects:
        advise(console, f"fieldmark flags {readable(summary.table)}")
    errors = Console(stderr=True)
    for _, sentence in summary.failed:
        say(errors, f"error: {sentence}")
    if summary.failed_list is not None:
        others = max(0, summary.unscored - len(summary.failed))
        more = f" and {others:,} more" if others else ""
        who = f"these{more}" if summary.failed else f"{others:,} of earlier runs"
        say(errors, f"{who} could not be scored; all are listed in {readable(summary.failed_list)}")


def _lines(summary: TableSummary) -> Table:
    ok = summary.rows - summary.errors - summary.gone
    lines = Table("files", "written", "ok", "errors", "gone", "flagged", "images/s", "seconds")
    lines.add_row(
        f"{summary.objects:,}",
        f"{summary.rows:,}",
        f"{ok:,}",
        f"{summary.errors:,}",
        f"{summary.gone:,}",
        f"{summary.flagged / ok:.1%}" if ok else "-",
        f"{summary.images_per_second:,.1f}" if summary.scored else "-",
        f"{summary.seconds:,.1f}",
    )
    return lines


def _record(summary: TableSummary) -> dict[str, object]:
    """A summary as JSON's own types."""
    failed = [{"file": readable(path), "error": sentence} for path, sentence in summary.failed]
    return {**asdict(summary), "failed": failed}
