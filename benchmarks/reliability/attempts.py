"""`python -m benchmarks reliability`: try to bring a real service down, row by row, and write what happened.

A row that was measured at this commit is not measured again, so the work can be stopped and goes on; --rows names some.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.record import RESULTS, environment
from benchmarks.reliability import bodies, damaged, deaths, lasting, lingering, strangers
from benchmarks.reliability.deployment import make_certificates, wait_until
from benchmarks.reliability.page import numbers, write_page
from benchmarks.reliability.rows import Ground, Outcome, Row, Skipped, whole
from bundle import Bundle
from bundle.errors import FieldmarkError, OptionError, printable
from bundle.files import write_text

RESULT = RESULTS / "reliability.json"
DEMO = Path("build/demo/bundle")
KINDS = (bodies, damaged, deaths, strangers, lingering, lasting)
ROWS: dict[str, Row] = {row.name: row for kind in KINDS for row in kind.ROWS}


def bench(
    bundle: Annotated[Path, typer.Option(help="The bundle to serve.")] = DEMO,
    rows: Annotated[str, typer.Option(help="Names of rows, with commas; else those not measured yet.")] = "",
    without: Annotated[str, typer.Option(help="Names of rows to leave out, with commas.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the size of each row.")] = False,
    out: Annotated[Path, typer.Option(help="Where the results are, and go.")] = RESULT,
) -> None:
    """Attack a real service in every way of docs/reliability.md, and keep what happened."""
    named, left_out = _names(rows), _names(without)
    if not bundle.exists():
        raise OptionError(f"there is no bundle at {bundle}", hint="Run 'make demo' first, or pass --bundle.")
    console, where = Console(), environment()
    found = _read(out)
    opened = Bundle.open(bundle)
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        make_certificates(Path(folder))
        ground = Ground(opened, Path(folder), quick=quick)
        try:
            for name, row in ROWS.items():
                if (
                    name in left_out
                    or (named and name not in named)
                    or (not named and _done(found.get(name), where, quick))
                ):
                    continue
                console.print(f"[bold]{name}[/]: {escape(row.tried)}")
                found[name] = {**_try(row, ground), "commit": where["commit"], "quick": quick}
                _say(console, found[name])
                ordered = {each: found[each] for each in ROWS if each in found}
                told = {"environment": where, "bundle": opened.manifest.name, "rows": ordered}
                write_text(out, json.dumps(told, indent=2) + "\n")
        finally:
            ground.drop()
    if out == RESULT and found:
        write_page(out)
    failed = [name for name in ROWS if name in found and not found[name]["held"] and not found[name]["skipped"]]
    if failed:
        console.print(f"[bold red]does not hold:[/] {', '.join(failed)}")
        raise typer.Exit(1)


def _try(row: Row, ground: Ground) -> dict[str, Any]:
    """Run one row, and see to it that the next one finds a service that is whole."""
    began, skipped = time.monotonic(), ""
    try:
        outcome = row.run(ground)
    except Skipped as problem:
        skipped, outcome = str(problem), Outcome(happened="", held=False)
    except (FieldmarkError, TimeoutError, OSError) as problem:
        outcome = Outcome(happened=f"{type(problem).__name__}: {problem}", held=False)
        ground.drop()
    if row.spoils:
        ground.drop()
    elif not skipped:
        _mend(ground)
    return {
        "tried": row.tried,
        "must": row.must,
        "happened": printable(outcome.happened),
        "held": outcome.held,
        "skipped": skipped,
        "numbers": outcome.numbers,
        "seconds": round(time.monotonic() - began, 1),
    }


def _mend(ground: Ground) -> None:
    try:
        wait_until(lambda: whole(ground.deployment, ground), 30)
    except (FieldmarkError, TimeoutError, OSError):
        ground.drop()


def _done(row: dict[str, Any] | None, where: dict[str, Any], quick: bool) -> bool:
    return row is not None and row["commit"] == where["commit"] and row["quick"] <= quick and not row["skipped"]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {name: row for name, row in rows.items() if name in ROWS and {"commit", "quick", "held"} <= set(row)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise OptionError(
            f"{path} cannot be read ({problem})", hint="Remove it, or name another one: --out FILE"
        ) from None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ROWS:
            raise OptionError(f"there is no row {name!r}", hint=f"Choose from: {', '.join(ROWS)}.")
    return names


def _say(console: Console, row: dict[str, Any]) -> None:
    verdict = (
        "[yellow]not tried[/]" if row["skipped"] else "[green]holds[/]" if row["held"] else "[bold red]does not hold[/]"
    )
    console.print(f"  {verdict} in {row['seconds']:g} s: {escape(row['skipped'] or row['happened'])}")
    if row["numbers"]:
        console.print(f"  {escape(numbers(row['numbers']))}")
