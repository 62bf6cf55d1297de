"""What is asked of `python -m benchmarks` is checked before minutes of measuring."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from bundle.errors import OptionError


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were measured, or saved."""
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: calls.append(name)

    monkeypatch.setattr(benchmarks, "MEASURES", {"first": note("first"), "second": note("second")})
    monkeypatch.setattr(benchmarks, "save", note("saved"))
    return calls


def test_a_mistyped_name_costs_no_measurement(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown benchmark 'thrid'"):
        benchmarks.bench(["first", "thrid"], tmp_path)
    assert measured == []
    benchmarks.bench(["first", "second"], tmp_path)
    assert measured == ["first", "saved", "second", "saved"]


def test_a_bundle_that_is_not_there(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no bundle at"):
        benchmarks.bench(None, tmp_path / "none")
    assert measured == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "3", '{"reused": 3}', "\x00"])
def test_a_damaged_report_is_one_sentence(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "DEMO", tmp_path)
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(OptionError, match=r"report\.json cannot be read .*Run 'make demo' again"):
        benchmarks.demo(tmp_path)
