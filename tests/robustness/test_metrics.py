"""AUROC and its kin against scikit-learn and plain counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from robustness.metrics import auroc, auroc_interval, flagged_interval, roc, share, true_negatives

scores = st.lists(st.integers(0, 6), min_size=1, max_size=30)  # few values, so that there are ties


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scores, scores)
def test_auroc_is_scikit_learns_ties_and_all(negatives, positives):
    truth = [0] * len(negatives) + [1] * len(positives)
    expected = roc_auc_score(truth, negatives + positives)
    assert auroc(np.array(negatives, float), np.array(positives, float)) == pytest.approx(expected)


any_scores = st.lists(st.sampled_from([0.0, 1.0, 2.0, np.inf, -np.inf, np.nan]), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(any_scores, any_scores)
def test_the_curve_begins_at_nothing_whatever_the_scores(negatives, positives):
    low, high = np.array(negatives), np.array(positives)
    false, true = roc(low, high)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(auroc(low, high))


def test_of_nothing_there_is_no_curve_and_anything_may_be_flagged():
    assert roc(np.array([]), np.array([1.0])) == roc(np.array([1.0]), np.array([])) == ([], [])
    assert flagged_interval([], 0.05) == flagged_interval([(0, 100)], 0.05) == (0.0, 1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scores, st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_the_curve_has_the_area_and_the_true_negatives_are_counted(negatives, positives):
    low, high = np.array(negatives, float), np.array(positives, float)
    false, true = roc(low, high)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(auroc(low, high))
    best = max(
        (sum(each < bound for each in negatives) / len(negatives))
        for bound in positives
        if sum(each >= bound for each in positives) >= 0.95 * len(positives)
    )
    assert true_negatives(low, high) == pytest.approx(best)


def test_nothing_to_compare_is_no_number_and_knows_nothing():
    assert np.isnan(auroc(np.array([1.0]), np.array([])))
    assert np.isnan(true_negatives(np.array([]), np.array([1.0])))
    assert auroc_interval(np.array([1.0, 2.0]), np.array([])) == (0.0, 1.0)
    assert share(0, 0) == {"count": 0, "of": 0, "share": None, "interval": [0.0, 1.0]}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for seed in range(60):
        low, high = auroc_interval(rng.normal(0, 1, 60), rng.normal(1, 1, 60), seed=seed)
        inside += low <= 0.7602 <= high  # Phi(1 / sqrt(2))
    assert inside >= 50


def test_pairs_are_drawn_together():
    rng = np.random.default_rng(1)
    clean = rng.normal(0, 1, 80)
    attacked = clean + 0.5  # the same images, moved: their difference is known exactly
    alone = auroc_interval(clean, attacked)
    together = auroc_interval(clean, attacked, np.arange(80))
    assert together[1] - together[0] < alone[1] - alone[0]
