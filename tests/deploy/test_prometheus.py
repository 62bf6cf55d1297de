"""The dashboard and the alerts, held against what a real gateway and a real Triton export, by a real Prometheus."""

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from bundle import Bundle
from serving.envoy.expiry import expires, note_expiry
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.metrics import Metrics
from serving.gateway.retention import RetentionOptions
from serving.gateway.server import Gateway, free_port
from serving.gateway.tally import Tally
from serving.quarantine.options import QuarantineOptions
from serving.triton.server import TritonServer
from tests.conftest import draw_toy
from tests.serving.gateway.certificates import make_certificate
from tests.serving.gateway.gateway_thread import encode, running, stub_of

ROOT = Path(__file__).parents[2]
RULES, CONFIG = ROOT / "deploy" / "prometheus" / "alerts.yml", ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "fieldmark.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
OF_PROMETHEUS = {"up", "ALERTS"}
# What a bundle in the shadow will tell.
AWAITED = {"fieldmark_gateway_shadow_total", "fieldmark_gateway_shadow_differences_total"}
NAME = re.compile(r"\b(?:(?:fieldmark|nv|process)_\w+|up|ALERTS)\b(?=[{\[)\s]|$)")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here; Debian's package: prometheus")


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expression)))


def run(*command: str | Path) -> None:
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


# The files themselves


@promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    run("promtool", "check", "config", CONFIG)
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)


@promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    run("promtool", "test", "rules", Path(__file__).with_name("alerts_test.yml"))
    tested = Path(__file__).with_name("alerts_test.yml").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tested] == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert told["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
    section = PAGE.split(f"## {rule['alert']}\n")[1].split("\n## ")[0]
    assert len(section.split()) > 20, "and the page has a section of its name, which says something"


def test_the_page_has_no_alert_that_there_is_not() -> None:
    assert re.findall(r"^## (Fieldmark\w+)$", PAGE, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_has_a_title_a_unit_and_a_meaning(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert "$job" in target["expr"] or "ALERTS" in target["expr"]
        assert panel["type"] == "stat" or target["legendFormat"]


def test_panels_stand_beside_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        cells |= taken


def test_variables_that_panels_use_are_there() -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == {each["name"] for each in DASHBOARD["templating"]["list"]}


def test_what_people_are_paged_for_is_on_the_dashboard() -> None:
    shown = set().union(*(names(target["expr"]) for panel in PANELS for target in panel["targets"]))
    shown |= set().union(*(names(each.get("expr", "")) for each in DASHBOARD["annotations"]["list"]))
    paged = set().union(*(names(rule["expr"]) for rule in ALERTS))
    assert {name.removesuffix("_bucket") for name in paged - OF_PROMETHEUS} <= {
        name.removesuffix("_bucket") for name in shown
    }


def test_the_dashboards_shape_is_grafanas() -> None:
    """Read into the types that Grafana publishes and written again, nothing of it is lost: no key is misspelt."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    for part in ("panels", "templating", "time", "title", "uid", "schemaVersion"):
        assert lost(DASHBOARD[part], written[part], part) == []


def lost(before: Any, after: Any, place: str) -> list[str]:
    """Where the second lacks something of the first."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [each for key, value in before.items() for each in lost(value, after.get(key), f"{place}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [each for pair in zip(before, after, strict=True) for each in lost(*pair, place)]
    return [] if before == after else [place]


# Against what is really exported


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A gateway and its Triton after some traffic, and the Prometheus that scrapes them."""

    gateway: Gateway
    triton: TritonServer
    prometheus: str
    seeds: Iterator[int]  # of clean images, none of them sent twice: that would look like drift

    @property
    def exported(self) -> set[str]:
        """The names of every metric at the two endpoints."""
        found = set()
        for url in (f"http://127.0.0.1:{self.gateway.metrics_port}/metrics", self.triton.metrics_url):
            with urllib.request.urlopen(url, timeout=10) as page:
                found |= set(re.findall(r"^(\w+)[{ ]", page.read().decode(), re.MULTILINE))
        return found

    def ask(self, path: str, **query: str) -> Any:
        """What Prometheus answers."""
        url = f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as page:
            return json.load(page)["data"]

    def call(self) -> None:
        """Traffic of every kind."""
        with stub_of(self.gateway) as stub:
            images = [encode(draw_toy(label, next(self.seeds))) for label in range(5)]
            for network in ("full", "attention"):
                for image in images:
                    stub.Classify(v1.ClassifyRequest(image=image, network=network))
            with pytest.raises(grpc.RpcError):
                stub.Classify(v1.ClassifyRequest(image=b"none"))
            request = v1.ClassifyStreamRequest(request=v1.ClassifyRequest(image=encode(draw_toy(0, next(self.seeds)))))
            assert len(list(stub.ClassifyStream(iter([request])))) == 1


@pytest.fixture(scope="module")
def watched(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    make_certificate(folder, "server", hours=1000)
    tally = Tally(folder / "replaced.json", ("tritonserver",))
    retention = RetentionOptions(quarantine=QuarantineOptions(root=str(folder / "quarantine")))
    options: dict[str, Any] = {"replaced": tally.path, "expiry": (folder / "server.pem",), "probe_seconds": 0.5}
    with (
        TritonServer(toy_bundle, grpc_port=0, metrics_port=0) as triton,
        running(triton.grpc_url, bundle=toy_bundle, retention=retention, **options) as gateway,
        prometheus(folder, {8011: gateway.metrics_port, 8002: triton.metrics_port}) as url,
    ):
        found = Watched(gateway=gateway, triton=triton, prometheus=url, seeds=itertools.count(5000))
        deadline = time.monotonic() + 60
        while not found.ask("query", query='count_over_time(up{job="fieldmark"}[1m]) > 5')["result"]:
            assert time.monotonic() < deadline
            found.call()
        yield found


@contextlib.contextmanager
def prometheus(folder: Path, ports: dict[int, int]) -> Iterator[str]:
    """The URL of a Prometheus with the files of deploy/, but for the ports and how often it looks."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here; Debian's package: prometheus")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    for job in config["scrape_configs"]:
        for static in job["static_configs"]:
            static["targets"] = [f"127.0.0.1:{ports[int(each.rpartition(':')[2])]}" for each in static["targets"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([binary, *flags, f"--web.listen-address={address}"], stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not ready(address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def ready(address: str) -> bool:
    try:
        urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.triton
def test_every_metric_that_is_asked_for_is_exported(watched: Watched) -> None:
    asked = set().union(*(names(target["expr"]) for panel in PANELS for target in panel["targets"]))
    asked |= set().union(*(names(rule["expr"]) for rule in ALERTS))
    assert len(asked) > 30
    assert asked - watched.exported - OF_PROMETHEUS - AWAITED == set()


@pytest.mark.triton
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_a_panel_shows_something(watched: Watched, panel: dict[str, Any]) -> None:
    values = {"$job-triton": "fieldmark-triton", "$job": "fieldmark", "$instance": ".*", "$network": ".*"}
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "1m")
        for name, value in values.items():
            expression = expression.replace(name, value)
        found = watched.ask("query", query=expression)["result"]  # an error would raise
        if not names(expression) & (AWAITED | {"ALERTS"}):
            assert found, expression
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert any(label in series["metric"] for series in found), (expression, label)


@pytest.mark.triton
def test_variables_find_something(watched: Watched) -> None:
    for each in DASHBOARD["templating"]["list"][1:]:
        inside = each["query"]["query"].removeprefix("label_values(").removesuffix(")")
        series, _, label = inside.rpartition(", ")
        series = series.replace("$job", "fieldmark").replace("$instance", ".*")
        assert watched.ask(f"label/{label}/values", **{"match[]": series}), each["name"]


@pytest.mark.triton
def test_every_rule_is_evaluated_and_none_fires_on_a_good_day(watched: Watched) -> None:
    deadline = time.monotonic() + 30
    while True:
        rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
        if rules and all(rule["health"] != "unknown" for rule in rules):
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []
    assert len(rules) == len(ALERTS)


@pytest.mark.triton
def test_the_certificate_and_what_was_replaced_are_shown(watched: Watched, tmp_path: Path) -> None:
    (left,) = watched.ask("query", query="fieldmark_gateway_certificate_expires - time()")["result"]
    assert left["metric"]["file"] == "server.pem"
    assert 999 * 3600 < float(left["value"][1]) < 1001 * 3600
    (count,) = watched.ask("query", query="fieldmark_gateway_replaced_total")["result"]
    assert (count["metric"]["who"], count["value"][1]) == ("tritonserver", "0")


@pytest.mark.parametrize("first", ["certificate", "client_ca"])
def test_of_two_files_of_one_name_the_first_end_counts(tmp_path: Path, first: str) -> None:
    files = [tmp_path / place / "tls.pem" for place in ("certificate", "client_ca")]  # as the gateway is given them
    for file in files:
        file.parent.mkdir()
        make_certificate(file.parent, "tls", hours=5 if file.parent.name == first else 9)
    metrics = Metrics()
    note_expiry(metrics, files)
    found = metrics.registry.get_sample_value("fieldmark_gateway_certificate_expires", {"file": "tls.pem"})
    assert found == expires(tmp_path / first / "tls.pem")


def test_of_a_chain_the_first_end_counts(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path, "ca", hours=5)
    make_certificate(tmp_path, "server", authority, hours=9)
    chain = tmp_path / "chain.pem"
    chain.write_bytes((tmp_path / "server.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes())
    assert expires(chain) == expires(tmp_path / "ca.pem")
    chain.write_text("no certificate")
    assert expires(chain) is None
    assert expires(tmp_path / "none.pem") is None
