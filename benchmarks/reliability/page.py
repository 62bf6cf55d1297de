"""docs/reliability.md: the table of what was tried and what happened, from the JSON, between two marks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import put, table_head, table_row

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARK = "reliability"
NUMBERS = {
    "recovery_seconds": "{:g} s until it answers again",
    "neighbours_failed": "neighbours: {:g} of {answers:g} failed",
    "wrong_answers": "{:g} wrong answers",
    "leaks": "{:g} of {texts:g} texts from inside",
    "processes_replaced": "{:g} processes replaced",
    "memory_grown_mb": "{:+.0f} MB",
    "memory_growth_percent": "{:+.2f} % memory",
}


def write_page(result: Path) -> None:
    """Put the table of a result's JSON into docs/reliability.md."""
    put(MARK, table(json.loads(result.read_text(encoding="utf-8"))), PAGE)


def table(result: Mapping[str, Any]) -> str:
    """Every row, in Markdown, with where it was measured and how many held."""
    where, rows = result["environment"], result["rows"]
    tried = [row for row in rows.values() if not row["skipped"]]
    held = sum(row["held"] for row in tried)
    commits = sorted({row["commit"][:12] for row in rows.values()})
    quick = [name for name, row in rows.items() if row["quick"]]
    lines = [
        f"{held} of {len(tried)} rows hold. {where['cpu']}, {where['cores']} cores, the attacker's among them; bundle "
        f"`{result['bundle']}`; commit {', '.join(commits)}."
        + (f" In short form: {'all of them' if len(quick) == len(rows) else ', '.join(quick)}." if quick else ""),
        "",
        *table_head(["tried", "must happen", "happened", "numbers"]),
    ]
    for row in rows.values():
        verdict = "" if row["held"] or row["skipped"] else "**Does not hold.** "
        happened = f"Not tried: {row['skipped']}" if row["skipped"] else verdict + row["happened"]
        lines.append(
            table_row(_cell(row["tried"]), [_cell(row["must"]), _cell(happened), _cell(numbers(row["numbers"]))])
        )
    return "\n".join(lines) + "\n"


def numbers(found: Mapping[str, float]) -> str:
    """The numbers of a row in words; how many answers and texts there were stands beside those that were bad."""
    more = {
        "answers": found.get("neighbours_answered", 0) + found.get("neighbours_failed", 0),
        "texts": found.get("texts", 0),
    }
    told = [name for name in NUMBERS if name in found and (name != "neighbours_failed" or more["answers"])]
    return "; ".join(NUMBERS[name].format(found[name], **more) for name in told)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
