"""The RayJob is rendered by kubectl; it is one of KubeRay's, its pods are valid pods, its command one of the verb's."""

import copy
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from scoring.cluster.connection import check_address
from scoring.score_cli import score

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    """By kind, as an API server would get it."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here")
    done = subprocess.run([kubectl, "kustomize", FOLDER], capture_output=True, text=True, check=True)
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    found = {"submitter": spec["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"]}
    return found | {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}


@pytest.fixture(scope="module")
def published() -> jsonschema.Draft202012Validator:
    """KubeRay's schema, as far as it concerns our job: no package of a registry carries all of it."""
    return jsonschema.Draft202012Validator(yaml.safe_load(Path(__file__).with_name("rayjob.schema.yaml").read_text()))


def test_it_is_a_job_of_kuberays(rendered: dict[str, Any], published: jsonschema.Draft202012Validator) -> None:
    assert [problem.message for problem in published.iter_errors(rendered["RayJob"])] == []


@pytest.mark.parametrize(
    ("at", "name", "value"),
    [
        (("spec",), "ttlSecondsAfterFinish", 600),
        (("spec",), "backoffLimit", "3"),
        (("spec", "rayClusterSpec"), "version", "2.59.0"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "replicas", 1),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplica", 50),
    ],
)
def test_a_slip_in_it_is_seen(
    rendered: dict[str, Any], published: jsonschema.Draft202012Validator, at: tuple[Any, ...], name: str, value: object
) -> None:
    job = copy.deepcopy(rendered["RayJob"])
    part = job
    for step in at:
        part = part[step]
    part[name] = value
    (problem,) = published.iter_errors(job)
    assert name in problem.message or list(problem.absolute_path) == [*at, name]


def test_every_pod_is_valid_and_closed(rendered: dict[str, Any]) -> None:
    found = templates(rendered["RayJob"])
    assert set(found) == {"submitter", "head", "workers"}
    for name, template in found.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        (container,) = template["spec"]["containers"]
        names = {each["name"] for each in container["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= names
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_nobody_else_reaches_its_ports(rendered: dict[str, Any]) -> None:
    policy = rendered["NetworkPolicy"]
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    for template in templates(rendered["RayJob"]).values():
        assert wanted <= template["metadata"]["labels"].items()


def test_its_command_is_one_that_the_verb_takes(rendered: dict[str, Any]) -> None:
    words = shlex.split(rendered["RayJob"]["spec"]["entrypoint"])
    assert words[:2] == ["fieldmark", "score"]
    app = typer.Typer()
    app.command()(score)
    context = typer.main.get_command(app).make_context("score", words[2:])
    assert context.params["table"].startswith("s3://")
    check_address(context.params["cluster"])
    (group,) = rendered["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == str(context.params["threads"]), "a worker fills its pod"


def test_its_ray_is_the_one_of_the_locks(rendered: dict[str, Any]) -> None:
    version = rendered["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert re.match(r"\d+\.\d+", version)[0] == ".".join(importlib.metadata.version("ray").split(".")[:2])  # type: ignore[index]
