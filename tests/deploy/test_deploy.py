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
import yaml

from serving.triton.server import STOP_SECONDS
from serving.upkeep.cli import serve
from serving.upkeep.gateway import MARGIN_SECONDS
from tests.deploy.started import parse

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
    assert context.params["json"], "its first line is one of JSON too"


JOURNAL = """\
Started Fieldmark: a bundle on Triton behind fieldmark.v1.
{"event": "request", "flagged": true, "reason": "BUG", "bug": "KeyError", "request_id": "mine"}
{"event": "request", "flagged": false, "reason": "", "request_id": "other"}
fieldmark.service: Main process exited, code=killed, status=9/KILL
{"event": "request", "flagged": true, "reason": "BUG", "bug": "KeyError", "request_id": "last"}
"""


@pytest.mark.parametrize("page", ["alerts.md", "observability.md"])
def test_what_the_pages_ask_of_a_journal_is_found_among_sentences(page: str) -> None:
    if shutil.which("jq") is None:
        pytest.skip("no jq here")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    ((options, asked),) = re.findall(r"\bjq (-\w+ )?'([^']*select[^']*)'", text)
    command = ["jq", *options.split(), asked]
    run = subprocess.run(command, input=JOURNAL, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert [name in run.stdout for name in ("mine", "last", "other")] == [True, True, False]


@pytest.mark.parametrize("page", ["alerts.md", "serve.md"])
def test_the_unit_is_told_to_go_back_where_it_listens(started: list[str], page: str) -> None:
    place = started[started.index("--control") + 1]
    assert f"fieldmark roll back {place}" in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_unit_restarts_it_and_gives_it_time_to_drain(started: list[str]) -> None:
    found = settings(UNIT)
    assert (found["Type"], found["Restart"], found["StartLimitIntervalSec"]) == ("notify", "always", "0")
    drain = float(started[started.index("--drain-seconds") + 1])
    assert float(found["TimeoutStopSec"]) > drain + MARGIN_SECONDS + 10  # and Triton's own time
    assert float(found["WatchdogSec"]) > 3 * 2 + 10  # the longest look at what hangs, and the longest end of it


@pytest.fixture
def compose() -> dict[str, Any]:
    """What the file holds."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


def test_compose_restarts_it_and_opens_nothing_to_others(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"serve", "triton", "gateway"}
    for service in compose["services"].values():
        assert service["restart"] == "always"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp:exec"]  # else no worker can be started
        assert service["volumes"][0]["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert "ports" not in compose["services"]["triton"]
    assert compose["services"]["triton"]["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}


def test_compose_starts_commands_that_there_are(compose: dict[str, Any]) -> None:
    services = compose["services"]
    seconds = float(re.fullmatch(r"(\d+)s", services["serve"]["stop_grace_period"])[1])  # type: ignore[index]
    assert parse(services["serve"]["command"]).drain_seconds + MARGIN_SECONDS + STOP_SECONDS < seconds
    assert services["gateway"]["entrypoint"] == ["python3", "-m", "fieldmark"]
    asked = parse(services["gateway"]["command"])
    assert (asked.host, asked.metrics_host) == ("0.0.0.0", "0.0.0.0")
    assert services["gateway"]["command"][1].partition(":")[0] in services


def test_compose_fits_the_images(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    targets = re.findall(r"^FROM .* AS (\w+)$", dockerfile, re.MULTILINE)
    exposed = set(re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[0].split())
    for service in compose["services"].values():
        name, _, tag = service["image"].partition(":")
        assert name == "fieldmark"
        assert tag in targets
        assert f"docker build -t {service['image']} --target {tag} ." in dockerfile
        assert {port.rpartition(":")[2] for port in service.get("ports", ())} <= exposed
    assert 'CMD ["serve", "/bundle"]' in dockerfile
    assert 'CMD ["/bundle"]' in dockerfile
