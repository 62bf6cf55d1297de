"""Which layers stay: those that hold-out images and attacks bear out, and the same ones every time."""

import numpy as np
import pytest

from benchmarks.rivals.selection import columns_of, left_out_auroc, select_layers


def layers_that(rng, shifts, n=400):
    """Negatives and positives of three attacks, two columns a layer, moved by `shifts` : (attacks, layers) in logs."""
    images = np.arange(n)
    clean = rng.normal(size=(n, 2 * len(shifts[0])))
    moved = {f"attack{i}": rng.normal(size=clean.shape) + np.repeat(shift, 2) for i, shift in enumerate(shifts)}
    return (np.exp(clean), images), {name: (np.exp(rows), images) for name, rows in moved.items()}


def test_a_layer_that_misleads_about_unseen_attacks_leaves_and_the_others_stay():
    """Layer 1 rises under the first two attacks and falls under the third: weights learnt on two betray the third."""
    shifts = [[1.0, 2.0, 0.5], [1.0, 2.0, 0.5], [1.0, -2.0, 0.5]]
    negatives, positives = layers_that(np.random.default_rng(1), shifts)
    assert select_layers(3, negatives, positives) == (0, 2)
    assert select_layers(3, negatives, positives) == (0, 2)


def test_layers_that_help_or_say_nothing_all_stay():
    negatives, positives = layers_that(np.random.default_rng(2), [[1.0, 1.0, 0.8, 0.0]] * 3)
    assert select_layers(4, negatives, positives) == (0, 1, 2, 3)


def test_images_and_attack_are_both_held_out():
    """A column that knows each image by heart, and one that knows each attack, are worth nothing."""
    rng = np.random.default_rng(3)
    n = 200
    images = np.arange(n)
    clean = (np.exp(rng.normal(size=(n, 1))), images)
    positives = {f"attack{i}": (np.exp(rng.normal(size=(n, 1)) + shift), images) for i, shift in enumerate((3, -3))}
    assert left_out_auroc(clean, positives, [0]).mean() < 0.1  # what raised it is learnt, and the other one lowers it
    alone = {"attack0": positives["attack0"]}
    assert left_out_auroc(clean, alone, [0]).mean() > 0.95  # a single attack can only be judged by itself


def test_an_image_that_taught_is_no_judge():
    """Forty columns of noise tell sixty images by heart, and no new one."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(8):
        images = np.arange(60)
        clean, moved = (np.exp(rng.normal(size=(60, 40))) for _ in range(2))
        found.append(left_out_auroc((clean, images), {"a": (moved, images)}, range(40)).mean())
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_attacks_that_fooled_hardly_an_image_are_no_obstacle():
    negatives, positives = layers_that(np.random.default_rng(4), [[1.0, 1.0]] * 2)
    rows, images = positives["attack1"]
    assert select_layers(2, negatives, {**positives, "attack1": (rows[:0], images[:0])}) == (0, 1)
    assert select_layers(2, negatives, {"attack0": (rows[:1], images[:1])}) == (0, 1)


def test_columns_of_layers():
    assert columns_of((0, 2), 2) == [0, 1, 4, 5]
