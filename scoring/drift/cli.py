"""`fieldmark drift`: what the operator sees of a scored set beside the calibration."""

import json as jsonlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle.console import lay_out, readable, say
from bundle.errors import OptionError, printable
from bundle.files import check_place
from bundle.folder import Bundle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scoring.drift.comparison import ClassDrift, Drift
    from scoring.drift.scored import Calibration, ScoredSet

DRIFTED = 4  # 1 to 3 are errors: see bundle/errors.py
MOST_CLASSES = 12


def drift(
    scores: Annotated[
        str, typer.Argument(metavar="SET", help="A folder or a table that 'fieldmark score' has finished.")
    ],
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="The bundle that scored it.")],
    shuffle: Annotated[
        bool,
        typer.Option(
            "--shuffle",
            help="Let the martingale read the rows in a random order: it then tests what the set holds, not when it "
            "came. For sets whose order means something, as that of a folder sorted by class.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of ties and of --shuffle. Choose it before you look.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the comparison here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as one line of JSON.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help=f"Exit with {DRIFTED} on drift: a martingale that reaches 100, or a Kolmogorov-Smirnov p < 0.001 (of "
            "all rows or, where the bundle has calibration scores by class, of a class).",
        ),
    ] = False,
) -> None:
    """Compare a scored set with clean data: has the world changed, by an attack or a broken camera?"""
    if plot is not None and plot.suffix.lower() != ".png":
        raise OptionError(f"--plot {plot} does not end in .png, and the picture is a PNG")
    if plot is not None and plot.is_dir():
        raise OptionError(f"--plot {plot} is a folder")
    if plot is not None:
        check_place(plot)
    from scoring.drift.comparison import measure
    from scoring.drift.scored import read_calibration, read_set

    if plot is not None:
        from scoring.drift.figure import draw, require

        require()
    opened = Bundle.open(bundle)
    found = read_set(scores, opened)
    calibration = read_calibration(opened, found.network)
    result = measure(found, calibration, seed=seed, shuffle=shuffle)
    facts = _facts(result, found, calibration, opened, shuffle)
    if json:
        sys.stdout.write(jsonlib.dumps({"set": readable(scores), **facts}) + "\n")
    else:
        _show(result, facts, readable(scores))
    if plot is not None:
        draw(plot, result, found, calibration, shuffled=shuffle)
        say(Console(stderr=True), f"picture: {readable(plot)}")
    if check and result.reasons:
        raise typer.Exit(DRIFTED)


def _facts(
    result: "Drift", found: "ScoredSet", calibration: "Calibration", bundle: Bundle, shuffle: bool
) -> dict[str, Any]:
    """Everything that is printed, for machines."""
    from scoring.drift.comparison import CAPITALS

    path = result.martingale.path
    return {
        "drift": bool(result.reasons),
        "reasons": result.reasons,
        "bundle_id": bundle.bundle_id,
        "network": found.network,
        "alpha": found.alpha,
        "calibration_n": len(calibration.scores),
        "rows": result.rows,
        "errors": found.total - result.rows,
        "flagged": result.flagged,
        "clean_share": result.clean_share,
        "kolmogorov_smirnov": asdict(result.ks),
        "martingale": {
            "shuffled": shuffle,
            "highest_log10": result.martingale.highest,
            "final_log10": float(path[-1]),
            "crossed": {f"{capital:g}": _crossing(result, found, capital) for capital in CAPITALS},
        },
        "classes_are_calibrated": calibration.classes is not None,
        "classes": [asdict(each) for each in result.classes],
    }


def _crossing(result: "Drift", found: "ScoredSet", capital: float) -> dict[str, Any] | None:
    """After how many rows the capital was reached, and at which row (from 0) and path of the set."""
    at = result.martingale.crossed(capital)
    if at is None:
        return None
    row = int(result.martingale.order[at])
    return {"after": at + 1, "row": int(found.positions[row]), "path": found.paths[row].as_py()}


def _show(result: "Drift", facts: dict[str, Any], name: str) -> None:
    console = Console(soft_wrap=True, highlight=False)
    ks, low, high = result.ks, *result.clean_share
    verdict = "[bold red]drift[/]" if result.reasons else "[bold green]no drift found[/]"
    console.print(f"{verdict} in {escape(printable(name))}")
    for reason in result.reasons:
        say(console, f"  {reason}")
    errors = f", {facts['errors']:,} that could not be decoded left out" if facts["errors"] else ""
    lines = Table.grid(padding=(0, 2))
    lines.add_row("rows", f"{result.rows:,} against {facts['calibration_n']:,} calibration scores{errors}")
    lines.add_row(
        "flagged",
        f"{result.flagged / result.rows:.1%} at alpha {facts['alpha']:g}; "
        f"{low:.1%} to {high:.1%} in 95 % of clean sets of this size",
    )
    side = "more" if ks.higher else "less"
    lines.add_row(
        "KS test",
        f"distance {ks.distance:.3f} to the {side} suspicious side, p = {_probability(ks.p_value)}; "
        + (f"drift from {ks.critical:.3f} on" if ks.critical < 1 else "a set this small can show no drift here"),
    )
    shuffled = ", rows shuffled" if facts["martingale"]["shuffled"] else ""
    lines.add_row(
        "martingale",
        f"highest {power(result.martingale.highest)}, at the end {power(float(result.martingale.path[-1]))}{shuffled}",
    )
    for capital, crossing in facts["martingale"]["crossed"].items():
        if crossing is not None:
            where = f"row {crossing['row'] + 1:,}: {escape(printable(crossing['path']))}"
            lines.add_row("", f"reached {capital} after {crossing['after']:,} rows, at {where}")
    lay_out(console, lines)
    _show_classes(result, facts, console)


def _show_classes(result: "Drift", facts: dict[str, Any], console: Console) -> None:
    tested = facts["classes_are_calibrated"]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("predicted", overflow="fold")
    for column in ("rows", "flagged", "95 % interval", "KS distance", *(["p (Holm)"] if tested else [])):
        table.add_column(column, justify="right", no_wrap=True)
    ranked = _ranked(result.classes)
    for each in ranked[:MOST_CLASSES]:
        table.add_row(
            escape(printable(each.label)),
            f"{each.rows:,}",
            f"{each.flagged / each.rows:.1%}",
            f"{each.interval[0]:.1%} - {each.interval[1]:.1%}",
            "-" if each.distance is None else f"{each.distance:.3f}",
            *([_probability(each.p_value)] if tested else []),
        )
    lay_out(console, table)
    if len(ranked) > MOST_CLASSES:
        console.print(f"and {len(ranked) - MOST_CLASSES:,} more classes, less conspicuous: see --json")
    note = (
        "Each class is tested against its own calibration scores."
        if tested
        else "Classes are described, not tested: the bundle has no calibration scores by class, and a class may differ "
        "from the whole without drift."
    )
    lay_out(console, f"[dim]{note}[/]")


def _ranked(classes: "Sequence[ClassDrift]") -> "list[ClassDrift]":
    """The most conspicuous first. A class that is not tested has no p-value; 0.0 is one, of the most drifted."""

    def key(each: "ClassDrift") -> tuple[float, float, int]:
        return 1.0 if each.p_value is None else each.p_value, -each.interval[0], -each.rows

    return sorted(classes, key=key)


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 1e-300" if value < 1e-300 else f"{value:.2g}"


def power(log10: float) -> str:
    """10**log10 for people, whatever its size."""
    return f"{10**log10:,.3g}" if -3 < log10 < 4 else f"10^{log10:.1f}"
