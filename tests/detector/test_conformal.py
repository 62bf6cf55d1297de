"""p-values: the formula, and the promise that a clean input is flagged at rate alpha at most."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import DetectorError
from detector.conformal import check_calibration_size, p_values

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


@settings(max_examples=50)
@given(st.floats(0.001, 0.5), st.integers(1, 3000))
def test_too_few_calibration_images_are_refused_exactly_when_nothing_could_be_flagged(alpha, n):
    possible = 1 / (n + 1) <= alpha
    if possible:
        check_calibration_size(n, alpha)
    else:
        with pytest.raises(DetectorError, match="At least"):
            check_calibration_size(n, alpha)
