"""alpha's promise: clean images never break it, far more flags than it allows for always do, and soon."""

import numpy as np
import pytest
import scipy.stats

from bundle.false_alarms import flagging_ranks
from serving.promise import LEVEL, WINDOW, Promise


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.05), (1000, 0.05), (1000, 0.01), (10_000, 0.2)])
def test_the_most_that_clean_windows_flag_is_beta_binomial(n: int, alpha: float) -> None:
    k = flagging_ranks(n, alpha)
    most = Promise(n, alpha).most
    clean = scipy.stats.betabinom(WINDOW, k, n + 1 - k)
    assert clean.sf(most) <= LEVEL * 1.01 < clean.sf(most - 1) * 1.02


def test_clean_images_do_not_break_it() -> None:
    for seed in range(20):
        draws = np.random.default_rng(seed)
        promise, share = Promise(99, 0.05), draws.beta(5, 95)
        assert not any(promise.broken(bool(flag)) for flag in draws.random(20_000) < share)


def test_images_of_another_kind_break_it_before_the_window_ends_and_again() -> None:
    promise = Promise(1000, 0.05)
    found = [place for place in range(1000) if promise.broken(True)]
    assert found == list(range(promise.most, 1000, promise.most + 1))
    assert promise.most < WINDOW / 5


def test_a_window_says_what_was_in_it() -> None:
    promise = Promise(1000, 0.05)
    flags = [place % 4 == 0 for place in range(WINDOW)]
    (found,) = [each for flag in flags if (each := promise.broken(flag))]
    assert found == (promise.most + 1, 4 * promise.most + 1)


def test_a_window_begins_with_nothing_of_the_one_before() -> None:
    promise = Promise(1000, 0.05)
    once = [True] * promise.most + [False] * (WINDOW - promise.most)
    assert not any(promise.broken(flag) for flag in once * 3)


@pytest.mark.parametrize(("n", "alpha"), [(9, 0.05), (9, 0.9999)])
def test_what_promises_nothing_cannot_be_broken(n: int, alpha: float) -> None:
    promise = Promise(n, alpha)
    assert not any(promise.broken(True) for _ in range(3 * WINDOW))
