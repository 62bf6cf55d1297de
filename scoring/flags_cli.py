"""`fieldmark flags`: which rows of a table to look at, and what that list is worth."""

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
from bundle.errors import printable

if TYPE_CHECKING:
    from scoring.campaigns import Campaigns
    from scoring.flags import Flagged
    from scoring.table.current import Current

SHOWN, MOST_GROUPS = 10, 5


def flags(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table that 'fieldmark score --table' wrote.")],
    fdr: Annotated[
        float, typer.Option("--fdr", help="Share of the flagged rows that may be false, in expectation.")
    ] = 0.1,
    dependent: Annotated[
        bool,
        typer.Option(
            "--dependent",
            help="Benjamini-Yekutieli instead of Benjamini-Hochberg: holds however rows depend on one another, as "
            "copies of one image do, and flags less.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the flagged rows here: .csv or .parquet.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything but the list as one line of JSON.")] = False,
) -> None:
    """List the rows that look tampered with, so that at most a share --fdr of them is expected to be clean; and count
    them by day, label and folder.
    """
    from scoring.campaigns import check_list, gather, write_list
    from scoring.flags import BH, BY, check_rate, control
    from scoring.table.current import Current

    check_rate(fdr)
    if out is not None:
        check_list(out)
    current = Current.read(table)
    flagged = control(current.p_values, current.begun.calibration_n, fdr=fdr, method=BY if dependent else BH)
    campaigns = gather(current, flagged)
    if out is not None:
        write_list(out, campaigns.listed)
    if json:
        sys.stdout.write(jsonlib.dumps(_record(current, flagged, campaigns)) + "\n")
        return
    _show(current, flagged)
    _show_groups(campaigns, current.begun.alpha)
    _show_list(campaigns)
    if out is not None:
        say(Console(stderr=True), f"list: {readable(out)}")


def _record(current: "Current", flagged: "Flagged", campaigns: "Campaigns") -> dict[str, Any]:
    begun = current.begun
    return {
        "rows": len(current.ids),
        "errors": current.errors,
        "bundle_id": begun.bundle_id,
        "alpha": begun.alpha,
        "flagged_at_alpha": int(current.flags.sum()),
        "calibration_n": begun.calibration_n,
        "method": flagged.method,
        "fdr": flagged.fdr,
        "flagged": flagged.count,
        "expected_false_share": flagged.false_share,
        "bar": flagged.bar,
        "smallest_p_value": flagged.smallest,
        "rows_with_smallest": flagged.with_smallest,
        "rows_needed": flagged.needed,
        "calibration_n_needed": flagged.n_needed,
        **{kind: [asdict(group) for group in groups] for kind, groups in campaigns.groups.items()},
    }


def _show(current: "Current", flagged: "Flagged") -> None:
    from scoring.flags import METHODS

    console = Console(soft_wrap=True, highlight=False)
    rows, begun = len(current.ids), current.begun
    console.print(
        f"[bold]{flagged.count:,}[/] of {rows:,} rows flagged by {escape(METHODS[flagged.method])} at {flagged.fdr:g}"
    )
    lines = Table.grid(padding=(0, 2))
    if flagged.false_share is not None:
        false = flagged.false_share
        lines.add_row("false", f"at most {false:.1%} of them in expectation: about {false * flagged.count:,.0f} rows")
        lines.add_row("bar", f"p-values up to {flagged.bar:.3g}")
    at_alpha = int(current.flags.sum())
    lines.add_row(
        "at alpha",
        f"{at_alpha:,} rows have p <= {begun.alpha:g}; {begun.alpha * rows:,.0f} would if all were clean",
    )
    lines.add_row(
        "smallest",
        f"p = {flagged.smallest:.3g} with {begun.calibration_n:,} calibration images: {flagged.with_smallest:,} rows "
        f"have it, and with fewer than {flagged.needed:,} none of them would be flagged",
    )
    if not flagged.count:
        lines.add_row("", _what_would_do(flagged, begun.calibration_n))
    if current.errors:
        lines.add_row("errors", f"{current.errors:,} objects without a score are left out")
    lay_out(console, lines)


def _what_would_do(flagged: "Flagged", n: int) -> str:
    """Why nothing is flagged, and with what it would be."""
    if flagged.n_needed is None:
        return "no row has it: nothing here looks tampered with"
    if flagged.n_needed <= n:
        return "they are no more than chance gives"
    return (
        f"{n:,} calibration images cannot single out so few: {flagged.n_needed:,} could, if these rows stay the most "
        "suspicious ('fieldmark calibrate'), or a larger --fdr, or a smaller set"
    )


def _show_groups(campaigns: "Campaigns", alpha: float) -> None:
    console = Console(highlight=False)
    for kind, groups in campaigns.groups.items():
        lines = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        lines.add_column(f"by {kind}", overflow="fold")
        for column in ("rows", "flagged", f"p <= {alpha:g}"):
            lines.add_column(column, justify="right", no_wrap=True)
        for group in groups[:MOST_GROUPS]:
            lines.add_row(
                escape(printable(group.name)),
                f"{group.rows:,}",
                f"{group.flagged / group.rows:.1%}",
                f"{group.at_alpha / group.rows:.1%}",
            )
        lay_out(console, lines)
        if len(groups) > MOST_GROUPS:
            console.print(f"and {len(groups) - MOST_GROUPS:,} more, less dense: see --json", style="dim")


def _show_list(campaigns: "Campaigns") -> None:
    if campaigns.listed is None:
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print("\nMost suspicious first:")
    for row in campaigns.listed.slice(0, SHOWN).to_pylist():
        say(console, f"  p {row['p_value']:.3g}  score {row['instance_score']:,.1f}  {row['label']}  {row['path']}")
    if campaigns.listed.num_rows > SHOWN:
        console.print(f"  and {campaigns.listed.num_rows - SHOWN:,} more: --out FILE writes all")
