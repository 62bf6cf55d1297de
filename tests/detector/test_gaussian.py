"""Squared Mahalanobis distances against a naive float64 twin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_ood.detector import Mahalanobis
from sklearn.covariance import ledoit_wolf

from detector.moments import ClassMoments, fit_gaussians
from tests.detector.test_moments import innovations


def naive(features, labels, queries):
    """Per query, per class: (x - mu)^T S^-1 (x - mu), one at a time in float64."""
    classes = labels.max() + 1
    means = np.stack([features[labels == k].mean(0) for k in range(classes)])
    covariance = ledoit_wolf(innovations(features, labels), assume_centered=True)[0]
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
    total = ledoit_wolf(innovations(features, np.zeros(len(labels), int)), assume_centered=True)[0]
    precision, center = np.linalg.inv(total), features.mean(0)
    whole = [(x - center) @ precision @ (x - center) for x in queries]
    np.testing.assert_allclose(evidence[:, 2], whole, rtol=5e-3)


def test_moving_all_features_changes_no_distance():
    features, labels = blobs(np.random.default_rng(0), offset=0.0)
    near = fit_gaussians(features, labels, layer="x").squared_distances(features[:9])
    far = fit_gaussians(features + 1e3, labels, layer="x").squared_distances(features[:9] + 1e3)
    np.testing.assert_allclose(near, far, rtol=5e-2, atol=1e-2)


def test_the_covariance_is_within_classes_however_far_apart_they_are():
    """Ledoit & Wolf (2004) written out; classes are 100 spreads apart."""
    rng = np.random.default_rng(4)
    dimensions, classes, n = 5, 3, 60
    labels = rng.permutation(np.arange(n) % classes)
    features = rng.normal(size=(classes, dimensions))[labels] * 100 + rng.normal(size=(n, dimensions)) * [1, 2, 3, 1, 2]
    fitted = fit_gaussians(features, labels, layer="x")
    residuals = []
    for x, label in zip(features, labels, strict=True):
        members = [other for other, k in zip(features, labels, strict=True) if k == label]
        residuals.append(x - sum(members) / len(members))
    within = sum(np.outer(r, r) for r in residuals) / (n - classes)  # unbiased
    target = np.trace(within) / dimensions * np.eye(dimensions)
    rows = innovations(features, labels)
    spread = sum(np.square(np.outer(h, h) - within).sum() for h in rows) / len(rows) ** 2
    shrinkage = min(1.0, spread / np.square(within - target).sum())
    assert 0.01 < shrinkage < 0.99  # both parts have a say
    assert fitted.shrinkage == pytest.approx(shrinkage, rel=1e-6)
    whitened = fitted.whitening @ ((1 - shrinkage) * within + shrinkage * target) @ fitted.whitening.T
    np.testing.assert_allclose(whitened, np.eye(dimensions), atol=1e-5)


def test_features_far_from_zero_lose_no_digits():
    """A spread of 1 at 1e4: whitened but uncentred, squared norms near 1e9 would drown distances near 10."""
    rng = np.random.default_rng(5)
    features, labels = blobs(rng, condition=1.0, offset=1e4)
    queries = features[:40].astype(np.float32)
    expected = naive(features, labels, queries.astype(np.float64))
    assert np.median(expected.min(axis=1)) < 20
    fitted = fit_gaussians(features, labels, layer="x")
    np.testing.assert_allclose(fitted.squared_distances(queries), expected, rtol=5e-3)


@pytest.mark.referee
def test_pytorch_ood_gives_half_our_distance_per_image():
    """Its scatter is not divided by the n images, and its score is half the squared distance: d^2 = 2 n score."""
    features, labels = blobs(np.random.default_rng(6), condition=10.0, offset=3.0)
    moments = ClassMoments(4, 12)
    moments.add(features, labels)
    precision = np.linalg.inv(moments.scatter / len(labels))
    queries = blobs(np.random.default_rng(7), n=30, condition=10.0, offset=3.0)[0]
    ours = [min((x - mean) @ precision @ (x - mean) for mean in moments.means) for x in queries]
    referee = Mahalanobis(None).fit_features(torch.from_numpy(features).float(), torch.from_numpy(labels))
    score = referee.predict_features(torch.from_numpy(queries).float()).numpy()
    np.testing.assert_allclose(2 * len(labels) * score, ours, rtol=1e-3)


def test_the_mean_within_class_distance_is_the_dimension():
    features, labels = blobs(np.random.default_rng(1), n=4000, dimensions=8)
    own = fit_gaussians(features, labels, layer="x").squared_distances(features)[np.arange(4000), labels]
    assert own.mean() == pytest.approx(8, rel=0.05)
