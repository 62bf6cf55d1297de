"""CONTRIBUTING.md sends nobody to a file that is not there, or to a name that the file does not have."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = dict(re.findall(r"^\| (.+?) \| (`.+) \|$", PAGE.split("\n## I want to change ...\n")[1], re.MULTILINE))
PATHS = sorted({path for path in re.findall(r"`([\w.][\w./-]*/[\w./-]*)`", PAGE) if not path.startswith(".venv")})


def test_the_map_is_read() -> None:
    assert len(MAP) >= 12
    assert {"an alert", "a page of the console"} <= set(MAP)
    assert "serving/gateway/failures.py" in PATHS


@pytest.mark.parametrize("what", MAP)
def test_who_wants_to_change_something_finds_it(what: str) -> None:
    """A row is files, each with the names to look for: they are defined there, at the top or as a field."""
    places = re.findall(r"`([\w/.]+/[\w.]+)`(?:: ((?:`\w+`(?:, )?)+))?", MAP[what])
    assert places
    for path, names in places:
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(?:def|class) {name}\b|^(?: {{4}})?{name}\b.*=", text, re.MULTILINE), (path, name)


@pytest.mark.parametrize("path", PATHS)
def test_what_the_page_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()
