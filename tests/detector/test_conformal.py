"""p-values: the formula, and the promise that a clean input is flagged at rate alpha at most."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import DetectorError
from detector.conformal import check_calibration_size, p_values, p_values_per_class

scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@given(scores, scores)
def test_fast_form_equals_the_definition(calibration, queries):
    ascending = np.sort(np.array(calibration, np.float32))
    expected = [(1 + sum(c >= q for c in ascending)) / (len(ascending) + 1) for q in np.array(queries, np.float32)]
    np.testing.assert_allclose(p_values(np.array(queries, np.float32), ascending), expected, rtol=1e-6)


@given(scores, scores)
def test_p_values_fall_as_scores_rise_and_stay_in_range(calibration, queries):
    ascending, ordered = np.sort(np.array(calibration, np.float32)), np.sort(np.array(queries, np.float32))
    values = p_values(ordered, ascending)
    assert (np.diff(values) <= 0).all()
    assert values.min() >= np.float32(1 / (len(ascending) + 1))
    assert values.max() <= 1


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("n", [99, 500])
def test_coverage_is_alpha_by_simulation(alpha, n):
    rng = np.random.default_rng(7)
    flagged = [
        (
            p_values(rng.gumbel(size=50).astype(np.float32), np.sort(rng.gumbel(size=n).astype(np.float32))) <= alpha
        ).mean()
        for _ in range(800)
    ]
    exact = np.floor(alpha * (n + 1)) / (n + 1)  # what split-conformal gives for continuous scores
    error = np.std(flagged) / np.sqrt(len(flagged))
    assert abs(np.mean(flagged) - exact) < 4 * error
    assert np.mean(flagged) < alpha + 4 * error


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("step", [None, 0.5])
def test_coverage_in_every_class_by_simulation(alpha, step):
    """Three classes of other scores, the last one rare; with `step`, scores are rounded to it: many ties."""
    rng = np.random.default_rng(11)
    share, location, scale = [0.6, 0.3, 0.1], np.array([0.0, 2.0, -1.0]), np.array([1.0, 0.3, 3.0])

    def draw(n):
        classes = rng.choice(3, size=n, p=share)
        scores = rng.gumbel(location[classes], scale[classes])
        return (scores if step is None else np.round(scores / step) * step).astype(np.float32), classes

    per_class, marginal = ([[] for _ in range(3)] for _ in range(2))
    for _ in range(600):
        (calibration, own), (queries, predicted) = draw(400), draw(100)
        order = np.argsort(calibration)
        mine = p_values_per_class(queries, predicted, calibration[order], own[order]) <= np.float32(alpha)
        pooled = p_values(queries, calibration[order]) <= np.float32(alpha)
        for k in range(3):
            per_class[k].append(mine[predicted == k].mean())
            marginal[k].append(pooled[predicted == k].mean())
    for flagged in per_class:  # P(p <= alpha) <= alpha, in each class, and close to it where scores are continuous
        error = np.nanstd(flagged) / np.sqrt(len(flagged))
        assert np.nanmean(flagged) < alpha + 4 * error
        assert step is not None or np.nanmean(flagged) > 0.7 * alpha
    assert max(np.nanmean(flagged) for flagged in marginal) > 1.2 * alpha  # what a rate on the whole does not promise


def test_a_class_without_calibration_images_is_never_flagged():
    found = p_values_per_class(np.float32([9, 9]), np.array([0, 1]), np.float32([1, 2, 3]), np.array([0, 0, 0]))
    np.testing.assert_array_equal(found, np.float32([0.25, 1]))


@settings(max_examples=50)
@given(st.floats(0.001, 0.5), st.integers(1, 3000))
def test_too_few_calibration_images_are_refused_exactly_when_nothing_could_be_flagged(alpha, n):
    possible = 1 / (n + 1) <= alpha
    if possible:
        check_calibration_size(n, alpha)
    else:
        with pytest.raises(DetectorError, match="At least"):
            check_calibration_size(n, alpha)
