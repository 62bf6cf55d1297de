"""What a roller does with what nobody foresaw: whoever gave the order is told, and the next order is carried out.

No server runs here: the gateway is its control socket, and a server is one that has not been started.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from bundle import Bundle
from bundle.errors import EndpointError, ServerError
from serving.control import Control
from serving.triton.server import TritonServer
from serving.upkeep.gateway import GatewayProcess
from serving.upkeep.roller import BACK, OUT, SHADOW, STATUS, Means, Roller
from serving.upkeep.store import Store
from serving.upkeep.watch import TritonWatch


class Unstarted(TritonServer):
    """It is there, and runs nothing."""

    def start(self, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Nothing."""


class Rolled:
    """A roller; `faults` are raised, each once, where they are named: make, moved, end, status."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.faults: dict[str, Exception] = {}
        self.told: list[str] = []
        self.ended: list[TritonServer] = []
        self.control = Control(folder / "gateway", self._gateway)
        self.control.open()
        self.gateway = gateway = GatewayProcess(
            "", bundle.path, (), control=self.control.path, ports=(0, 0), drain_seconds=0
        )
        means = Means(
            store=Store(folder / "bundles", None),
            make=self._make,
            end=self._end,
            moved=lambda _: self._fail("moved"),
            tell=lambda event, _: self.told.append(event),
        )
        self.roller = Roller(TritonWatch(Unstarted(bundle)), gateway, means)
        self.roller.start()

    def order(self, verb: str, **facts: Any) -> dict[str, Any]:
        """What an order comes to, while this thread looks after what is served."""
        done: Future[dict[str, Any]] = Future()

        def give() -> None:
            try:
                done.set_result(self.roller.obey({"verb": verb, **facts}))
            except Exception as problem:
                done.set_exception(problem)

        threading.Thread(target=give, daemon=True).start()
        deadline = time.monotonic() + 30
        while not done.done():
            assert time.monotonic() < deadline, "nobody carries the order out"
            self.roller.look()
            time.sleep(0.01)
        return done.result()

    def _make(self, bundle: Bundle) -> TritonServer:
        self._fail("make")
        return Unstarted(bundle)

    def _end(self, server: TritonServer) -> None:
        self._fail("end")
        self.ended.append(server)

    def _gateway(self, request: dict[str, Any]) -> dict[str, Any]:
        self._fail(request["verb"])
        return {}

    def _fail(self, where: str) -> None:
        if (fault := self.faults.pop(where, None)) is not None:
            raise fault


@pytest.fixture(scope="module")
def other(make_toy_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle: Bundle = make_toy_bundle(tmp_path_factory.mktemp("other") / "bundle", name="other", alpha=0.5)
    return bundle


@pytest.fixture
def rolled(tmp_path: Path, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rolled]:
    monkeypatch.setattr(TritonWatch, "look", lambda _: [])  # a shadow that does not run would be restarted
    rolled = Rolled(tmp_path, toy_bundle)
    yield rolled
    rolled.roller.stop()
    rolled.control.close()


@pytest.mark.parametrize("where", ["make", "moved"])
def test_a_fault_of_ours_is_told_and_the_next_order_is_carried_out(rolled: Rolled, other: Bundle, where: str) -> None:
    rolled.faults[where] = RuntimeError("nobody foresaw this")
    with pytest.raises(ServerError, match=r"could not be carried out \(RuntimeError: nobody foresaw this\)"):
        rolled.order(OUT, path=str(other.path))
    assert rolled.told == ["refused"]
    assert rolled.order(OUT, path=str(other.path))["bundle_id"] == other.bundle_id


def test_what_cannot_be_removed_costs_no_order(rolled: Rolled, toy_bundle: Bundle, other: Bundle) -> None:
    rolled.faults["end"] = PermissionError(1, "not permitted", "/nowhere")
    assert rolled.order(OUT, path=str(other.path))["bundle_id"] == other.bundle_id
    assert rolled.order(BACK)["bundle_id"] == toy_bundle.bundle_id
    assert rolled.told == ["rolled", "rolled"]


def test_a_gateway_that_does_not_tell_of_the_shadow_refuses_nothing(rolled: Rolled, other: Bundle) -> None:
    for verb, facts in ((SHADOW, {"path": str(other.path), "share": 0.5}), (STATUS, {})):
        rolled.faults["status"] = ServerError("it is busy")
        found = rolled.order(verb, **facts)
        assert found["shadow"] == {"bundle_id": other.bundle_id}
        assert found["refused"] == {}
    assert rolled.told == ["shadow"]


def test_a_shadow_ends_while_the_gateway_is_away(rolled: Rolled, other: Bundle) -> None:
    rolled.order(SHADOW, path=str(other.path), share=0.5)
    rolled.control.close()
    found = rolled.order(SHADOW)
    assert ("shadow" in found, found["refused"]) == (False, {})
    assert [server.bundle.bundle_id for server in rolled.ended] == [other.bundle_id]


def test_why_a_gateway_was_ended_that_did_not_say_whether_it_moved(rolled: Rolled, other: Bundle) -> None:
    rolled.control.close()
    with pytest.raises(EndpointError, match="nobody listens"):
        rolled.order(OUT, path=str(other.path))
    (trouble,) = rolled.gateway.look()
    assert trouble.cause == "an order to move got no answer"
