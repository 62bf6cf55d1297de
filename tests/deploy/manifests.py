"""What Kubernetes gets: every overlay rendered by the real kubectl, and the parts of it that tests ask about."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "strangers")
_UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}


def render(folder: Path) -> str:
    """What `kubectl apply -k` would send; raises CalledProcessError with kubectl's words."""
    command = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@functools.cache
def rendered(overlay: str) -> str:
    """One overlay as YAML."""
    return render(KUBERNETES / "overlays" / overlay)


def objects(overlay: str) -> dict[str, Any]:
    """kind -> object; no overlay has two of a kind."""
    found = list(yaml.safe_load_all(rendered(overlay)))
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def pod(overlay: str) -> dict[str, Any]:
    """The pod of the deployment."""
    spec: dict[str, Any] = objects(overlay)["Deployment"]["spec"]["template"]["spec"]
    return spec


def containers(overlay: str) -> Iterator[dict[str, Any]]:
    """Every container of the pod, sidecars first."""
    yield from (*pod(overlay).get("initContainers", ()), *pod(overlay)["containers"])


def gateway_of(overlay: str) -> dict[str, Any]:
    """The container that answers fieldmark.v1."""
    (found,) = pod(overlay)["containers"]
    container: dict[str, Any] = found
    return container


def quantity(text: str) -> float:
    """A quantity such as 8Gi or 50m."""
    digits = text.rstrip("mMGi")
    return float(digits) * _UNITS[text[len(digits) :]]
