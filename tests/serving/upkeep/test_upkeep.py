"""`fieldmark serve` keeps itself up: every process killed or halted under a real Triton, and what callers see."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import typer

from bundle import Bundle, tensors
from bundle.errors import EndpointError, RequestRefused, ServerError
from serving.client.remote import TritonInference
from serving.gateway.calls import Retries
from serving.gateway.client import FieldmarkClient
from serving.processes import command_of, group
from serving.triton.server import TritonServer
from serving.upkeep.cli import _announce, serve
from serving.upkeep.keeper import CALM_SECONDS, PATIENCE_SECONDS, BackOff, Trouble, keep
from serving.upkeep.watch import TritonWatch, patience
from tests.serving.gateway.gateway_thread import encode
from tests.serving.upkeep.served import FREE, GOOD, ROOT, SECONDS, Caller, Served, gateway_pid, serving


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle) -> Iterator[Served]:
    with serving(toy_bundle) as running:
        yield running
    assert running.process.returncode == 0


@pytest.mark.triton
@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "its worker process: killed by SIGKILL"),
        (signal.SIGSEGV, "its worker process: killed by SIGSEGV"),
        (signal.SIGSTOP, "its worker process is halted, for "),
    ],
)
def test_a_worker_is_replaced_and_the_other_network_never_notices(served: Served, number: int, cause: str) -> None:
    before, told = served.stub("full"), len(served.events("replaced"))
    served.wait_for(lambda: served.answers("full"))
    with Caller(served, "attention") as caller:
        os.kill(before, number)
        # A dead worker may be replaced before anybody looks; one that is halted is waited for, and health says so.
        gone = (lambda: False) if number == signal.SIGSTOP else (lambda: len(served.events("replaced")) > told)
        served.wait_for(lambda: served.health("full") == "NOT_SERVING" or gone())
        assert served.health("attention") == "SERVING"
        served.wait_for(lambda: len(served.events("replaced")) > told)
        served.wait_for(lambda: served.answers("full") and served.health("full") == "SERVING")
        enough = caller.answered + 3
        served.wait_for(lambda: caller.answered > enough)
    assert caller.failed == []
    assert served.stub("full") != before
    trouble = served.events("trouble")[-1]
    assert trouble["who"] == "network 'full'"
    assert cause in trouble["cause"]
    assert "note" not in served.events("replaced")[-1]
    assert os.path.exists(f"/proc/{served.facts['triton_pid']}"), "the server was replaced with it"


@pytest.mark.triton
@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "no answer for")]
)
def test_a_gateway_is_replaced_at_the_same_port(served: Served, number: int, cause: str) -> None:
    told = len(served.events("replaced"))
    os.kill(gateway_pid(served), number)
    served.wait_for(lambda: len(served.events("replaced")) > told)
    served.wait_for(lambda: all(served.answers(network) for network in tensors.NETWORKS))
    trouble = served.events("trouble")[-1]
    assert trouble["who"] == "the gateway"
    assert trouble["cause"].startswith(cause)


@pytest.mark.triton
def test_one_halted_worker_of_two_is_replaced_though_the_other_answers(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.triton.server.available_cores", lambda: 8)  # two instances of each network
    with TritonServer(toy_bundle, grpc_port=0, metrics_port=0) as server:
        watch = TritonWatch(server)
        before, other = server.workers("full"), server.workers("attention")
        assert (len(before), watch.look()) == (2, [])
        os.kill(min(before), signal.SIGSTOP)
        deadline = time.monotonic() + SECONDS
        while not (troubles := watch.look()) and time.monotonic() < deadline:
            time.sleep(0.5)
        (trouble,) = troubles
        assert (trouble.who, trouble.cause[:29]) == ("network 'full'", "its worker process is halted,")
        assert trouble.mend(lambda: False) == ""
        assert watch.look() == []
        assert min(before) not in server.workers("full")
        assert server.workers("attention") == other
        watch.close()


@pytest.mark.triton
def test_a_killed_server_after_one_bad_request_is_named_by_what_killed_it(toy_bundle: Bundle) -> None:
    """An older line of its log is not the cause. It comes back where it was."""
    with serving(toy_bundle) as served:
        with TritonInference.connect(served.facts["grpc_url"]) as client, pytest.raises(EndpointError):
            client._call("infer", "full", [])
        os.kill(served.facts["triton_pid"], signal.SIGKILL)
        served.wait_for(lambda: served.events("replaced"))
        (trouble,) = served.events("trouble")
        assert (trouble["who"], trouble["cause"]) == ("tritonserver", "killed by SIGKILL")
        assert served.events("replaced")[0]["note"] == "the whole server, with every network"
        served.wait_for(lambda: all(served.answers(network) for network in tensors.NETWORKS))
        with TritonInference.connect(served.facts["grpc_url"], expect_bundle=toy_bundle.bundle_id):
            pass


@pytest.mark.triton
def test_a_halted_server_is_replaced(toy_bundle: Bundle) -> None:
    with serving(toy_bundle) as served:
        os.kill(served.facts["triton_pid"], signal.SIGSTOP)
        served.wait_for(lambda: served.health("full") == "NOT_SERVING")
        served.wait_for(lambda: served.events("replaced"))
        assert served.events("trouble")[0]["cause"].startswith("no answer for")
        served.wait_for(lambda: all(served.answers(network) for network in tensors.NETWORKS))


@pytest.mark.triton
def test_drained_on_sigterm(toy_bundle: Bundle) -> None:
    """What is in work is answered, what is new is refused, and then nothing is left."""
    slow = encode(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8), "JPEG")
    answered: list[str] = []
    refused: list[str] = []

    def call() -> None:
        with FieldmarkClient(served.facts["url"], retries=Retries(attempts=1)) as client:
            while True:
                try:
                    answered.append(client.classify(slow).network)
                except RequestRefused as problem:
                    refused.append(problem.reason or str(problem))
                    return

    with serving(toy_bundle) as served:
        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        served.wait_for(lambda: len(answered) > 8)
        served.process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join(timeout=SECONDS)
        assert served.process.wait(timeout=SECONDS) == 0
    served.join()
    (stopping,) = served.events("stopping")
    assert stopping["in_work"] > 0
    events = [json.loads(line) for line in served.lines]
    after = [each["code"] for each in events[events.index(stopping) :] if each["event"] == "request"]
    assert after.count("OK") >= stopping["in_work"]
    assert len(answered) == sum(each["code"] == "OK" for each in served.events("request"))
    assert len(refused) == len(callers)
    gone = ("is not available", "no server answers")  # a moment before its port is closed, and after
    assert all(reason == "STOPPING" or any(each in reason for each in gone) for reason in refused), refused
    assert not group(served.facts["triton_pid"])


@pytest.mark.triton
def test_a_drain_does_not_wait_for_ever(toy_bundle: Bundle) -> None:
    with serving(toy_bundle, "--drain-seconds", "1") as served, FieldmarkClient(served.facts["url"]) as client:
        os.kill(served.stub("full"), signal.SIGSTOP)
        failed: list[RequestRefused] = []

        def call() -> None:
            with contextlib.suppress(RequestRefused):
                client.classify(GOOD, network="full")
            failed.append(RequestRefused("ended"))

        waiting = threading.Thread(target=call)
        waiting.start()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=SECONDS) == 0
        waiting.join(timeout=SECONDS)
        assert failed
    assert not group(served.facts["triton_pid"])


def metric(served: Served, name: str) -> float:
    import urllib.request

    with urllib.request.urlopen(served.facts["gateway_metrics_url"], timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = [line.split()[-1] for line in lines if line.startswith(f"fieldmark_gateway_{name} ")]
    return float(values[0]) if values else 0.0


@pytest.mark.triton
def test_nobody_is_told_where_the_bundle_lies_and_http_is_off(served: Served, toy_bundle: Bundle) -> None:
    assert "http_url" not in served.facts
    from tritonclient import grpc as triton

    client = triton.InferenceServerClient(served.facts["grpc_url"])
    for network in tensors.NETWORKS:
        assert str(toy_bundle.path) not in str(client.get_model_config(network))


@pytest.mark.triton
def test_what_the_process_list_shows_opens_nothing(served: Served) -> None:
    """The value of the header stands among tritonserver's arguments, for everybody on the machine."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    command = command_of(served.facts["triton_pid"])
    name, _, value = command.split("--grpc-restricted-protocol=")[1].split()[0].rpartition(":")[2].partition("=")
    with grpc.insecure_channel(served.facts["grpc_url"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        header = (f"triton-grpc-protocol-{name.lower()}", value)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=(header,), timeout=10)
    assert "restricted" in refused.value.details()


@pytest.mark.triton
def test_systemd_hears_when_it_is_ready_that_it_lives_and_that_it_stops(toy_bundle: Bundle, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(SECONDS)
        heard: list[str] = []

        def listen() -> None:
            while "STOPPING=1" not in heard:
                heard.append(listener.recv(100).decode())

        ear = threading.Thread(target=listen)
        ear.start()
        with serving(toy_bundle, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as served:
            seen = len(heard)
            served.wait_for(lambda: "WATCHDOG=1" in heard[seen:])
        ear.join(timeout=SECONDS)
    assert [word for word in dict.fromkeys(heard) if word != "WATCHDOG=1"] == ["READY=1", "STOPPING=1"]


@pytest.mark.triton
@pytest.mark.hostile
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "can be reached by others"),
        (["--", "--concurrency", "0"], 2, "--concurrency 0 is not a positive number"),
        (["--", "--help"], 2, "the gateway has printed something else than where it listens"),
        (
            ["--no-gateway", "--", "--concurrency", "3"],
            2,
            "--concurrency is for the gateway, and --no-gateway is given",
        ),
        (["--no-gateway", "--quarantine", "q"], 2, "--quarantine is for the gateway, and --no-gateway is given"),
        (["--quarantine", "/dev/null"], 2, "/dev/null is no folder"),
        (["--audit-log", "/dev/null"], 2, "--audit-log /dev/null: not a regular file"),
    ],
)
def test_what_the_gateway_refuses_is_said_and_nothing_stays(
    toy_bundle: Bundle, options: list[str], code: int, words: str
) -> None:
    command = [sys.executable, "-m", "fieldmark", "serve", str(toy_bundle.path), "--json", *FREE, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (run.returncode, run.stdout) == (code, "")
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


# Patience


def test_the_first_replacement_is_immediate_and_the_next_ones_wait() -> None:
    back_off, now, waits = BackOff(), 0.0, []
    for _ in range(8):
        assert back_off.due(now)
        waits.append(back_off.tried(now, now))
        assert not back_off.due(now + waits[-1] - 0.01)
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert back_off.tried(now + CALM_SECONDS + 1, now + CALM_SECONDS + 2) == 1


def test_a_slow_network_is_given_as_long_as_its_largest_batch_takes() -> None:
    assert patience(0.001) == PATIENCE_SECONDS
    assert patience(0.18) == pytest.approx(2 * 64 * 0.18)


class Lame:
    """A service that is never well, and cannot be replaced the first time."""

    def __init__(self) -> None:
        self.tries = 0

    def look(self) -> list[Trouble]:
        return [Trouble(who="it", cause="lame", mend=self.mend)]

    def mend(self, stopped: Callable[[], bool]) -> str:
        self.tries += 1
        if self.tries == 1:
            raise ServerError("its port is taken")
        return "crutches"


def test_what_cannot_be_replaced_is_tried_again_and_the_other_is_looked_at_meanwhile() -> None:
    told: list[tuple[str, dict[str, object]]] = []
    lame, well = Lame(), Lame()
    looks = []
    well.look = lambda: looks.append(len(told)) or []  # type: ignore[method-assign, func-returns-value]
    keep([lame, well], lambda: lame.tries == 2, lambda event, facts: told.append((event, facts)))
    assert told[:3] == [
        ("trouble", {"who": "it", "cause": "lame"}),
        ("not_replaced", {"who": "it", "cause": "its port is taken", "again_seconds": 1.0}),
        ("trouble", {"who": "it", "cause": "lame"}),
    ]
    assert len(looks) >= 2


# What is said


def test_the_whole_bundle_id_is_said_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    facts = {
        "grpc_url": "unix:/x",
        "metrics_url": "http://x",
        "bundle_id": "0123456789abcdef" * 4,
        "triton_version": "2",
    }
    manifest = SimpleNamespace(name="birds", networks=("full", "attention"))
    served: Any = SimpleNamespace(
        facts=lambda: facts, server=SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))
    )
    _announce(served, False)
    said = capsys.readouterr().out
    assert facts["bundle_id"] in re.sub(r"[│\s]", "", said)
    assert "…" not in said


# The page


def test_the_page_has_every_flag_and_event() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    command: Any = typer.main.get_command(app)
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    flags = {name for each in command.params for name in each.opts if name.startswith("--")}
    assert {name for name in flags if f"`{name}`" not in page} == set()
    for event in ("trouble", "replaced", "not_replaced"):
        assert f"| `{event}` |" in page
