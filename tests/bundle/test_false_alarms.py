"""What n images can say: how fine a p-value is, and within which bounds a share lies."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bundle.false_alarms import (
    beyond_promise,
    chances,
    coarser,
    flagging_ranks,
    needed,
    quantiles,
    smallest_p_value,
    wilson,
)


@given(st.floats(1e-6, 0.999))
def test_as_many_are_needed_as_reach_alpha_and_no_more(alpha: float) -> None:
    n = needed(alpha)
    assert smallest_p_value(n) <= alpha
    assert n == 0 or smallest_p_value(n - 1) > alpha


def test_n_images_support_their_own_smallest_p_value() -> None:
    """Also where rounding has 1 / (1 / (n + 1)) above n + 1, as for 48 images."""
    assert [n for n in range(1, 5000) if needed(smallest_p_value(n)) != n] == []


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_holds_the_share_and_narrows_with_images(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    wider = wilson(right, count, z=3)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12
    many = wilson(100 * right, 100 * count)
    assert many[1] - many[0] < high - low


def test_wilsons_interval_by_the_book() -> None:
    low, high = wilson(8, 10)  # the roots of |p - 0.8| = 1.96 sqrt(p (1 - p) / 10)
    for root in (low, high):
        assert abs(root - 0.8) == pytest.approx(1.96 * math.sqrt(root * (1 - root) / 10))
    assert wilson(0, 0) == (0, 1)


@given(st.integers(1, 500), st.data())
def test_the_ends_are_shares_from_which_the_observed_one_is_just_as_far(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    share = successes / trials
    for end in wilson(successes, trials):
        assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / trials, abs=1e-9)


def test_fewer_images_are_said_to_be_coarser_and_more_are_not() -> None:
    assert "40 images take the place of 800" in coarser(40, 800)
    assert "will be 0.024 instead of 0.0012" in coarser(40, 800)
    assert coarser(800, 800) == coarser(801, 800) == ""


@given(st.integers(0, 3000), st.floats(1e-4, 0.999))
def test_as_many_p_values_flag_as_are_compared_with_alpha_one_by_one(n: int, alpha: float) -> None:
    served = [np.float32(place / (n + 1)) <= np.float32(alpha) for place in range(1, n + 2)]
    assert flagging_ranks(n, alpha) == sum(served)
    assert (flagging_ranks(n, alpha) > 0) == served[0]


@given(st.integers(1, 2000), st.integers(0, 400), st.data())
def test_counts_of_flags_are_beta_binomial(rows: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n + 1))
    found = chances(rows, n, k)
    assert found.sum() == pytest.approx(1)
    low, middle, high = quantiles(found, (0.025, 0.5, 1.0))
    if 0 < k <= n:
        twin = scipy.stats.betabinom(rows, k, n + 1 - k)
        np.testing.assert_allclose(found, twin.pmf(np.arange(rows + 1)), rtol=1e-6, atol=1e-12)
        assert twin.cdf(low) >= 0.025 - 1e-9
        assert low == 0 or twin.cdf(low - 1) < 0.025 + 1e-9
        assert low <= middle <= high <= rows
    else:  # none of the p-values, or every one
        assert (low, middle, high) == (rows * (k > n),) * 3


@given(rows=st.integers(1, 400), n=st.integers(19, 400), data=st.data())
def test_more_flags_than_clean_images_raise_are_told(rows: int, n: int, data: st.DataObject) -> None:
    flagged, k = data.draw(st.integers(0, rows)), flagging_ranks(n, 0.05)
    chance = scipy.stats.betabinom(rows, k, n + 1 - k).sf(flagged - 1)  # of so many or more
    told = beyond_promise(flagged, rows, n, 0.05)
    if chance > 0.0251:
        assert told is None
    if chance < 0.0249 and scipy.stats.betabinom(rows, k, n + 1 - k).sf(flagged - 2) < 0.0249:
        assert told is not None
        assert told.startswith(f"{flagged / rows:.1%} are flagged; ")


def test_of_nothing_and_of_millions_it_is_told_too() -> None:
    assert beyond_promise(0, 0, 800, 0.05) is None
    assert beyond_promise(500_000, 10_000_000, 800, 0.05) is None
    assert beyond_promise(5_000_000, 10_000_000, 800, 0.05) is not None
