"""A gateway that moves to another Triton, and one that asks a second in the shadow: what callers get meanwhile."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from bundle import Bundle, tensors
from bundle.errors import EndpointError
from serving.gateway.asked import Asked
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.health import networks
from serving.gateway.server import Gateway
from serving.gateway.shadow import MOST, Seen
from serving.gateway.upstream import TritonAddress
from tests.serving.gateway.gateway_thread import encode, metric, running, stub_of
from tests.serving.gateway.test_health import NAME, NOT_SERVING, SERVING, health
from tests.serving.triton.played import PlayedTriton, listen

GOOD = v1.ClassifyRequest(image=encode(np.full((40, 40, 3), 140, np.uint8)), network=tensors.FULL)


@pytest.fixture(scope="module")
def other(make_toy_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_toy_bundle(tmp_path_factory.mktemp("other") / "bundle", name="other", alpha=0.5)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        time.sleep(0.02)


class Two:
    """Two played Tritons, and a gateway before the first."""

    def __init__(self, first: PlayedTriton, second: PlayedTriton, gateway: Gateway, address: str, stub: Any) -> None:
        self.first, self.second, self.gateway, self.stub = first, second, gateway, stub
        self.address = TritonAddress(url=address)

    def do(self, work: Any) -> Any:
        """Have the gateway do something in its loop."""
        loop = self.gateway._behind._probing.get_loop()  # type: ignore[union-attr]
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout=60)

    def classify(self) -> Any:
        return self.stub.Classify(GOOD, timeout=30)


@pytest.fixture
def two(toy_bundle: Bundle, other: Bundle) -> Iterator[Two]:
    first, second = PlayedTriton(toy_bundle), PlayedTriton(other)
    (server, address), (another, another_address) = listen(first), listen(second)
    with running(address, bundle=toy_bundle) as gateway, stub_of(gateway) as stub:
        yield Two(first, second, gateway, another_address, stub)
    for each in (server, another):
        each.stop(0).wait()


def held(triton: PlayedTriton) -> Callable[[], None]:
    """Let no request of the full network through until what this returns is called."""
    go = threading.Event()
    triton.before = lambda context: go.wait(30)
    return go.set


def test_what_began_with_the_old_one_ends_with_it(two: Two, toy_bundle: Bundle, other: Bundle) -> None:
    go = held(two.first)
    waiting = two.stub.Classify.future(GOOD, timeout=30)
    until(lambda: metric(two.gateway, "in_flight", network=tensors.FULL) == 1)
    two.do(two.gateway.move(two.address, other))
    assert two.classify().bundle_id == other.bundle_id
    assert two.stub.Describe(v1.DescribeRequest()).bundle_id == other.bundle_id
    assert not waiting.done()
    go()
    assert waiting.result(timeout=30).bundle_id == toy_bundle.bundle_id
    two.do(two.gateway.settle())


def test_settling_waits_for_what_is_in_work(two: Two, other: Bundle) -> None:
    go = held(two.first)
    waiting = two.stub.Classify.future(GOOD, timeout=30)
    until(lambda: metric(two.gateway, "in_flight", network=tensors.FULL) == 1)
    two.do(two.gateway.move(two.address, other))
    loop = two.gateway._behind._probing.get_loop()  # type: ignore[union-attr]
    settled = asyncio.run_coroutine_threadsafe(two.gateway.settle(), loop)
    with pytest.raises(TimeoutError):
        settled.result(timeout=0.5)
    go()
    assert waiting.result(timeout=30)
    settled.result(timeout=30)


def silent(context: Any) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "the stub process is not healthy")


@pytest.mark.parametrize("what", ["nobody", "silent", "another bundle"])
def test_where_it_does_not_move(
    two: Two, toy_bundle: Bundle, other: Bundle, what: str, make_toy_bundle: Any, tmp_path: Path
) -> None:
    address, bundle = two.address, other
    if what == "nobody":
        address = TritonAddress(url="127.0.0.1:1")
    elif what == "silent":
        two.second.before = silent
    else:
        bundle = make_toy_bundle(tmp_path / "third", name="third")
    with pytest.raises(EndpointError):
        two.do(two.gateway.move(address, bundle))
    assert two.classify().bundle_id == toy_bundle.bundle_id
    assert metric(two.gateway, "serving", network=tensors.FULL) == 1


def test_health_is_that_of_where_it_is(two: Two, other: Bundle) -> None:
    two.do(two.gateway.move(two.address, other))
    two.first.before = silent
    two.do(asyncio.sleep(1.5))  # longer than between two probes
    assert two.classify().bundle_id == other.bundle_id
    two.second.before = silent
    until(lambda: metric(two.gateway, "serving", network=tensors.FULL) == 0)


def assert_full_alone(gateway: Gateway) -> None:
    """Nothing pages for a network that is gone, and nobody who asks for health waits for it."""
    for name in ("serving", "drift_log10", "drift_highest_log10"):
        families = [each for each in gateway.metrics.registry.collect() if each.name == f"fieldmark_gateway_{name}"]
        assert [each.labels["network"] for each in families[0].samples] == [tensors.FULL], name
    assert networks(f"http://127.0.0.1:{gateway.metrics_port}/metrics", 10.0) == {tensors.FULL: True}
    assert health(gateway, "") == health(gateway, f"{NAME}/{tensors.FULL}") == SERVING
    assert health(gateway, f"{NAME}/{tensors.ATTENTION}") == NOT_SERVING


@pytest.fixture(scope="module")
def alone(make_toy_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_toy_bundle(tmp_path_factory.mktemp("alone") / "bundle", name="alone", networks=(tensors.FULL,))


def test_a_network_that_the_next_bundle_lacks_is_forgotten(toy_bundle: Bundle, alone: Bundle) -> None:
    first, second = PlayedTriton(toy_bundle), PlayedTriton(alone)
    (server, address), (another, another_address) = listen(first), listen(second)
    with running(address, bundle=toy_bundle) as gateway, stub_of(gateway) as stub:
        both = Two(first, second, gateway, another_address, stub)
        both.do(gateway.move(both.address, alone))
        assert_full_alone(gateway)
        both.do(gateway.move(TritonAddress(url=address), toy_bundle))
        assert metric(gateway, "serving", network=tensors.ATTENTION) == 1
        assert health(gateway, f"{NAME}/{tensors.ATTENTION}") == SERVING
    for each in (server, another):
        each.stop(0).wait()


def test_a_network_that_goes_behind_the_same_address_is_forgotten(toy_bundle: Bundle, alone: Bundle) -> None:
    played, narrower = PlayedTriton(toy_bundle), PlayedTriton(alone)
    server, address = listen(played)
    with running(address, probe_seconds=0.3) as gateway:
        played.local, played.configs = narrower.local, narrower.configs
        until(lambda: gateway.manifest.bundle_id == alone.bundle_id)
        until(lambda: health(gateway, f"{NAME}/{tensors.ATTENTION}") == NOT_SERVING)
        until(lambda: health(gateway, "") == SERVING)
        assert_full_alone(gateway)
    server.stop(0).wait()


# In the shadow


def outcomes(gateway: Gateway) -> dict[str, float]:
    """Requests by what came of their copies."""
    names = ("same", "different", "dropped", "failed")
    return {name: metric(gateway, "shadow_total", network=tensors.FULL, outcome=name) for name in names}


def test_differences_are_counted_and_callers_get_the_old_answer(two: Two, toy_bundle: Bundle, other: Bundle) -> None:
    two.do(two.gateway.start_shadow(two.address, other, 1.0))
    two.second.change = lambda found: (
        found
        | {
            tensors.PROBABILITIES: np.roll(found[tensors.PROBABILITIES], 1, axis=1),
            tensors.P_VALUE: found[tensors.P_VALUE] * np.float32(0.5),
            tensors.IS_ADVERSARIAL: ~found[tensors.IS_ADVERSARIAL],
        }
    )
    answer = two.classify()
    assert answer.bundle_id == toy_bundle.bundle_id
    until(lambda: sum(outcomes(two.gateway).values()) == 1)
    assert outcomes(two.gateway)["different"] == 1
    for what in ("label", "flag"):
        assert metric(two.gateway, "shadow_differences_total", network=tensors.FULL, what=what) == 1
    facts = two.gateway.facts()["shadow"]
    assert facts["largest_p_value_difference"] == pytest.approx(answer.adversarial.p_value / 2, abs=1e-4)
    two.second.change = lambda found: found
    two.classify()
    until(lambda: sum(outcomes(two.gateway).values()) == 2)
    assert outcomes(two.gateway)["same"] == 1


def test_a_shadow_that_fails_or_hangs_costs_no_answer(two: Two, other: Bundle) -> None:
    two.do(two.gateway.start_shadow(two.address, other, 1.0))
    two.second.before = silent
    two.classify()
    until(lambda: outcomes(two.gateway)["failed"] == 1)
    go = held(two.second)
    for _ in range(MOST + 3):
        two.classify()
    assert outcomes(two.gateway)["dropped"] == 3
    go()
    until(lambda: outcomes(two.gateway)["same"] == MOST)


def test_nothing_is_copied_while_anybody_waits(toy_bundle: Bundle, other: Bundle) -> None:
    first, second = PlayedTriton(toy_bundle), PlayedTriton(other)
    (server, address), (another, another_address) = listen(first), listen(second)
    with running(address, bundle=toy_bundle, concurrency=1) as gateway, stub_of(gateway) as stub:
        both = Two(first, second, gateway, another_address, stub)
        both.do(gateway.start_shadow(both.address, other, 1.0))
        go = held(first)
        waiting = [stub.Classify.future(GOOD, timeout=30) for _ in range(3)]
        until(lambda: metric(gateway, "waiting", network=tensors.FULL) == 2)
        go()
        assert all(each.result(timeout=30) for each in waiting)
        until(lambda: sum(outcomes(gateway).values()) == 3)
        assert outcomes(gateway)["dropped"] >= 1
    for each in (server, another):
        each.stop(0).wait()


def test_only_its_share_is_asked_and_it_can_end(two: Two, other: Bundle) -> None:
    two.do(two.gateway.start_shadow(two.address, other, 0.5))
    shadow: Any = two.gateway._service.shadow
    chances = iter([0.1, 0.5, 0.9])
    shadow._chance = lambda: next(chances)
    for _ in range(3):
        two.classify()
    until(lambda: outcomes(two.gateway)["same"] == 1)
    two.do(two.gateway.stop_shadow())
    two.classify()
    assert sum(outcomes(two.gateway).values()) == 1
    assert "shadow" not in two.gateway.facts()


def test_a_shadow_that_takes_other_images_decodes_them_itself(two: Two, other: Bundle) -> None:
    two.do(two.gateway.start_shadow(two.address, other, 1.0))
    shadow: Any = two.gateway._service.shadow
    image = dataclasses.replace(other.manifest.image, height=64)
    asked = Asked(network=tensors.FULL, top=1, alpha=None, explain=False)
    pixels = np.zeros((64, 32, 3), np.uint8)

    async def see(answer: Any) -> None:
        seen = Seen(data=GOOD.image, pixels=pixels, image=image, asked=asked, answer=answer)
        shadow.see(seen, SimpleNamespace(request_id="x"), busy=False)

    two.do(see(two.classify()))
    until(lambda: outcomes(two.gateway)["same"] == 2)
    assert two.second.batches[-2:] == [1, 1]
