"""Tables as they are printed: whole in a pipe, no wider than a terminal, and never blanks at the end of a line."""

import io
import re

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bundle.console import lay_out


class Screen(io.StringIO):
    """A terminal, as far as one can ask."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def table() -> Table:
    table = Table("file", "label", box=SIMPLE_HEAD, caption="toy", caption_justify="left")
    table.add_row("a" * 150, "Lark")
    table.add_row("b", "[bold red]Wren[/]")
    return table


def test_in_a_pipe_nothing_is_cut_and_no_line_ends_in_blanks(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("60", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        pipe = io.StringIO()
        lay_out(Console(file=pipe, highlight=False), table, "A sentence " + "that is long " * 20)
        lines = pipe.getvalue().split("\n")
        assert any("a" * 150 in line for line in lines)
        assert lines[-2] == "A sentence " + " ".join(["that is long"] * 20)
        assert [line for line in lines if line != line.rstrip()] == []


def test_a_terminal_is_filled_and_keeps_its_colours(table: Table) -> None:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=60, highlight=False)
    lay_out(console, table, " ".join(["[dim]a sentence of words[/]"] * 9))
    text = screen.getvalue()
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.split("\n")]
    assert "\x1b[1;31mWren" in text
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if line != line.rstrip()] == []
    assert " ".join(lines).split()[-36:] == ["a", "sentence", "of", "words"] * 9, "a word was broken"
