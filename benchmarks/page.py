"""Tables in pages of docs/, written between two marks; prose stays."""

from collections.abc import Sequence
from pathlib import Path

from bundle.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "results.md"


def put(mark: str, block: str, page: Path | None = None) -> None:
    """Replace what stands between two marks of a page (docs/results.md), or begin it at the end."""
    begin, end = f"<!-- begin: {mark} -->", f"<!-- end: {mark} -->"
    page = page or PAGE
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2].lstrip("\n") if found else ""
    rest = f"\n{after}" if after.strip() else ""  # one empty line, however often this is done
    write_text(page, f"{before.rstrip()}\n\n{begin}\n{block}{end}\n{rest}")


def table_head(titles: list[str]) -> list[str]:
    """Its head."""
    return [table_row(titles[0], titles[1:]), "|---" * len(titles) + "|"]


def table_row(first: str, cells: list[str]) -> str:
    """One line of it."""
    return f"| {' | '.join((first, *cells))} |"


def interval(share: float, bounds: Sequence[float], *, digits: int = 0) -> str:
    """A share and its 95 % interval, in percent; the ends with so many digits behind the point."""
    low, high = bounds
    return f"{100 * share:.1f} ({100 * low:.{digits}f} to {100 * high:.{digits}f})"
