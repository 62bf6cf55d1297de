"""Which images teach the detector's combination, against a selection written out one image at a time."""

from dataclasses import replace

import numpy as np
import pytest

import robustness.fitting
from bundle import tensors
from bundle.image import ImageSpec
from detector.combination import relative_combination
from detector.moments import fit_gaussians
from robustness.fitting import MIN_IMAGES, DetectorSettings, Parts, features_of, fit_detector, fit_layers
from training.data import open_dataset
from training.data.loading import image_loader, images_array, load_part
from training.run import Run

COUNT, ATTACKS = 50, ("fgsm-8", "pgd10-8")


@pytest.fixture(scope="module")
def network(tiny_run):
    return Run(tiny_run).load_network()[1]


@pytest.fixture(scope="module")
def train(tiny_birds, tiny_config):
    dataset = open_dataset(tiny_birds, seed=tiny_config.seed)
    return images_array(dataset.parts["train"], ImageSpec(height=32, width=32))


@pytest.fixture(scope="module")
def all_parts(tiny_birds, tiny_config):
    return Parts.of(open_dataset(tiny_birds, seed=tiny_config.seed), ImageSpec(height=32, width=32))


@pytest.fixture(scope="module")
def photographers(network, train):
    return {head: Photographer(network, head, train[0]) for head in tensors.NETWORKS}


@pytest.mark.parametrize("cache_bytes", [2**31, 0])
def test_gaussians_of_a_stream_are_those_of_all_features_at_once(network, train, tiny_birds, tiny_config, cache_bytes):
    samples = open_dataset(tiny_birds, seed=tiny_config.seed).parts["train"]
    spec = ImageSpec(height=32, width=32)
    part = load_part(samples, spec, cache_bytes=cache_bytes)
    loader = image_loader(part, spec, batch_size=7, shuffle_seed=None)
    found = fit_layers(network, "full", loader)
    features, _ = features_of(network, "full", train[0])
    assert found.keys() == features.keys()
    for layer, values in features.items():
        whole = fit_gaussians(values, train[1], layer=layer)
        own = whole.squared_distances(values)
        np.testing.assert_allclose(found[layer].squared_distances(values), own, rtol=1e-3, atol=1e-3)
        assert found[layer].shrinkage == pytest.approx(whole.shrinkage, rel=1e-4)


class Photographer:
    """Finds images that the network calls what a test wants it to call them."""

    def __init__(self, network, head, pool):
        self.pool, self.predicted = pool, features_of(network, head, pool)[1]
        self.classes = np.unique(self.predicted)
        self.random = np.random.default_rng(0)

    def take(self, labels, wrong):
        """Images that are called `labels` : (n,), but something else at the positions in `wrong`."""
        chosen = []
        for position, label in enumerate(labels):
            fits = (self.predicted != label) if position in wrong else (self.predicted == label)
            chosen.append(self.random.choice(np.flatnonzero(fits)))
        return self.pool[chosen]


def naive(detector, network, head, shown, labels):
    """Negatives and positives, (n, columns) each, as the paper's protocol and its two exceptions say."""
    rows, right = {}, {}
    for name, images in shown.items():
        features, answers = features_of(network, head, images)
        rows[name] = detector.layer_scores(features, answers)
        right[name] = [answer == label for answer, label in zip(answers, labels, strict=True)]
    chosen = [i for i in range(len(labels)) if right["clean"][i] and right["noise"][i]]
    if len(chosen) < 20:
        chosen = list(range(len(labels)))
    negatives = [rows["clean"][i] for i in chosen] + [rows["noise"][i] for i in chosen]
    positives = [rows[name][i] for name in ATTACKS for i in chosen if not right[name][i]]
    if len(positives) < 20:
        positives = [rows[name][i] for name in ATTACKS for i in chosen]
    return np.array(negatives), np.array(positives)


@pytest.mark.parametrize(
    ("head", "kept", "fooled", "sizes"),
    [
        ("attention", 32, (13, 11), (64, 24)),
        ("full", 20, (12, 8), (40, 20)),  # just enough of both
        ("full", 32, (11, 8), (64, 64)),  # one fooled image too few: every attacked image is a positive
        ("full", 19, (10, 9), (100, 35)),  # one image too few that is right both ways: all of them take part
    ],
)
def test_the_combination_learns_from_the_right_images(
    network, train, all_parts, photographers, head, kept, fooled, sizes, monkeypatch
):
    """`kept` images are right clean and noisy; of those the attacks fool `fooled`, and 16 in all of the others."""
    photographer = photographers[head]
    labels = np.resize(photographer.classes, COUNT).astype(np.int64)
    order = np.random.default_rng(1).permutation(COUNT)
    both, rest = order[:kept], order[kept:]
    shown = {
        "clean": photographer.take(labels, set(rest[::2])),
        "noise": photographer.take(labels, set(rest[1::2])),
        ATTACKS[0]: photographer.take(labels, {*both[: fooled[0]], *rest[:9]}),
        ATTACKS[1]: photographer.take(labels, {*both[-fooled[1] :], *rest[:7]}),
    }
    taught = []

    def attacked(name, *_, work=None):
        return shown[name]

    def spy(negatives, positives):
        taught.append((negatives, positives))
        return combination(negatives, positives)

    combination = robustness.fitting.fit_combination
    monkeypatch.setattr(robustness.fitting, "attacked", attacked)
    monkeypatch.setattr(robustness.fitting, "fit_combination", spy)
    parts = replace(all_parts, validation=(shown["clean"], labels), calibration=(train[0][:30], train[1][:30]))
    detector, lessons = fit_detector(network, head, parts, DetectorSettings(attacks=ATTACKS, alpha=0.1))
    ((negatives, positives),) = taught
    assert (len(negatives), len(positives)) == sizes
    for mine, twin in zip((negatives, positives), naive(detector, network, head, shown, labels), strict=True):
        np.testing.assert_allclose(mine, twin, rtol=1e-5)
    weights = combination(negatives, positives).weights
    np.testing.assert_array_equal(detector.combination.weights, weights)
    assert (len(detector.calibration), detector.alpha) == (30, 0.1)
    for name in ATTACKS:
        if sum(map(len, lessons.fooled.values())) - len(lessons.fooled[name]) >= MIN_IMAGES:
            left = [each for each in ATTACKS if each != name]
            np.testing.assert_array_equal(
                lessons.combination(left).weights, combination(negatives, lessons.fooled[left[0]]).weights
            )
    np.testing.assert_array_equal(
        lessons.combination(()).weights, relative_combination(lessons.clean, len(detector.layers)).weights
    )
