"""What stands in deploy/ is read by what will read it, or held against what it starts."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from serving.upkeep.cli import serve
from serving.upkeep.gateway import MARGIN_SECONDS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "fieldmark.service"
COMPOSE = ROOT / "deploy" / "compose.yaml"


def settings(unit: Path) -> dict[str, str]:
    """NAME=VALUE of a unit's sections; each name is there once."""
    pairs = re.findall(r"^([A-Za-z]+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.fixture
def started() -> list[str]:
    """The words of the command that the unit starts."""
    return shlex.split(settings(UNIT)["ExecStart"])


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    text = UNIT.read_text(encoding="utf-8").replace("/opt/fieldmark/.venv/bin/fieldmark", sys.executable)
    (tmp_path / UNIT.name).write_text(text, encoding="utf-8")
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, UNIT.name in run.stderr) == (0, False), run.stderr


def test_the_unit_starts_a_command_that_there_is(started: list[str]) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    command = typer.main.get_command(app)
    assert started[:2] == ["/opt/fieldmark/.venv/bin/fieldmark", "serve"]
    context = command.make_context("serve", started[2:])
    assert context.params["log"]


def test_the_unit_restarts_it_and_gives_it_time_to_drain(started: list[str]) -> None:
    found = settings(UNIT)
    assert (found["Type"], found["Restart"], found["StartLimitIntervalSec"]) == ("notify", "always", "0")
    drain = float(started[started.index("--drain-seconds") + 1])
    assert float(found["TimeoutStopSec"]) > drain + MARGIN_SECONDS + 10  # and Triton's own time
    assert float(found["WatchdogSec"]) > 3 * 2 + 10  # the longest look at what hangs, and the longest end of it


def compose() -> dict[str, Any]:
    """What the file holds: maps, lists and plain words, by their indentation; anything else of YAML fails here."""
    lines = [line for line in COMPOSE.read_text(encoding="utf-8").splitlines() if line.split("#")[0].strip()]
    found: dict[str, Any] = read(lines)
    return found


def read(lines: list[str]) -> Any:
    """The value of a block of lines."""
    if not lines:
        return None
    depth = len(lines[0]) - len(lines[0].lstrip())
    starts = [number for number, line in enumerate(lines) if len(line) - len(line.lstrip()) == depth]
    blocks = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    if lines[0].lstrip().startswith("- "):
        return [read_item([block[0].replace("- ", "  ", 1), *block[1:]]) for block in blocks]
    pairs = [(*block[0].strip().partition(":")[::2], block[1:]) for block in blocks]
    assert all(re.fullmatch(r"[a-z_-]+", name) for name, _, _ in pairs), pairs
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value.strip().strip('"') or read(rest) for name, value, rest in pairs}


def read_item(lines: list[str]) -> Any:
    """One item of a list: a map, or a word."""
    return read(lines) if re.match(r" *[a-z_]+: ", lines[0]) else lines[0].strip()


def test_compose_restarts_it_and_opens_nothing_to_others() -> None:
    assert set(compose()) == {"name", "services"}
    service = compose()["services"]["triton"]
    assert service["restart"] == "always"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert not any(port.endswith(":8000") for port in service["ports"])  # HTTP: a large body ends it
    assert service["read_only"] == "true"
    assert service["volumes"][0]["read_only"] == "true"
    assert service["cap_drop"] == ["ALL"]


def test_compose_fits_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    service = compose()["services"]["triton"]
    assert f'CMD ["{service["volumes"][0]["target"]}"]' in dockerfile
    exposed = re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[0].split()
    assert {port.rpartition(":")[2] for port in service["ports"]} <= set(exposed)
