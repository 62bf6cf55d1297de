"""deploy/kubernetes: rendered by kubectl, checked against the cluster's schemas, and held against what it starts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest

from serving.envoy.keys import read_keys
from serving.envoy.limits import HEAP_BYTES
from serving.envoy.routes import HEALTH_PATH
from serving.gateway.handlers import SERVICE
from serving.gateway.metrics import STAGES, Metrics
from serving.triton import container as image
from serving.triton import probe
from serving.triton.server import STOP_SECONDS
from serving.upkeep.gateway import MARGIN_SECONDS
from tests.deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    containers,
    gateway_of,
    objects,
    pod,
    quantity,
    render,
)
from tests.deploy.started import flags, modules, parse

VERSION = "1.37"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
GIB = 2**30
ADAPTER = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"][0]

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@every_overlay
def test_the_cluster_takes_it(overlay: str) -> None:
    for each in objects(overlay).values():
        kubernetes_validate.validate(each, VERSION, strict=True)


def test_the_cluster_would_not_take_a_slip_of_the_pen() -> None:
    slip = json.loads(json.dumps(objects("cpu")["Deployment"]))
    slip["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(slip, VERSION, strict=True)


@every_overlay
def test_a_pod_may_do_nothing_that_it_need_not(overlay: str) -> None:
    found = pod(overlay)
    assert objects(overlay)["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert found["automountServiceAccountToken"] is False
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found)
    assert not any("hostPath" in volume for volume in found["volumes"])
    for each in containers(overlay):
        locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert each["securityContext"] == locked


@every_overlay
def test_the_user_is_the_images(overlay: str) -> None:
    users = re.findall(r"^USER (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    context = pod(overlay)["securityContext"]
    assert set(users) == {f"{context['runAsUser']}:{context['runAsGroup']}"}
    assert context["fsGroup"] == context["runAsGroup"]  # whose secrets it may read


@every_overlay
def test_all_containers_are_one_image_of_the_target(overlay: str) -> None:
    (name,) = {each["image"] for each in containers(overlay)}
    target = "gpu" if overlay == "gpu" else "cpu"
    assert name.rpartition(":")[0].endswith(f"/fieldmark-{target}")
    assert re.search(rf"^FROM .* AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


@every_overlay
def test_whatever_is_asked_or_let_through_is_a_port_that_there_is(overlay: str) -> None:
    ports = {each["name"]: each["containerPort"] for each in gateway_of(overlay)["ports"]}
    asked = parse(gateway_of(overlay)["args"])
    assert set(ports.values()) == {asked.port, asked.metrics_port}
    assert (asked.host, asked.metrics_host) == ("0.0.0.0", "0.0.0.0")
    for name in PROBES:
        ask = gateway_of(overlay)[name]
        if "grpc" in ask:
            assert ask["grpc"]["port"] == ports["grpc"]
            assert ask["grpc"].get("service", "") in ("", SERVICE)
        else:
            assert ask["httpGet"]["port"] in ports
    services = [each["targetPort"] for each in objects(overlay)["Service"]["spec"]["ports"]]
    rules = objects(overlay)["NetworkPolicy"]["spec"]["ingress"]
    assert set(services) | {"metrics"} == set(ports)
    assert {each["port"] for rule in rules for each in rule["ports"]} == set(ports)


@every_overlay
def test_the_policy_is_for_our_pods_and_nothing_goes_out(overlay: str) -> None:
    policy = objects(overlay)["NetworkPolicy"]["spec"]
    labels = objects(overlay)["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert objects(overlay)["Service"]["spec"]["selector"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    open_to_all = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert open_to_all == ([[{"port": "https"}]] if overlay == "strangers" else [])


@every_overlay
def test_what_runs_by_module_is_there(overlay: str) -> None:
    for each in containers(overlay):
        commands = [each.get("command", [])] + [
            each[name].get("exec", {}).get("command", []) for name in each if name in PROBES
        ]
        assert all(file.is_file() for command in commands for file in modules(command))


def test_triton_starts_first_and_nobody_but_the_pod_reaches_it(capsys: pytest.CaptureFixture[str]) -> None:
    (triton,) = pod("gpu")["initContainers"]
    assert triton["restartPolicy"] == "Always"  # a sidecar: it is there before the gateway, and until it has ended
    assert "ports" not in triton
    assert triton["command"][-1] == "serving.triton.container"
    words = image.command(Path("/models"))
    assert "--grpc-address=127.0.0.1" in words
    asked = triton["livenessProbe"]["exec"]["command"]
    assert asked[-1] == f"--url={gateway_of('gpu')['args'][1]}"
    assert probe.main([*asked[3:-1], "--url=127.0.0.1:9", "--timeout=2"]) == 1
    assert capsys.readouterr().err.startswith("unhealthy: no server answers")


@every_overlay
def test_there_is_time_to_end(overlay: str) -> None:
    pause = gateway_of(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = parse(gateway_of(overlay)["args"]).drain_seconds
    (triton,) = re.findall(r"--exit-timeout-secs=(\d+)", " ".join(image.command(Path("/models"))))
    needed = pause + drain + MARGIN_SECONDS + max(STOP_SECONDS, float(triton))
    assert pod(overlay)["terminationGracePeriodSeconds"] > needed


@every_overlay
def test_memory_holds_what_the_gateway_may_hold(overlay: str) -> None:
    """docs/gateway.md, under its flags: images that wait or are in work, and the pixels of those that are decoded."""
    options = parse(gateway_of(overlay)["args"])
    limits = gateway_of(overlay)["resources"]["limits"]
    a_network = options.queue_bytes + options.concurrency * options.image_bytes
    streams = options.queue_bytes + options.streams * options.image_bytes
    pixels = int(limits["cpu"]) * options.pixels * 3 * 2
    held = 2 * a_network + streams + pixels
    assert f"{held / GIB:.1f} GiB at most" in PAGE
    arriving = f"up to {options.calls * options.message_bytes / GIB:.1f} GiB"
    assert arriving in PAGE, "no limit holds those: the page says so"
    beside = 2 * GIB if overlay != "gpu" else 0  # Triton, with an instance of each network for four cores
    beside += HEAP_BYTES if overlay == "strangers" else 0
    assert held + beside < quantity(limits["memory"])


@every_overlay
def test_a_pod_has_what_it_asks_for_and_whole_cores(overlay: str) -> None:
    """Instances and threads are counted by the quota, which rounds down."""
    for each in containers(overlay):
        assert each["resources"]["limits"] == each["resources"]["requests"]
        assert int(each["resources"]["limits"]["cpu"]) >= 1
        mounts = {mount["mountPath"] for mount in each["volumeMounts"]}
        assert "/tmp" in mounts
    if overlay != "gpu":
        assert "/dev/shm" in mounts  # of the Python backend


@every_overlay
def test_the_autoscaler_says_how_many(overlay: str) -> None:
    found = objects(overlay)
    scaler, budget = found["HorizontalPodAutoscaler"]["spec"], found["PodDisruptionBudget"]["spec"]
    assert "replicas" not in found["Deployment"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert scaler["minReplicas"] > budget["maxUnavailable"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == ADAPTER["name"]["as"]
    assert quantity(metric["pods"]["target"]["averageValue"]) == pytest.approx(0.05)


def query() -> str:
    """The adapter's query as it asks it for every pod."""
    text = str(ADAPTER["metricsQuery"])
    for name, value in {
        "Series": "fieldmark_gateway_seconds_sum",
        "LabelMatchers": 'namespace="fieldmark"',
        "GroupBy": "pod",
    }.items():
        text = text.replace(f"<<.{name}>>", value)
    assert "<<" not in text
    return text


def test_it_scales_by_a_metric_that_the_gateway_has() -> None:
    metrics = Metrics()
    metrics.seconds.labels("queue").observe(0.1)
    exported = generate_latest(metrics.registry).decode()
    for name in re.findall(r"fieldmark_\w+", query() + ADAPTER["seriesQuery"]):
        assert re.search(rf'^{name}{{stage="queue"}} ', exported, re.MULTILINE), name
    assert "queue" in STAGES


def test_prometheus_makes_a_number_of_it_also_of_an_idle_pod(tmp_path: Path) -> None:
    """300 answers a minute that waited 100 ms each; a pod without callers; one answer a minute that waited a second."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("no promtool here (Debian's package prometheus)")
    series = []
    for name, seconds, count in (("busy", 30, 300), ("idle", 0, 0), ("seldom", 1, 1)):
        labels = f'{{stage="queue",namespace="fieldmark",pod="{name}"}}'
        series.append({"series": f"fieldmark_gateway_seconds_sum{labels}", "values": f"0+{seconds}x10"})
        series.append({"series": f"fieldmark_gateway_seconds_count{labels}", "values": f"0+{count}x10"})
    expected = [
        {"labels": f'{{pod="{name}"}}', "value": value}
        for name, value in (("busy", 0.1), ("idle", 0), ("seldom", 1 / 60))
    ]
    ask = {"expr": query(), "eval_time": "5m", "exp_samples": expected}
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [ask]}]})
    )
    run = subprocess.run(
        [promtool, "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_strangers_meet_tls_and_keys_and_nothing_else() -> None:
    args, found = gateway_of("strangers")["args"], flags(gateway_of("strangers")["args"])
    assert "--insecure" not in args
    assert found["health"]  # the node asks without a key
    for name in ("startupProbe", "readinessProbe"):
        assert gateway_of("strangers")[name]["httpGet"] == {"scheme": "HTTPS", "path": HEALTH_PATH, "port": "https"}
    # strangers can crowd the door, and must not have the pod killed by that
    assert gateway_of("strangers")["livenessProbe"]["httpGet"]["port"] == "metrics"
    mounted = {mount["name"]: mount["mountPath"] for mount in gateway_of("strangers")["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod("strangers")["volumes"]}
    for name, files in {"certificate": ("certificate", "certificate_key"), "keys": ("keys",)}.items():
        assert all(str(found[each].parent) == mounted[name] for each in files)
        assert volumes[name]["secret"]["defaultMode"] == 0o440


def test_keys_can_be_read_as_a_cluster_mounts_them(tmp_path: Path) -> None:
    """A link to a link to a file that its group may read."""
    (tmp_path / "..first").mkdir()
    file = tmp_path / "..first" / "keys"
    file.write_text(f"ann:{'k' * 32}\n")
    file.chmod(next(each for each in pod("strangers")["volumes"] if each["name"] == "keys")["secret"]["defaultMode"])
    (tmp_path / "..data").symlink_to("..first")
    (tmp_path / "keys").symlink_to("..data/keys")
    assert [each.name for each in read_keys(tmp_path / "keys")] == ["ann"]


def test_the_optional_monitor_finds_the_pods(tmp_path: Path) -> None:
    places = {name: os.path.relpath(KUBERNETES / name, tmp_path.resolve()) for name in ("overlays/cpu", "monitor")}
    kustomization = {"resources": [places["overlays/cpu"]], "components": [places["monitor"]], "namespace": "birds"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    found: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(render(tmp_path))}
    monitor, template = found["PodMonitor"], found["Deployment"]["spec"]["template"]
    assert monitor["metadata"]["namespace"] == found["Deployment"]["metadata"]["namespace"] == "birds"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    names = {each["name"] for each in template["spec"]["containers"][0]["ports"]}
    assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= names


def test_the_overlay_of_the_page_can_be_rendered(tmp_path: Path) -> None:
    (text,) = re.findall(r"<<END\n(.*?)\nEND\n", PAGE, re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(text.replace("../deploy", os.path.relpath(ROOT / "deploy", tmp_path)))
    found = {each["kind"]: each for each in yaml.safe_load_all(render(tmp_path))}
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/birds@sha256:..."


def test_the_page_names_what_there_is() -> None:
    assert {each.name for each in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)
    for name in (*OVERLAYS, *ADAPTER["name"].values()):
        assert f"`{name}`" in PAGE
    secrets = [each["secret"]["secretName"] for each in pod("strangers")["volumes"] if "secret" in each]
    assert all(f"create secret {kind} {name} " in PAGE for kind, name in zip(("tls", "generic"), secrets, strict=True))


def test_the_secrets_of_the_page_are_those_that_are_mounted(tmp_path: Path) -> None:
    """kubectl makes them as the page says, and shows them instead of sending them."""
    (block,) = re.findall(r"```\n(\(umask 077;.*?)```", PAGE, re.DOTALL)
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout server.key -out server.pem -days 1 -subj /CN=x"
    for line in (make, *block.splitlines()):
        words = f"{line} --dry-run=client --output=yaml" if line.startswith("kubectl") else line
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        run = subprocess.run(
            ["sh", "-c", words], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=environment
        )
        assert run.returncode == 0, run.stderr
        (tmp_path / "secrets.yaml").open("a").write(f"---\n{run.stdout}" if words != line else "")
    made = {each["metadata"]["name"]: each for each in yaml.safe_load_all((tmp_path / "secrets.yaml").read_text())}
    asked = flags(gateway_of("strangers")["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in gateway_of("strangers")["volumeMounts"]}
    there = {
        Path(mounted[volume["name"]]) / file
        for volume in pod("strangers")["volumes"]
        if "secret" in volume
        for file in made[volume["secret"]["secretName"]]["data"]
    }
    assert {asked[each] for each in ("certificate", "certificate_key", "keys")} == there
    assert {each["metadata"]["namespace"] for each in made.values()} == {"fieldmark"}
    (tmp_path / "keys").chmod(0o600)
    assert len(read_keys(tmp_path / "keys")) == 1
