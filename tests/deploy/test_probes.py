"""What the overlays start is started here with the same words, and asked what a kubelet would ask it."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bundle import Bundle
from serving.triton.server import TritonServer
from serving.upkeep.keeper import PATIENCE_SECONDS
from tests.deploy.manifests import ROOT, gateway_of
from tests.serving.gateway.certificates import make_certificate

pytestmark = pytest.mark.triton

ELSEWHERE = "127.0.0.2"  # an address of this machine that is not the loopback the gateway has by itself
FREE = {
    "serve": ["--port=0", "--grpc-port=0", "--metrics-port=0", "--gateway-metrics-port=0", "--json"],
    "gateway": ["--port=0", "--metrics-port=0", "--json"],
}


@contextlib.contextmanager
def started(overlay: str, places: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The overlay's command on free ports, `places` of this machine for those of the pod; what it says when ready."""
    verb, *words = gateway_of(overlay)["args"]
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    own = words.index("--") if "--" in words else len(words)
    command = [sys.executable, "-m", "fieldmark", verb, *words[:own], *FREE[verb], *words[own:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            pytest.fail(process.communicate()[1])
        yield json.loads(line)
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def well(probe: dict[str, Any], ports: dict[str, int]) -> bool:
    """Whether a probe succeeds, as a kubelet sees it; `ports` by the names that the pod gives them."""
    if "grpc" in probe:
        with grpc.insecure_channel(f"{ELSEWHERE}:{ports['grpc']}") as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    asked = probe["httpGet"]
    url = f"{asked.get('scheme', 'HTTP').lower()}://{ELSEWHERE}:{ports[asked['port']]}{asked['path']}"
    unverified = ssl._create_unverified_context()
    with urllib.request.urlopen(url, timeout=probe["timeoutSeconds"], context=unverified) as page:
        return bool(page.status == 200)


def all_well(overlay: str, facts: dict[str, Any]) -> None:
    """Every probe of the overlay, and the metrics."""
    metrics = facts.get("gateway_metrics_url", facts["metrics_url"])
    ports = dict.fromkeys(("grpc", "https"), int(facts["url"].rpartition(":")[2]))
    ports["metrics"] = int(metrics.removesuffix("/metrics").rpartition(":")[2])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert well(gateway_of(overlay)[name], ports), name
    with urllib.request.urlopen(f"http://{ELSEWHERE}:{ports['metrics']}/metrics", timeout=10) as page:
        assert b'fieldmark_gateway_serving{network="full"} 1.0' in page.read()


def test_one_container(toy_bundle: Bundle) -> None:
    with started("cpu", {"/bundle": str(toy_bundle.path)}) as facts:
        all_well("cpu", facts)


def test_a_gateway_beside_triton(toy_bundle: Bundle) -> None:
    with TritonServer(toy_bundle, grpc_port=0, metrics_port=0) as triton:
        places = {"/bundle": str(toy_bundle.path), "127.0.0.1:8001": triton.grpc_url}
        with started("gpu", places) as facts:
            all_well("gpu", facts)


def test_envoy_before_strangers(toy_bundle: Bundle, tmp_path: Path) -> None:
    """The secrets as a cluster mounts them: links to files that the pod's group may read."""
    make_certificate(tmp_path, "server")
    mounts = {mount["name"]: mount["mountPath"] for mount in gateway_of("strangers")["volumeMounts"]}
    contents = {
        "certificate": {
            name: (tmp_path / f"server.{kind}").read_bytes() for name, kind in (("tls.crt", "pem"), ("tls.key", "key"))
        },
        "keys": {"keys": f"ann:{'k' * 32}\n".encode()},
    }
    for name, files in contents.items():
        folder = tmp_path / name
        (folder / "..first").mkdir(parents=True)
        (folder / "..data").symlink_to("..first")
        for file, data in files.items():
            (folder / "..first" / file).write_bytes(data)
            (folder / "..first" / file).chmod(0o440)
            (folder / file).symlink_to(f"..data/{file}")
    places = {"/bundle": str(toy_bundle.path)} | {mounts[name]: str(tmp_path / name) for name in contents}
    with started("strangers", places) as facts:
        all_well("strangers", facts)
        time.sleep(3 * PATIENCE_SECONDS)  # and it is not taken for a hung one
        all_well("strangers", facts)
