"""The online martingale: ranks in an urn are the p-values of the definition, and the gambler is the offline one."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.drift.comparison import online_p_values
from serving.martingale import CAPITAL, MOST_CELLS, Capital, RankUrn, simple_jumper


def ranks_of(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """1 + #{calibration >= score}, as the graph counts."""
    return 1 + (calibration[None] >= scores[:, None]).sum(axis=1)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(n=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_urn_gives_the_p_values_of_the_definition_as_far_as_ranks_tell(n: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    calibration, scores = np.sort(draws.normal(size=n)), draws.normal(size=30)
    smoothing = np.random.default_rng(seed + 1).random(30)
    urn = RankUrn(n, np.random.default_rng(seed + 1))
    ranks = ranks_of(calibration, scores).tolist()
    for place, (rank, extra) in enumerate(zip(ranks, smoothing, strict=True)):
        before = [*range(1, n + 2), *ranks[:place]]  # a gap's own place, and what fell into it
        naive = (sum(each < rank for each in before) + extra * sum(each == rank for each in before)) / len(before)
        assert urn.p_value(rank) == pytest.approx(naive)


@pytest.mark.parametrize("n", [20, 5000])  # with 5000, neighbouring gaps are counted together
def test_without_drift_p_values_are_uniform_and_the_capital_stays_low(n: int) -> None:
    first, last, reached, runs = [], [], 0, 200
    for seed in range(runs):
        draws = np.random.default_rng(seed)
        ranks = ranks_of(np.sort(draws.normal(size=n)), draws.normal(size=60)).tolist()
        urn, capital = RankUrn(n, draws), Capital()
        found = [urn.p_value(rank) for rank in ranks]
        for p_value in found:
            capital.bet(p_value)
        first.append(found[0])
        last.append(found[-1])
        reached += capital.highest >= math.log10(20)
    assert scipy.stats.kstest(first + last, "uniform").pvalue > 0.001
    assert reached <= scipy.stats.binom.isf(1e-4, runs, 0.05)


def test_an_unlucky_calibration_is_no_drift() -> None:
    """Held against the exact uniform distribution, twenty thousand images reject the error of twenty scores."""
    draws = np.random.default_rng(7)
    ranks = ranks_of(np.sort(draws.normal(size=20)), draws.normal(size=20_000)).tolist()
    urn, capital, uniform = RankUrn(20, draws), Capital(), Capital()
    for rank in ranks:
        capital.bet(urn.p_value(rank))
        uniform.bet((rank - draws.random()) / 21)
    assert capital.highest < math.log10(CAPITAL) < uniform.highest


@pytest.mark.parametrize("quiet", [0, 20_000])
def test_an_attack_is_seen_within_dozens_of_images_also_after_a_long_quiet_time(quiet: int) -> None:
    draws = np.random.default_rng(3)
    urn, capital = RankUrn(999, draws), Capital()
    for rank in draws.integers(1, 1001, quiet).tolist():
        capital.bet(urn.p_value(rank))
    assert capital.highest < math.log10(CAPITAL)
    for _ in range(60):
        capital.bet(urn.p_value(1))
    assert capital.highest >= math.log10(CAPITAL)


def test_the_capital_is_that_of_the_offline_martingale() -> None:
    draws = np.random.default_rng(0)
    p_values = online_p_values(np.sort(draws.normal(size=50)), draws.normal(0.5, 1, 300), draws)
    path = np.log10(simple_jumper(p_values)).cumsum()
    capital = Capital()
    for p_value, there in zip(p_values.tolist(), path, strict=True):
        capital.bet(p_value)
        assert capital.log10 == pytest.approx(there)
    assert capital.highest == pytest.approx(max(0.0, path.max()))


def test_what_an_urn_holds_does_not_grow_with_the_scores() -> None:
    urn = RankUrn(1_000_000, np.random.default_rng(0))
    assert 0 <= urn.p_value(1_000_001) <= 1
    assert urn._counts.size == MOST_CELLS
