"""What is seen of `fieldmark serve` as a whole: one trace through all its processes, one log, what was replaced."""

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider

import fieldmark
from bundle import Bundle
from serving.gateway.client import FieldmarkClient
from serving.gateway.tally import Tally, read_tally
from serving.upkeep.cli import as_json
from tests.serving.gateway.collector import Collector, collecting
from tests.serving.gateway.gateway_thread import encode
from tests.serving.upkeep.test_upkeep import Served, serving

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle, collector: Collector) -> Iterator[Served]:
    options = ("--verbose", "--triton-otlp", collector.url, "--", "--otlp", collector.address)
    with serving(toy_bundle, *options, environment={"OTEL_BSP_SCHEDULE_DELAY": "200"}) as running:
        yield running


def replaced(served: Served) -> dict[str, float]:
    """What the metrics say of it; nothing while the gateway itself is being replaced."""
    try:
        with urllib.request.urlopen(served.facts["gateway_metrics_url"], timeout=5) as page:
            text = page.read().decode()
    except OSError:
        return {}
    pattern = r'^fieldmark_gateway_replaced_total\{who="(.+)"\} (\S+)$'
    return {who: float(count) for who, count in re.findall(pattern, text, re.MULTILINE)}


@pytest.mark.triton
def test_one_trace_through_every_process(served: Served, collector: Collector) -> None:
    tracer = TracerProvider().get_tracer("application")
    jobs: dict[str, str] = {}

    def call_once() -> str:
        with FieldmarkClient(served.facts["url"]) as client, tracer.start_as_current_span("job") as job:
            client.classify(GOOD, network="full")
        context = job.get_span_context()
        jobs[f"{context.trace_id:032x}"] = f"{context.span_id:016x}"
        return f"{context.trace_id:032x}"

    trace = collector.insist(call_once)
    names = ("fieldmark.v1.Fieldmark/Classify", "triton", "InferRequest")
    call, asked, request = (collector.wait_for(name, where=lambda span: span.trace == trace)[0] for name in names)
    assert [span.parent for span in (call, asked, request)] == [jobs[trace], call.id, asked.id]
    assert (call.service, request.service) == ("fieldmark-gateway", "triton")
    served.wait_for(lambda: len(served.events("request")) == len(jobs))
    assert [line["trace_id"] for line in served.events("request")] == list(jobs)


@pytest.mark.triton
def test_what_was_replaced_is_counted_beyond_the_gateways_own_end(served: Served) -> None:
    nothing = {"tritonserver": 0, "the gateway": 0, "network 'full'": 0, "network 'attention'": 0}
    served.wait_for(lambda: replaced(served))
    assert replaced(served) == nothing
    os.kill(served.facts["gateway_pid"], signal.SIGKILL)
    served.wait_for(lambda: replaced(served) == {**nothing, "the gateway": 1})
    # And all that was told meanwhile, by whichever process, is JSON and has its time.
    lines = [json.loads(line) for line in served.lines]
    assert {"started", "network", "triton", "trouble", "replaced"} <= {line["event"] for line in lines}
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$", line["time"]) for line in lines)


def test_a_line_that_is_no_json_becomes_some() -> None:
    line = '{"event": "request"}'
    assert as_json("gateway", line) == line
    found = json.loads(as_json("gateway", 'Traceback: "x" \u00e9'))
    assert (found["event"], found["text"]) == ("gateway", 'Traceback: "x" \u00e9')


def test_a_tally_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    file = tmp_path / "counts"
    tally = Tally(file, ("a", "b"))
    tally.count("a")
    tally.count("c")
    assert read_tally(file) == {"a": 1, "b": 0, "c": 1}
    for text in ("", "[1]", '{"a": "x"}', '{"a": null}', "\x00"):
        file.write_text(text)
        assert read_tally(file) == {}
    file.unlink()
    assert read_tally(file) == {}
    file.mkdir()
    tally.count("a")  # the figure is lost, and nobody is harmed


@pytest.mark.hostile
def test_a_url_that_is_none(toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["serve", str(toy_bundle.path), "--triton-otlp", "localhost:4318"])
    assert ended.value.code == 2
    assert "--triton-otlp 'localhost:4318' is not the URL of a collector" in capsys.readouterr().err
