"""One pass over the features gives what many would: naive float64 twins, any order of adding and merging."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from bundle.errors import DetectorError
from detector.moments import ClassMoments, fit_gaussians


def innovations(features, labels):
    """The Helmert innovations, one image at a time: (n - K, D). The first image of a class has none."""
    rows, seen = [], {}
    for x, label in zip(np.asarray(features, np.float64), labels.tolist(), strict=True):
        before = seen.setdefault(label, [])
        if before:
            share = len(before) / (len(before) + 1)
            rows.append(share**0.5 * (x - sum(before) / len(before)))
        before.append(x)
    return np.array(rows)


def scatter(features, labels):
    """sum (x - mean)(x - mean)^T within classes, two passes."""
    parts = [features[labels == k] - features[labels == k].mean(0) for k in np.unique(labels)]
    return sum(part.T @ part for part in parts)


def drawn(seed, n, classes, dimensions, offset=20.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    features = rng.normal(size=(classes, dimensions))[labels] * 30 + offset
    return features + rng.standard_t(5, size=(n, dimensions)) * np.geomspace(1, 9, dimensions), labels


def fitted(features, labels, batches):
    """Moments of batches : lists of positions."""
    moments = ClassMoments(labels.max() + 1, features.shape[1])
    for batch in batches:
        moments.add(features[batch], labels[batch])
    return moments


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(2, 5), st.sampled_from([0.0, 1e4]))
def test_batches_in_a_row_equal_scikit_learns_ledoit_wolf_on_the_innovations(seed, dimensions, classes, offset):
    features, labels = drawn(seed, 60, classes, dimensions, offset)
    # A batch takes its images class by class; the innovations of the whole depend on the order within a class alone.
    cuts = np.sort(np.random.default_rng(seed).integers(0, 61, 4))
    moments = fitted(features, labels, np.split(np.arange(60), cuts))
    rows = innovations(features, labels)
    expected, shrinkage = ledoit_wolf(rows, assume_centered=True)
    covariance, mine = moments.covariance()
    np.testing.assert_allclose(covariance, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert mine == pytest.approx(shrinkage, rel=1e-10)
    assert moments.fourth == pytest.approx(np.square(np.square(rows).sum(1)).sum(), rel=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 6), st.integers(1, 5))
def test_scatter_and_means_do_not_depend_on_order_batches_or_workers(seed, dimensions, classes, workers):
    features, labels = drawn(seed, 50, classes, dimensions)
    rng = np.random.default_rng(seed)
    shares = np.array_split(rng.permutation(50), workers)
    merged = ClassMoments(classes, dimensions)
    for share in shares:
        merged.merge(fitted(features, labels, np.array_split(share, rng.integers(1, 6))))
    merged.merge(fitted(features, labels, []))  # a worker that saw nothing
    expected = scatter(features, labels)
    np.testing.assert_allclose(merged.scatter, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    means = [features[labels == k].mean(0) for k in range(classes)]
    np.testing.assert_allclose(merged.means, means, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(merged.counts, np.bincount(labels))


def test_a_merge_adds_the_innovation_between_two_means():
    features, labels = drawn(3, 40, 2, 5)
    halves = [np.arange(20), np.arange(20, 40)]
    one, two = (fitted(features, labels, [half]) for half in halves)
    between = [
        np.sqrt(one.counts[k] * two.counts[k] / (one.counts[k] + two.counts[k])) * (one.means[k] - two.means[k])
        for k in range(2)
    ]
    rows = np.concatenate([*(innovations(features[half], labels[half]) for half in halves), between])
    one.merge(two)
    expected, shrinkage = ledoit_wolf(rows, assume_centered=True)
    covariance, mine = one.covariance()
    np.testing.assert_allclose(covariance, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    assert mine == pytest.approx(shrinkage, rel=1e-10)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_images_as_one_class(workers):
    features, labels = drawn(7, 300, 4, 5, 1e4)
    moments = ClassMoments(4, 5)
    for share in np.array_split(np.arange(300), workers):
        moments.merge(fitted(features, labels, np.array_split(share, 9)))
    total = scatter(features, np.zeros(300, int))
    np.testing.assert_allclose(moments.whole.scatter, total, rtol=1e-9, atol=1e-9 * total.max())
    np.testing.assert_allclose(moments.whole.means[0], features.mean(0), rtol=1e-12)
    assert moments.whole.counts.tolist() == [300]
    assert moments.whole.covariance()[1] < 0.1  # no worker's share is taken for noise


def test_the_shrinkage_depends_on_the_order_only_slightly():
    features, labels = drawn(5, 3000, 6, 8)
    rng = np.random.default_rng(0)
    found = [fitted(features, labels, [rng.permutation(3000)]).covariance()[1] for _ in range(5)]
    assert np.ptp(found) < 0.02 * np.mean(found)


@pytest.mark.parametrize("batches", [1, 40])
def test_no_digit_is_lost_far_from_zero(batches):
    """Means of 1e12 and a spread of 1: sums of values, let alone of squares, would lose it."""
    features, labels = drawn(1, 200, 3, 4, 1e12)
    moments = fitted(features, labels, np.array_split(np.arange(200), batches))
    expected = scatter(features - 1e12, labels)
    np.testing.assert_allclose(moments.scatter, expected, atol=3e-6 * np.abs(expected).max())


def test_memory_does_not_grow_with_the_images():
    features, labels = drawn(2, 64, 4, 6)
    moments = fitted(features, labels, [np.arange(64)] * 50)
    arrays = [value for part in (moments, moments.whole) for value in vars(part).values() if np.size(value) > 1]
    assert sum(map(np.size, arrays)) == 4 + 4 * 6 + 6 + 2 * 6 * 6
    assert moments.counts.sum() == 50 * 64


def test_non_finite_features_name_layer_and_count_over_all_batches():
    features, labels = drawn(2, 300, 4, 6)
    features[[3, 250], 0] = np.nan, np.inf
    moments = fitted(features, labels, np.array_split(np.arange(300), 9))
    with pytest.raises(DetectorError, match="stage2: 2 of 300 feature vectors are not finite"):
        moments.gaussians(layer="stage2")
    whole = ClassMoments(4, 6)
    whole.merge(moments)
    with pytest.raises(DetectorError, match="stage2: 2 of 300 feature vectors are not finite"):
        whole.gaussians(layer="stage2")


def test_a_class_without_images_is_named():
    features, labels = drawn(3, 300, 4, 6)
    labels[labels == 1] = 2
    with pytest.raises(DetectorError, match="class 1 has no training image"):
        fit_gaussians(features, labels, layer="x")


def test_features_that_do_not_vary_are_refused():
    labels = np.arange(20) % 2
    with pytest.raises(DetectorError, match="do not vary"):
        fit_gaussians(np.eye(2)[labels].repeat(4, axis=1), labels, layer="x")


@pytest.mark.parametrize("n", [3, 4])
def test_hardly_more_images_than_classes_leave_no_spread(n):
    with pytest.raises(DetectorError, match=f"{n} images of 3 classes leave no spread"):
        fit_gaussians(np.random.default_rng(0).normal(size=(n, 4)), np.arange(n) % 3, layer="x")
