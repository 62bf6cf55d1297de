"""Squared Mahalanobis distances against a naive float64 twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from bundle.errors import DetectorError
from detector.gaussian import fit_gaussians


def naive(features, labels, queries):
    """Per query, per class: (x - mu)^T S^-1 (x - mu), one at a time in float64."""
    classes = labels.max() + 1
    means = np.stack([features[labels == k].mean(0) for k in range(classes)])
    covariance = LedoitWolf(assume_centered=True).fit(features - means[labels]).covariance_
    precision = np.linalg.inv(covariance)
    return np.array([[(x - mean) @ precision @ (x - mean) for mean in means] for x in queries])


def blobs(rng, *, n=300, dimensions=12, classes=4, condition=1e3, offset=50.0):
    scales = np.geomspace(1, condition**0.5, dimensions)
    centers = rng.normal(size=(classes, dimensions)) * 3 * scales + offset
    labels = np.arange(n) % classes
    return centers[labels] + rng.normal(size=(n, dimensions)) * scales, labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 24), st.integers(2, 6))
def test_distances_equal_the_naive_twin(seed, dimensions, classes):
    rng = np.random.default_rng(seed)
    features, labels = blobs(rng, dimensions=dimensions, classes=classes)
    queries = blobs(rng, n=20, dimensions=dimensions, classes=classes)[0]
    fitted = fit_gaussians(features, labels, layer="stage1")
    expected = naive(features, labels, queries)
    np.testing.assert_allclose(fitted.squared_distances(queries), expected, rtol=2e-3, atol=2e-3 * expected.max())
    predicted = rng.integers(0, classes, len(queries))
    evidence = fitted.evidence(queries, predicted)
    np.testing.assert_array_equal(evidence[:, 0], fitted.squared_distances(queries).min(1))
    np.testing.assert_array_equal(
        evidence[:, 1], [row[k] for row, k in zip(fitted.squared_distances(queries), predicted, strict=True)]
    )


def test_moving_all_features_changes_no_distance():
    features, labels = blobs(np.random.default_rng(0), offset=0.0)
    near = fit_gaussians(features, labels, layer="x").squared_distances(features[:9])
    far = fit_gaussians(features + 1e3, labels, layer="x").squared_distances(features[:9] + 1e3)
    np.testing.assert_allclose(near, far, rtol=5e-2, atol=1e-2)


def test_the_mean_within_class_distance_is_the_dimension():
    features, labels = blobs(np.random.default_rng(1), n=4000, dimensions=8)
    own = fit_gaussians(features, labels, layer="x").squared_distances(features)[np.arange(4000), labels]
    assert own.mean() == pytest.approx(8, rel=0.05)


def test_non_finite_features_name_layer_and_count():
    features, labels = blobs(np.random.default_rng(2))
    features[[3, 5], 0] = np.nan
    with pytest.raises(DetectorError, match="stage2: 2 of 300 feature vectors are not finite"):
        fit_gaussians(features, labels, layer="stage2")


def test_a_class_without_images_is_named():
    features, labels = blobs(np.random.default_rng(3))
    labels[labels == 1] = 2
    with pytest.raises(DetectorError, match="class 1 has no training image"):
        fit_gaussians(features, labels, layer="x")


def test_features_that_do_not_vary_are_refused():
    labels = np.arange(20) % 2
    with pytest.raises(DetectorError, match="do not vary"):
        fit_gaussians(np.eye(2)[labels].repeat(4, axis=1), labels, layer="x")


def test_one_image_a_class_leaves_no_spread():
    with pytest.raises(DetectorError, match="no spread"):
        fit_gaussians(np.random.default_rng(0).normal(size=(3, 4)), np.arange(3), layer="x")
