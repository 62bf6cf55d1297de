"""The configuration: Envoy itself accepts every variant, and what must be in it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import OptionError
from serving.envoy.configuration import configuration
from serving.envoy.options import EnvoyOptions
from serving.envoy.process import find_envoy, validate
from serving.envoy.refusals import REFUSALS
from serving.gateway.options import METADATA_BYTES
from tests.serving.envoy.door import ANN, BOB


@pytest.fixture
def made(certificates: Path) -> Any:
    def make(**settings: Any) -> EnvoyOptions:
        files = {"certificate": certificates / "server.pem", "certificate_key": certificates / "server.key"}
        given = {"client_ca": certificates / "ca.pem"} if settings.pop("mutual", False) else {}
        return EnvoyOptions(**files | {"keys": (ANN, BOB)} | given | settings)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mutual": True},
        {"health": True},
        {"reflection": True},
        {"mutual": True, "health": True, "reflection": True},
        {"host": "::", "gateway": "[::1]:8010"},
        {"gateway": "gateway.example"},
        {"rate": 1, "burst": 1, "connections": 1, "concurrency": 1},
        {"rate": 1_000_000, "burst": 1_000_000, "connections": 1_000_000},
        {"image_bytes": 1},
        {"image_bytes": 1 << 30},
        {"timeout": 0.001, "stall_seconds": 0.001, "idle_seconds": 0.001, "connection_seconds": 0.001},
        {"timeout": 86_400.0, "connection_seconds": 31_536_000.0},
    ],
    ids=str,
)
def test_envoy_accepts_it(made: Any, settings: dict[str, Any]) -> None:
    validate(made(**settings), find_envoy())


def test_envoy_refuses_what_is_wrong(made: Any, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(OptionError, match=r"Envoy refuses this configuration: Failed to load certificate chain"):
        validate(made(certificate=tmp_path / "none.pem"), find_envoy())


def test_it_is_a_document_and_always_the_same(made: Any) -> None:
    text = json.dumps(configuration(made()))
    assert text == json.dumps(configuration(made()))
    assert "admin" not in json.loads(text)
    assert text.count(ANN.secret) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": 0}, "--port 0"),
        ({"port": 65536}, "--port 65536"),
        ({"rate": 0}, "--rate 0"),
        ({"burst": 1_000_001}, "--burst 1000001"),
        ({"burst": 49}, "--burst 49 is less than --rate 50"),
        ({"connections": -1}, "--connections -1"),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"idle_seconds": float("inf")}, "--idle-seconds inf"),
        ({"image_bytes": 2**31 - 1}, "--image-bytes"),
        ({"gateway": "a b"}, "not the address"),
    ],
    ids=str,
)
@pytest.mark.hostile
def test_a_bad_option(made: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(**settings)


def test_options_do_not_show_keys(made: Any) -> None:
    assert ANN.secret not in repr(made())


def test_headers_leave_room_for_those_that_envoy_adds(made: Any) -> None:
    chain = configuration(made())["static_resources"]["listeners"][0]["filter_chains"][0]
    most = chain["filters"][0]["typed_config"]["max_request_headers_kb"] * 1024
    assert METADATA_BYTES - 2048 <= most < METADATA_BYTES
    assert f"{most // 1024} KiB" in REFUSALS[431].meaning
