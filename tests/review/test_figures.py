"""Figures: from what a source keeps to what came in, against simulation and against scipy."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bundle import Bundle
from bundle.false_alarms import wilson
from review import figures
from review.figures import FDR, Rows, Shares
from review.pages import charts
from review.pages.page import Console
from review.store.agreement import precisions
from review.store.database import Database
from review.store.decisions import decide
from review.store.item import Item
from review.store.queue import add
from scoring.drift.scored import Calibration, read_calibration
from tests.conftest import LABELS
from tests.review.items import make_item
from tests.scoring.test_drift import with_classes

ALPHA, SHARE = 0.05, 0.25


def fill(tmp_path: Path, bundle: Bundle, *, attacks: int = 0, share: float = SHARE) -> Database:
    """4,000 clean images whose scores are drawn from the calibration's, and attacks above it, as they are kept."""
    random = np.random.default_rng(5)
    calibration = read_calibration(bundle, "full").scores
    n = len(calibration)
    scores = np.concatenate([random.choice(calibration, 4000) + random.normal(0, 1e-4, 4000), np.full(attacks, 1e6)])
    p_values = (1 + n - np.searchsorted(calibration, scores)) / (n + 1)
    when = [f"2026-11-24T{int(hour):02d}:00:00.000+00:00" for hour in random.uniform(0, 12, 4000)]
    when += ["2026-11-24T13:00:00.000+00:00"] * attacks
    drawn = random.random(4000 + attacks) < share
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(
        opened,
        [
            make_item(
                number,
                p_value=float(p),
                score=float(score),
                reason="flagged" if p <= ALPHA else "sample",
                drawn=bool(drawn[number - 1]),
                bundle_id=bundle.bundle_id,
                received=time,
            )
            for number, (p, score, time) in enumerate(zip(p_values, scores, when, strict=True), start=1)
            if p <= ALPHA or drawn[number - 1]
        ],
    )
    return opened


def test_clean_images_look_clean(tmp_path: Path, toy_bundle: Bundle) -> None:
    database = fill(tmp_path, toy_bundle)
    found = figures.rows(database, toy_bundle, "full")
    histogram, shares = figures.histogram(found, toy_bundle, "full"), figures.shares(found)
    stream, listed = figures.stream(found, toy_bundle, "full"), figures.discoveries(found, toy_bundle, "full")
    assert histogram is not None
    assert shares is not None
    assert stream is not None
    assert listed is not None
    assert histogram.rows == found.drawn.sum()
    assert found.images == pytest.approx(4000, rel=0.3)
    assert figures.rows(database, toy_bundle, "full", 4000).images == 4000
    outside = (histogram.heights < histogram.bounds[:, 0]) | (histogram.heights > histogram.bounds[:, 1])
    assert outside.sum() <= 4  # 20 bins at 95 %
    assert float(np.average(shares.shares)) == pytest.approx(ALPHA, abs=0.02)
    assert len(shares.times) == 12
    assert stream.drift.reasons == ()
    assert listed.listed == 0
    assert listed.smallest == 1 / 100


def test_an_attack_stands_out_everywhere(tmp_path: Path, toy_bundle: Bundle) -> None:
    review = fill(tmp_path, toy_bundle, attacks=600)
    decide(review, list(range(1, 20)), "clean", "ada")
    found = figures.rows(review, toy_bundle, "full")
    histogram, shares = figures.histogram(found, toy_bundle, "full"), figures.shares(found)
    stream, listed = figures.stream(found, toy_bundle, "full"), figures.discoveries(found, toy_bundle, "full")
    assert histogram is not None
    assert shares is not None
    assert stream is not None
    assert listed is not None
    assert histogram.heights[0] > histogram.bounds[0, 1] * 1.5
    assert shares.times[-1] == "2026-11-24T13"
    assert shares.shares[-1] == 1
    assert stream.drift.reasons == ("the rows are not exchangeable with the calibration's",)
    assert listed.listed >= 600
    for drawn in (
        charts.p_values(histogram, ALPHA),
        charts.flagged(shares, ALPHA),
        charts.drift(stream),
        charts.precision(precisions(review), listed),
    ):
        assert drawn.startswith("<svg")
        assert " style=" not in drawn
        assert "nan" not in drawn


def middling(bundle: Bundle, network: str, count: int = 200) -> list[Item]:
    """Unflagged images whose scores lie in the middle: Kolmogorov-Smirnov sees it, a bet on either side does not."""
    calibration = read_calibration(bundle, network).scores
    scores = np.random.default_rng(0).uniform(*np.quantile(calibration, (0.4, 0.6)), count)
    told = {"reason": "sample", "p_value": 0.5, "network": network, "bundle_id": bundle.bundle_id}
    return [make_item(number, key=f"m-{number}", score=float(score), **told) for number, score in enumerate(scores)]


def test_drift_is_what_the_verb_calls_drift(tmp_path: Path, toy_bundle: Bundle, console: Console, client: Any) -> None:
    add(console.database, middling(toy_bundle, "attention"))
    stream = figures.stream(figures.rows(console.database, toy_bundle, "attention"), toy_bundle, "attention")
    assert stream is not None
    assert stream.drift.martingale.highest < 2
    assert stream.drift.reasons == ("the scores are not distributed as the calibration's",)
    text = client.get("/figures?network=attention").text
    assert "No drift found" not in text
    assert "<b>Not the world it was calibrated on</b>: the scores are not distributed as the calibration&#39;s." in text


def test_classes_of_their_own_calibration_are_tested_as_the_verb_does(tmp_path: Path, toy_bundle: Bundle) -> None:
    bundle = with_classes(toy_bundle, tmp_path / "calibrated", [index % 2 for index in range(99)])
    calibration = read_calibration(bundle, "full")
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    changed, others = LABELS[0], (LABELS[1], "of no bundle")
    scores = np.random.default_rng(1).choice(calibration.scores[calibration.classes == 1], 300)
    scores[::10] = calibration.scores[-1] + 1
    items = middling(bundle, "full", 300)
    add(
        review,
        [
            replace(item, score=float(score), label=others[index % 2] if index % 10 else changed)
            for index, (item, score) in enumerate(zip(items, scores, strict=True))
        ],
    )
    stream = figures.stream(figures.rows(review, bundle, "full"), bundle, "full")
    assert stream is not None
    assert stream.drift.reasons[-1] == f"predicted classes changed: {changed}"
    assert {each.label: each.calibration_n for each in stream.drift.classes} == {
        changed: 50,
        others[0]: 49,
        others[1]: 0,
    }


def test_a_whisker_ends_below_the_top_of_its_chart() -> None:
    """Half of four images flagged: the interval ends at 85 %."""
    intervals = np.array([wilson(2, 4), wilson(0, 4)])
    shares = Shares(times=("2026-11-24T06", "2026-11-24T07"), shares=np.array([0.5, 0.0]), intervals=intervals)
    drawn = charts.flagged(shares, ALPHA)
    ends = [float(points.split()[1].split(",")[1]) for points in re.findall(r'"spread" points="([^"]+)"', drawn)]
    assert min(ends) > charts.TOP + 1
    full = replace(shares, shares=np.array([1.0, 0.0]), intervals=np.array([wilson(4, 4), wilson(0, 4)]))
    assert ">100 %</text>" in charts.flagged(full, ALPHA)


def test_the_list_is_that_of_benjamini_and_hochberg(tmp_path: Path, toy_bundle: Bundle) -> None:
    review = fill(tmp_path, toy_bundle, attacks=700)
    found = figures.rows(review, toy_bundle, "full")
    listed = figures.discoveries(found, toy_bundle, "full")
    assert listed is not None
    images = round(found.images or 0)
    others = np.linspace(0.06, 1, images - int(found.flags.sum()))  # the unflagged, wherever they lie above alpha
    p_values = np.concatenate([found.p_values[found.flags], others])
    expected = scipy.stats.false_discovery_control(p_values) <= FDR
    assert listed.listed == int(expected.sum()) > 0


@pytest.mark.parametrize("asked", [0.01, 0.2])
def test_the_share_that_is_held_against_alpha_is_flagged_at_alpha(
    tmp_path: Path, toy_bundle: Bundle, asked: float
) -> None:
    """Whoever scored asked for another one; p-values on the border count as the graph counts them."""
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    p_values = np.float32(np.arange(1, 101) / 100).tolist()
    told = {"bundle_id": toy_bundle.bundle_id, "alpha": asked}
    add(
        review,
        [
            make_item(number, p_value=p, reason="flagged" if p <= np.float32(asked) else "sample", **told)
            for number, p in enumerate(p_values)
        ],
    )
    found = figures.rows(review, toy_bundle, "full")
    shares, stream = figures.shares(found), figures.stream(found, toy_bundle, "full")
    assert shares is not None
    assert stream is not None
    assert shares.shares.tolist() == [ALPHA]
    assert stream.drift.flagged == 5
    assert found.flags.sum() == round(100 * asked)


def test_without_a_sample_nothing_is_said_of_what_came_in(tmp_path: Path, toy_bundle: Bundle) -> None:
    found = figures.rows(fill(tmp_path, toy_bundle, share=0.0), toy_bundle, "full")
    assert figures.histogram(found, toy_bundle, "full") is figures.shares(found) is None
    assert figures.stream(found, toy_bundle, "full") is figures.discoveries(found, toy_bundle, "full") is None


def test_nothing_came_in(tmp_path: Path, toy_bundle: Bundle) -> None:
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    found = figures.rows(review, toy_bundle, "full")
    assert figures.histogram(found, toy_bundle, "full") is figures.shares(found) is None


def all_drawn(scores: Any, calibration: Calibration) -> Rows:
    """Images of one source that tells of all, their p-values as the graph gives them."""
    n = len(calibration.scores)
    p_values = ((1 + n - np.searchsorted(calibration.scores, scores)) / (n + 1)).astype(np.float32)
    many = (str(LABELS[0]),) * len(scores)
    return Rows(
        received=("2026-11-24T06",) * len(scores),
        labels=many,
        p_values=p_values.astype(float),
        scores=scores.astype(float),
        flags=p_values <= np.float32(ALPHA),
        alarms=p_values <= np.float32(ALPHA),
        drawn=np.ones(len(scores), bool),
        states=("waiting",) * len(scores),
        total=len(scores),
    )


@pytest.mark.parametrize(("n", "m"), [(199, 4000), (250, 4000), (99, 300), (7, 1000)])
def test_a_band_holds_95_percent_of_clean_samples(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, n: int, m: int
) -> None:
    """Each sample against a calibration of its own: all its p-values lean on these n scores."""
    random, inside = np.random.default_rng(n), []
    for _ in range(100):
        calibration = Calibration(scores=np.sort(random.random(n).astype(np.float32)))
        monkeypatch.setattr(figures, "read_calibration", lambda bundle, network, drawn=calibration: drawn)
        found = figures.histogram(all_drawn(random.random(m).astype(np.float32), calibration), toy_bundle, "full")
        assert found is not None
        inside += list((found.bounds[:, 0] <= found.heights) & (found.heights <= found.bounds[:, 1]))
    assert len(inside) == 100 * min(20, n + 1)
    assert float(np.mean(inside)) == pytest.approx(0.955, abs=0.02)


def test_each_p_value_there_can_be_falls_into_its_own_bin(toy_bundle: Bundle) -> None:
    """Also those that float32 puts just beyond a border."""
    calibration = read_calibration(toy_bundle, "full")
    scores = np.append(calibration.scores, np.float32(np.inf))
    found = figures.histogram(all_drawn(scores, calibration), toy_bundle, "full")
    assert found is not None
    assert found.heights == pytest.approx(np.ones(20))
