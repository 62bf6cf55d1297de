"""`fieldmark serve --host 0.0.0.0`: Envoy before its gateway, kept up as everything else is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bundle import Bundle
from bundle.errors import RequestRefused
from serving.gateway.calls import Retries, Tls
from serving.gateway.client import FieldmarkClient
from serving.processes import command_of
from tests.serving.envoy.door import ANN
from tests.serving.gateway.gateway_thread import encode
from tests.serving.upkeep.served import FREE, ROOT, Served, gateway_pid, serving

GOOD = encode(np.full((40, 40, 3), 140, np.uint8))


@pytest.fixture(scope="module")
def guard(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{ANN.name}:{ANN.secret}\n")
    keys.chmod(0o600)
    pair = ["--certificate", str(certificates / "server.pem"), "--certificate-key", str(certificates / "server.key")]
    return [*pair, "--keys", str(keys)]


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle, guard: list[str]) -> Iterator[Served]:
    with serving(toy_bundle, "--host", "0.0.0.0", *guard, "--rate", "900", "--burst", "900") as running:
        yield running
    assert running.process.returncode == 0
    running.join()
    assert ANN.secret not in "".join(running.lines)


def answers(served: Served, certificates: Path, key: str = ANN.secret) -> bool:
    """Whether one call from outside, without another try, gets an answer."""
    url = served.facts["url"].replace("0.0.0.0", "127.0.0.1")
    tls = Tls(ca=certificates / "ca.pem")
    with FieldmarkClient(url, key=key, tls=tls, timeout=5, retries=Retries(attempts=1)) as client:
        try:
            return bool(client.classify(GOOD).predictions)
        except RequestRefused:
            return False


def envoy_pid(served: Served) -> int:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    (found,) = [int(pid) for pid in children if "envoy.json" in command_of(int(pid))]
    return found


@pytest.mark.triton
def test_who_has_a_key_is_answered_and_nobody_else(served: Served, certificates: Path) -> None:
    assert served.facts["url"].startswith("0.0.0.0:")
    assert served.facts["gateway_url"].startswith("127.0.0.1:")
    assert answers(served, certificates)
    assert not answers(served, certificates, "z" * 30)
    served.wait_for(lambda: served.events("access"))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "no answer for")]
)
def test_envoy_is_replaced_alone(served: Served, certificates: Path, number: int, cause: str) -> None:
    told, gateway, before = len(served.events("replaced")), gateway_pid(served), envoy_pid(served)
    os.kill(before, number)
    served.wait_for(lambda: len(served.events("replaced")) > told)
    trouble, replaced = served.events("trouble")[-1], served.events("replaced")[-1]
    assert (trouble["who"], trouble["cause"][: len(cause)]) == ("Envoy", cause)
    assert replaced["who"] == "Envoy"
    assert answers(served, certificates), "at once: its port is open when it is said to be replaced"
    assert (gateway_pid(served), envoy_pid(served) != before) == (gateway, True)


@pytest.mark.triton
def test_the_gateway_is_replaced_behind_it(served: Served, certificates: Path) -> None:
    """It is asked at its own address: Envoy's speaks TLS, and a gateway that is well must not be replaced for that."""
    told, envoy = len(served.events("replaced")), envoy_pid(served)
    os.kill(gateway_pid(served), signal.SIGSTOP)
    served.wait_for(lambda: len(served.events("replaced")) > told)
    assert served.events("trouble")[-1]["who"] == "the gateway"
    served.wait_for(lambda: answers(served, certificates))
    assert envoy_pid(served) == envoy
    troubles = len(served.events("trouble"))
    with pytest.raises(subprocess.TimeoutExpired):
        served.process.wait(timeout=9)  # longer than anything may be silent
    assert len(served.events("trouble")) == troubles


@pytest.mark.triton
@pytest.mark.hostile
@pytest.mark.parametrize(
    ("options", "left", "words"),
    [
        (["--host", "0.0.0.0"], 0, "can be reached by others"),
        (["--host", "0.0.0.0"], 4, "--keys is missing"),
        (["--insecure"], 6, "--insecure says that there are no keys"),
        (["--certificate", "/nowhere.pem"], 6, "/nowhere.pem: no such file"),
        (["--rate", "0"], 6, "--rate 0"),
        (["--rate", "5"], 0, "--rate is for Envoy"),
        (["--no-gateway", "--burst", "900"], 0, "--burst is for Envoy"),
        (["--no-gateway"], 6, "--keys is for the gateway"),
        (["--", "--keys", "keys"], 0, "--keys stands behind the --"),
        (["--", "--host=0.0.0.0"], 0, "--host stands behind the --"),
        (["--watch", "--grpc-port", "0"], 0, "--watch and --grpc-port do not go together"),
        (["--watch", "--http-port", "0"], 0, "--watch and --http-port do not go together"),
        (["--watch", "--no-gateway"], 0, "--watch and --no-gateway do not go together"),
        (["--key", "/nowhere.pem"], 0, "there is no key at /nowhere.pem"),
        (["--control", "/nowhere/orders"], 0, "/nowhere: no such file"),
        (["--control", str(ROOT)], 0, "is there already, and is no socket"),
    ],
    ids=str,
)
def test_what_is_refused_before_anybody_could_call(
    toy_bundle: Bundle, guard: list[str], options: list[str], left: int, words: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "fieldmark",
        "serve",
        str(toy_bundle.path),
        "--json",
        *FREE,
        *guard[:left],
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert run.returncode in (1, 2)
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.triton
def test_an_open_address_in_so_many_words(toy_bundle: Bundle) -> None:
    with serving(toy_bundle, "--host", "0.0.0.0", "--insecure", "--", "--concurrency", "8") as open_to_all:
        assert open_to_all.facts["url"].startswith("0.0.0.0:")
        with FieldmarkClient(open_to_all.facts["url"].replace("0.0.0.0", "127.0.0.1")) as client:
            assert client.classify(GOOD).predictions
