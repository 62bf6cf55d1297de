"""The combination and the whole detector: what it learns, what it keeps on disk, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from bundle.errors import BundleCorrupt, DetectorError
from detector.combination import fit_combination, fit_logistic, relative_combination
from detector.model import Detector, layer_scores
from detector.moments import fit_gaussians

NAMES = ("ant", "bee", "crab", "dove")


@pytest.fixture
def detector():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = {
        "stage1": rng.normal(size=(200, 6)) + labels[:, None],
        "stage2": rng.normal(size=(200, 9)) - labels[:, None],
    }
    gaussians = {layer: fit_gaussians(values, labels, layer=layer) for layer, values in features.items()}
    clean = layer_scores(tuple(gaussians), tuple(gaussians.values()), features, labels)
    fitted = Detector(
        layers=tuple(gaussians),
        gaussians=tuple(gaussians.values()),
        combination=fit_combination(clean, clean * 4),
        calibration=np.zeros(1, np.float32),
        alpha=0.05,
    )
    return fitted.calibrated(fitted.score(features, labels), labels, 0.05, NAMES), features, labels


def test_far_features_get_small_p_values_and_near_ones_do_not(detector):
    fitted, features, labels = detector
    far = {layer: values + 30 for layer, values in features.items()}
    assert fitted.p_values(fitted.score(far, labels), labels).max() == pytest.approx(1 / 201)
    assert fitted.p_values(fitted.score(features, labels), labels).mean() == pytest.approx(0.5, abs=0.01)


def test_an_answer_that_the_features_do_not_bear_out_is_suspicious(detector):
    fitted, features, labels = detector
    assert fitted.columns == tuple(
        f"{layer}/{distance}" for layer in ("stage1", "stage2") for distance in ("nearest", "predicted", "overall")
    )
    scores = fitted.layer_scores(features, (labels + 2) % 4)
    right = fitted.layer_scores(features, labels)
    np.testing.assert_array_equal(scores[:, [0, 2, 3, 5]], right[:, [0, 2, 3, 5]])
    assert (scores[:, 1::3] > 2 * right[:, 1::3]).mean() > 0.9


def test_the_combination_uses_the_layer_that_tells():
    rng = np.random.default_rng(1)
    clean = rng.chisquare(5, size=(300, 2))
    attacked = np.stack([clean[:, 0] * 6, rng.chisquare(5, size=300)], 1)
    combination = fit_combination(clean, attacked)
    assert combination.weights[0] > 5 * abs(combination.weights[1])
    assert combination.score(attacked).mean() > combination.score(clean).mean()


def test_zero_is_even_odds_whatever_the_share_of_attacks_and_the_weights_act_on_logarithms():
    """Two log-normal clouds: the logistic regression has a closed form, w = shift / variance, zero half-way."""
    rng = np.random.default_rng(2)
    for n, m in ((4000, 4000), (6000, 600)):
        clean = np.exp(rng.normal(-4, 1, size=(n, 1)))  # far below 1, where log(d + 1) would be flat
        attacked = np.exp(rng.normal(-2, 1, size=(m, 1)))
        combination = fit_combination(clean, attacked)
        assert combination.weights[0] == pytest.approx(2, rel=0.15)
        assert combination.score(np.exp([[-3.0]]))[0] == pytest.approx(0, abs=0.2)


def test_saving_and_loading_gives_the_same_answers(detector, tmp_path):
    fitted, features, labels = detector
    fitted.save(tmp_path / "detector.npz")
    loaded = Detector.load(tmp_path / "detector.npz")
    np.testing.assert_array_equal(loaded.score(features, labels), fitted.score(features, labels))
    np.testing.assert_array_equal(loaded.calibration, fitted.calibration)
    assert (loaded.layers, loaded.alpha) == (fitted.layers, fitted.alpha)
    assert [part.shrinkage for part in loaded.gaussians] == [part.shrinkage for part in fitted.gaussians]


def test_calibration_per_class_is_kept_on_disk_and_compares_with_the_same_class_alone(detector, tmp_path):
    fitted, features, labels = detector
    fitted = replace(fitted, calibration_classes=np.zeros(0, np.int64))
    scores = fitted.score(features, labels)
    shuffled = np.random.default_rng(3).permutation(200)
    fitted = fitted.calibrated(scores[shuffled], labels[shuffled], 0.05, NAMES)
    assert fitted.calibration_n == 50
    assert fitted.groups(np.array([0, 2, 2, 2])) == [(1, 50), (3, 50)]
    assert detector[0].groups(np.array([0, 2, 2])) == [(3, len(detector[0].calibration))]
    np.testing.assert_array_equal(fitted.calibration, np.sort(scores))
    values = fitted.p_values(scores, labels)
    for k in range(4):
        own = scores[labels == k]
        np.testing.assert_allclose(values[labels == k], [(1 + (own >= s).sum()) / 51 for s in own], rtol=1e-6)
    fitted.save(tmp_path / "detector.npz")
    loaded = Detector.load(tmp_path / "detector.npz")
    np.testing.assert_array_equal(loaded.p_values(scores, labels), values)
    np.testing.assert_array_equal(loaded.calibration_classes, fitted.calibration_classes)


def test_a_class_with_too_few_calibration_images_is_named(detector):
    fitted, features, labels = detector
    fitted = replace(fitted, calibration_classes=np.zeros(0, np.int64))
    scores = fitted.score(features, labels)
    answers = np.where((labels == 2) & (np.arange(200) > 72), 3, labels)
    with pytest.raises(DetectorError, match=r"18 calibration images are classified as 'crab'.* needs 19 .*\(1 of 4"):
        fitted.calibrated(scores, answers, 0.05, NAMES)
    answers[np.flatnonzero(labels == 3)[0]] = 2
    assert fitted.calibrated(scores, answers, 0.05, NAMES).calibration_n == 19
    with pytest.raises(DetectorError, match=r"0 calibration images are classified as 'dove'"):
        fitted.calibrated(scores, labels % 3, 0.05, NAMES)


def test_a_pickle_is_never_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", layers=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleCorrupt, match="is not a detector"):
        Detector.load(tmp_path / "evil.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_damaged_files_are_named(content, tmp_path):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(BundleCorrupt, match=r"d\.npz is not a detector"):
        Detector.load(tmp_path / "d.npz")


def test_calibration_refuses_what_is_not_finite_and_what_is_too_few(detector):
    fitted, _, _ = detector
    with pytest.raises(DetectorError, match="2 calibration scores are not finite"):
        fitted.calibrated(np.array([1.0] * 30 + [np.nan, np.inf], np.float32), np.arange(32) % 4, 0.05, NAMES)
    with pytest.raises(DetectorError, match="At least 19"):
        fitted.calibrated(np.ones(18, np.float32), np.arange(18) % 4, 0.05, NAMES)


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(DetectorError, match=r"too few .*--attacks none"):
        fit_combination(np.ones((5, 2)), np.ones((1, 2)))
    with pytest.raises(DetectorError, match="1 clean images are too few"):
        relative_combination(np.ones((1, 3)), 1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0, 6), st.integers(2, 60))
def test_newtons_method_finds_what_scikit_learn_finds(seed, columns, shift, count):
    """Also where both classes can be told apart, or one of them is small."""
    rng = np.random.default_rng(seed)
    negatives, positives = rng.normal(size=(80, columns)), rng.normal(size=(count, columns)) + shift
    rows = np.concatenate([negatives, positives]) * 7 - 40
    weights, bias = fit_logistic(rows[:80], rows[80:])
    scaled = (rows - rows.mean(0)) / rows.std(0)
    model = LogisticRegression(class_weight="balanced", solver="newton-cholesky", tol=1e-12, max_iter=5000)
    model.fit(scaled, np.arange(len(rows)) >= 80)
    np.testing.assert_allclose(rows @ weights + bias, model.decision_function(scaled), atol=1e-6)


def test_without_attacks_each_standard_deviation_of_a_ratio_counts_alike():
    """Two layers of three distances, written out image by image; what moves all three alike is no suspicion."""
    rng = np.random.default_rng(4)
    clean = np.exp(rng.normal([3, -1, 8, 2, 0, 1], [0.5, 2, 1, 0.1, 1, 3], size=(500, 6)))
    combination = relative_combination(clean, 2)
    ratios = np.log([[row[0] / row[2], row[1] / row[2], row[3] / row[5], row[4] / row[5]] for row in clean])
    expected = ((ratios - ratios.mean(0)) / ratios.std(0)).sum(1)
    np.testing.assert_allclose(combination.score(clean), expected, atol=1e-2)
    np.testing.assert_allclose(combination.score(clean * 7), expected, atol=1e-2)
    assert combination.score(clean * [5, 5, 1, 5, 5, 1]).min() > combination.score(clean).min()


def test_layer_scores_of_the_calibration_are_kept_beside_its_scores_and_never_go_stale(detector, tmp_path):
    fitted, features, labels = detector
    scores, layers = fitted.score(features, labels), fitted.layer_scores(features, labels)
    kept = fitted.calibrated(scores, labels, 0.05, NAMES, layers=layers)
    kept.save(tmp_path / "detector.npz")
    loaded = Detector.load(tmp_path / "detector.npz")
    np.testing.assert_array_equal(loaded.calibration_layers, layers[np.argsort(scores, kind="stable")])
    np.testing.assert_allclose(loaded.combination.score(loaded.calibration_layers), loaded.calibration, rtol=1e-4)
    assert loaded.calibrated(scores, labels, 0.05, NAMES).calibration_layers is None
    replace(kept, calibration_layers=layers[:-1]).save(tmp_path / "detector.npz")
    with pytest.raises(BundleCorrupt, match="calibration_layers"):
        Detector.load(tmp_path / "detector.npz")
