"""The load generator tells the truth about waiting, and the four sides give the same answer to the same bytes."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import page
from benchmarks.gateway import comparison as gateway
from benchmarks.gateway import page as gateway_page
from benchmarks.gateway.load import Parts, Window, closed, opened, poisson, summary
from benchmarks.gateway.sides import SIDES, photographs
from bundle import Bundle
from bundle.errors import RequestRefused
from bundle.image import ImageSpec


class Stalling:
    """Answers at once, but for `stall` seconds from the first request on nobody is answered."""

    def __init__(self, stall: float) -> None:
        self.until, self._stall = 0.0, stall

    async def ask(self, number: int) -> Parts:
        self.until = self.until or time.perf_counter() + self._stall
        await asyncio.sleep(max(0.0, self.until - time.perf_counter()))
        return Parts(compute=0.0)


def test_who_comes_during_a_stall_has_waited_for_its_rest() -> None:
    """A caller who waits would have sent one request meanwhile, and measured one slow answer among many fast ones."""
    moments = np.arange(0.0, 0.5, 0.01)
    window = asyncio.run(opened(Stalling(0.4).ask, moments, 0.5))
    assert len(window.latencies) == len(window.answers) == len(moments)
    waited = sorted(window.latencies, reverse=True)
    np.testing.assert_array_less(0.4 - moments[moments < 0.35] - 0.02, waited[: int((moments < 0.35).sum())])


def test_a_generator_that_was_late_counts_from_the_moment_that_was_meant() -> None:
    async def blocking(number: int) -> Parts:
        if number == 0:
            time.sleep(0.3)  # the event loop itself stands still
        return Parts()

    window = asyncio.run(opened(blocking, [0.0, 0.1, 0.2], 0.3))
    assert min(sorted(window.latencies)[1:]) >= 0.1 - 0.02


def test_arrivals_are_poisson_and_the_same_for_every_side() -> None:
    moments = poisson(100, 50, seed=1)
    np.testing.assert_array_equal(moments, poisson(100, 50, seed=1))
    assert (np.diff(moments) > 0).all()
    assert moments[-1] < 50
    assert len(moments) == pytest.approx(5000, rel=0.06)
    assert np.std(np.diff(moments)) == pytest.approx(0.01, rel=0.1)  # as its mean, which a steady beat's is not


def test_as_many_callers_as_asked_for_and_failures_are_counted() -> None:
    inside, most = 0, 0

    async def ask(number: int) -> Parts:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.005)
        inside -= 1
        if number % 2:
            raise RequestRefused("no")
        return Parts(compute=0.005)

    window = asyncio.run(closed(ask, 4, 0.5))
    assert most == 4
    assert window.failed > 0
    assert 0 < len(window.latencies) < len(window.answers), "the ramp does not count"


def test_a_summary_of_several_windows() -> None:
    told = Parts(decode=0.004, compute=0.001)
    windows = [
        Window(seconds=1.0, latencies=[0.010] * 10, answers=[(0.010, told)] * 10),
        Window(seconds=1.0, latencies=[0.030] * 30, answers=[(0.030, told)] * 30, failed=2),
    ]
    found = summary(windows)
    assert found["throughput"] == {"median": 20.0, "least": 10.0, "most": 30.0}
    assert found["p50_ms"] == {"median": 20.0, "least": 10.0, "most": 30.0, "all": 30.0}
    assert (found["decode_ms"], found["compute_ms"], found["client_ms"]) == (4.0, 1.0, 20.0)
    assert (found["requests"], found["failed"]) == (40, 2)


def test_photographs_are_what_decoders_meet() -> None:
    files = photographs(2)
    assert files == photographs(2)
    assert files[0] != files[1]
    assert ImageSpec(height=32, width=32).decode(files[0]).shape == (32, 32, 3)
    assert 20_000 < len(files[0]) < 200_000


def test_cores_by_the_formula() -> None:
    found = gateway.sizing({"caller": 100.0, "envoy": 1.0, "gateway": 2.0, "triton": 4.0})
    assert found["images_a_second_and_core"] == 100.0


@pytest.mark.triton
def test_all_sides_answer_and_the_page_says_it(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = gateway.Plan(callers=(1, 2), loads=(gateway.BUSY,), closed_seconds=0.2, open_seconds=0.4, rounds=2)
    result = gateway.measure_gateway(toy_bundle.path, plan)
    for side in SIDES:
        for load in ("1", "2", "70%"):
            found = result[side][load]
            assert found["requests"] > 0
            assert found["failed"] == 0
            assert found["decode_ms"] > 0
            assert found["compute_ms"] > 0
            assert found["p50_ms"]["all"] <= found["p99_ms"]["all"]
    assert set(result["envoy"]["1"]["cpu_ms"]) == {"caller", "envoy", "gateway", "triton"}
    assert set(result["in process"]["1"]["cpu_ms"]) == {"caller"}
    assert set(gateway_page.AIMS) < set(result["ratios"])

    file, written = tmp_path / "gateway.json", tmp_path / "benchmarks.md"
    where = {"cpu": "a processor", "cores": 2, "commit": "0" * 40}
    file.write_text(json.dumps({"environment": where, "demo": result}))
    written.write_text("before\n\n<!-- begin: gateway -->\nold\n<!-- end: gateway -->\n\nafter\n")
    monkeypatch.setattr(gateway_page, "PAGE", written)
    for _ in range(2):
        gateway_page.write_page(file)
    text = written.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| images/s and core |") == 1
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 20


def test_a_missed_aim_is_said() -> None:
    name = "gateway / in process, answers a second at saturation"
    assert gateway_page._aim(name, [{"median": 0.9}]) == "at least 0.85"
    assert gateway_page._aim(name, [{"median": 0.9}, {"median": 0.8}]) == "at least 0.85: **missed**"
    assert gateway_page._aim("gateway, p99 / p50 at 70% load", [{"median": 3.1}]) == "at most 3: **missed**"


def test_the_page_has_the_place_for_it() -> None:
    for end in ("begin", "end"):
        assert f"<!-- {end}: {gateway_page.MARK} -->" in gateway_page.PAGE.read_text()
    assert page.PAGE != gateway_page.PAGE
