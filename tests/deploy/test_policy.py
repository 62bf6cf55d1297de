"""What checkov says of the images and of what Kubernetes gets, from an environment of its own (.venv-policy)."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import OVERLAYS, ROOT, rendered

CHECKOV = ROOT / ".venv-policy" / "bin" / "python"


@pytest.fixture
def look() -> list[str]:
    """The command, up to the folder that it is to look at. It asks nobody outside for anything."""
    if not CHECKOV.exists():
        pytest.skip("no .venv-policy here; 'make test' makes it")
    return [str(CHECKOV), "-m", "checkov.main", "--skip-download", "--compact", "--quiet", "--directory"]


def test_nothing_is_to_be_said_against_it(look: list[str], tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(rendered(overlay))
    (tmp_path / "Dockerfile").write_text((ROOT / "Dockerfile").read_text())
    run = subprocess.run([*look, tmp_path], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout
    assert "Failed checks: 0, Skipped checks: 3" in run.stdout  # one reason in each overlay
    assert "Failed checks: 0, Skipped checks: 1" in run.stdout  # and one in the Dockerfile


def test_something_would_be_said(look: list[str], tmp_path: Path) -> None:
    wrong = rendered("cpu").replace("readOnlyRootFilesystem: true", "privileged: true")
    (tmp_path / "cpu.yaml").write_text(wrong)
    run = subprocess.run([*look, tmp_path], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 1
    assert 'CKV_K8S_16: "Container should not be privileged"' in run.stdout
