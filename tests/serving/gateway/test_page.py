"""docs/gateway.md has every status, flag and metric that there is, and none that there is not."""

import re
from pathlib import Path
from typing import Any

import typer
from prometheus_client import ProcessCollector

from serving.envoy.cli import app as envoy_app
from serving.envoy.refusals import REFUSALS
from serving.gateway.cli import app
from serving.gateway.failures import FAILURES
from serving.gateway.metrics import PREFIX, Metrics
from serving.gateway.options import GatewayOptions

PAGE = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()


def rows(*header: str) -> list[list[str]]:
    """The cells of the table with this header."""
    lines = PAGE.split("| " + " | ".join(header) + " |\n")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_status_is_on_the_page() -> None:
    found = {cells[0].strip("`"): cells[1:] for cells in rows("reason", "status", "when") if cells[0] != "(none)"}
    expected = {
        reason: [f"`{failure.code}`", failure.meaning + (" Retry." if failure.retry else "")]
        for reason, failure in FAILURES.items()
    }
    assert found == expected


def test_every_refusal_of_envoy_is_on_the_page() -> None:
    found = {cells[0]: cells[1:] for cells in rows("HTTP", "status", "when") if cells[0] != "(none)"}
    assert found == {str(status): [f"`{each.code}`", each.meaning] for status, each in REFUSALS.items()}


def test_every_flag_of_envoy_is_on_the_page() -> None:
    command = typer.main.get_command(envoy_app).commands["envoy"]  # type: ignore[attr-defined]
    section = PAGE.split("## In front of strangers\n")[1].split("\n## ")[0]
    for each in command.params:
        if each.param_type_name == "option" and each.name != "help":
            assert re.search(rf"(?<![\w-]){each.opts[0]}(?![\w-])", section), each.opts[0]


def test_every_flag_is_on_the_page() -> None:
    command = typer.main.get_command(app).commands["gateway"]  # type: ignore[attr-defined]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    found = {cells[0].strip("`"): cells[1] for cells in rows("flag", "default", "meaning")}
    assert set(found) == {each.opts[0] for each in options}
    for each in options:
        if each.default not in (None, False):
            shown = f"{each.default:g}" if isinstance(each.default, float) else str(each.default)
            assert found[each.opts[0]].replace(",", "") == shown


def test_what_still_arrives_is_on_the_page() -> None:
    options = GatewayOptions()
    assert f"{options.calls * options.message_bytes / 2**30:.1f} GiB by default" in PAGE


def test_every_metric_is_on_the_page() -> None:
    found = {}
    for name, labels, meaning in rows("metric", "labels", "meaning"):
        found[name.strip("`")] = (re.findall(r"`(\w+)`", labels), meaning)
    expected = {}
    for collector in Metrics().registry._collector_to_names:
        metric: Any = collector
        if isinstance(collector, ProcessCollector):  # the page names it as a whole
            continue
        name = metric._name.removeprefix(PREFIX) + ("_total" if metric._type == "counter" else "")
        expected[name] = (list(metric._labelnames), f"{metric._type}: {metric._documentation}")
    assert found == expected


def test_every_status_of_the_code_is_used_and_documented_once() -> None:
    source = "\n".join(path.read_text() for path in (Path(__file__).parents[3] / "serving" / "gateway").glob("*.py"))
    for reason in FAILURES:
        assert len(re.findall(rf"\b{reason}\b", source)) > 2, f"nothing gives {reason}"
