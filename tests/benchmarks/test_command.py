"""`python -m benchmarks`: one list of all; names are looked at before minutes of measuring; each result has a page."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import detection, sr5, walkthrough
from benchmarks.catalogue import BENCHMARKS, NOTHING, Benchmark, load
from benchmarks.gpu import command as gpu
from benchmarks.page import PAGE
from benchmarks.record import RESULTS
from benchmarks.study import tables
from bundle.errors import OptionError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, or saved."""
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: calls.append(name) or {}

    known = {name: Benchmark(measures="", takes="", at=name) for name in ("first", "second")}
    known["second"] = Benchmark(measures="", takes="", at="second", needs=NOTHING, rehearsal="rehearsed")
    known["third"] = Benchmark(measures="", takes="", at="third", alone=True)
    monkeypatch.setattr(command, "BENCHMARKS", known)
    monkeypatch.setattr(command, "load", note)
    monkeypatch.setattr(command, "save", note("saved"))
    return calls


def test_a_mistyped_name_costs_no_measurement(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown benchmark 'thrid'"):
        command.bench(["first", "thrid"], tmp_path)
    assert measured == []
    command.bench(["first", "second"], tmp_path)
    assert measured == ["first", "saved", "second", "saved"]


def test_what_has_options_of_its_own_is_not_started_among_others(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'third' has options of its own and is started alone"):
        command.bench(["first", "third"], tmp_path)
    assert measured == []
    command.bench(None, tmp_path)
    assert measured == ["first", "saved", "second", "saved"]


def test_a_bundle_that_is_not_there(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no bundle at"):
        command.bench(None, tmp_path / "none")
    assert measured == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "3", '{"reused": 3}', "\x00"])
def test_a_damaged_report_is_one_sentence(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(OptionError, match=r"report\.json cannot be read .*Run 'make demo' again"):
        walkthrough.read_demo(tmp_path / "bundle")


def test_only_what_reads_a_bundle_asks_for_one(measured: list[str]) -> None:
    command.bench(["second"], Path("none"))
    assert measured == ["second", "saved"]
    with pytest.raises(OptionError, match="there is no bundle at none"):
        command.bench(["second", "first"], Path("none"))
    assert measured == ["second", "saved"]


def test_a_rehearsal_keeps_nothing(measured: list[str]) -> None:
    command.bench(["second"], Path("none"), quick=True)
    assert measured == ["rehearsed"]
    with pytest.raises(OptionError, match="'first' cannot be rehearsed"):
        command.bench(["first"], Path("none"), quick=True)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_line_of_the_list_can_be_started(name: str) -> None:
    """With what it is given: a bundle, nothing, or a command line of its own, whose help it prints."""
    benchmark = BENCHMARKS[name]
    call = load(benchmark.at)
    if benchmark.alone:
        app = typer.Typer(add_completion=False)
        app.command()(call)
        help_of = CliRunner().invoke(app, ["--help"])
        assert help_of.exit_code == 0, help_of.output
        assert not benchmark.page
        assert not benchmark.rehearsal
        return
    given = [] if benchmark.needs != command.BUNDLE else [Path("bundle")]
    inspect.signature(call).bind(*given)
    if benchmark.page:
        inspect.signature(load(benchmark.page)).bind(Path("result.json"))
    if benchmark.rehearsal:
        inspect.signature(load(benchmark.rehearsal)).bind(*given)


def test_the_help_lists_them_all_and_loads_none() -> None:
    """It is there at once, and one that is started alone takes all that stands behind its name."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "benchmarks", "--help"], capture_output=True, text=True, check=True
    )
    lines = [line.split()[0] for line in run.stdout.splitlines() if line[1:2].isalpha()]
    assert set(BENCHMARKS) <= set(lines)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert not loaded & {"torch", "onnx", "grpc", "training", "serving", "demo", "matplotlib"}


def test_long_arguments_reach_one_that_is_started_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def third(images: Path, count: int = 3) -> None:
        print(f"{images} {count}")

    monkeypatch.setattr(command, "BENCHMARKS", {"third": Benchmark(measures="", takes="", at="third", alone=True)})
    monkeypatch.setattr(command, "load", {"third": third}.__getitem__)
    with pytest.raises(SystemExit) as ended:
        command.main(["third", "photos", "--count", "7"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "photos 7\n"


def test_nothing_in_benchmarks_is_started_past_the_list() -> None:
    files = [file for file in (ROOT / "benchmarks").rglob("*.py") if file.name != "__main__.py"]
    assert [file.name for file in files if "if __name__" in file.read_text()] == []
    assert not (ROOT / "benchmarks" / "reliability" / "__main__.py").exists()


def test_the_page_has_the_list() -> None:
    """docs/benchmarks.md repeats it, in its order, with where the figures stand."""
    page = (ROOT / "docs" / "benchmarks.md").read_text().split("\n## Where every figure comes from")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|", page, re.MULTILINE)
    assert rows == [(name, each.takes, each.needs) for name, each in BENCHMARKS.items()]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile"], ids=lambda page: page.name)
def test_what_the_pages_call_is_in_the_list(page: Path) -> None:
    called = re.findall(r"python -m benchmarks\s+(\w+)", page.read_text())
    assert set(called) <= {*BENCHMARKS, "NAME"}
    assert "python -m benchmarks." not in page.read_text()


def test_every_result_is_named_by_a_page_and_is_there() -> None:
    text = "".join(page.read_text() for page in PAGES)
    kept = {file.name for file in RESULTS.glob("*.json")}
    linked = set(re.findall(r"benchmarks/results/([\w-]+\.json)", text))
    assert linked == kept


WRITTEN: dict[str, Any] = {
    "paper_tables_": tables.tables,
    "detection_": lambda result: "\n".join(detection.tables(result)) + "\n\n",
    "sr5_": sr5.page,
    "gpu": gpu.page,
}


@pytest.mark.parametrize(
    ("kind", "file"),
    [(kind, file) for kind in WRITTEN for file in sorted(RESULTS.glob(f"{kind}*.json"))],
    ids=lambda each: each if isinstance(each, str) else each.stem,
)
def test_the_tables_on_the_page_are_those_of_the_result(kind: str, file: Path) -> None:
    """Also those of earlier versions, which may have fewer figures."""
    mark = file.stem.removeprefix("paper_tables_").replace("_", " ")
    found = re.search(f"<!-- begin: {mark} -->\n(.*?)<!-- end: {mark} -->", PAGE.read_text(), re.DOTALL)
    assert found is not None, mark
    assert found[1] == WRITTEN[kind](json.loads(file.read_text()))


def test_every_result_says_with_what_it_was_measured() -> None:
    for file in RESULTS.glob("*.json"):
        environment = json.loads(file.read_text())["environment"]
        assert {"commit", "cpu", "cores", "packages", "when"} <= set(environment), file.name
