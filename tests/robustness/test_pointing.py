"""Pointing at parts: hand-made maps whose figures are known, a naive twin, and a trained network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import DatasetError, OptionError
from robustness.accuracy import evaluate_run
from robustness.pointing import MEASURES, SHOWN, activation_maps, on_parts, pointing
from robustness.suites import SUITES
from training.attacks.attacker import Attacker, Attackers
from training.networks import Network, NetworkConfig
from training.run import Run

SIDE, CELLS = 48, 6  # pixels a cell: 8
INF = torch.inf


def peaked(*cells, height=1.0):
    """One map for each (row, column), with its only mass there : (1, n, CELLS, CELLS)."""
    maps = torch.zeros(1, len(cells), CELLS, CELLS)
    for index, (row, column) in enumerate(cells):
        maps[0, index, row, column] = height
    return maps


def parts(*places):
    return torch.tensor([places], dtype=torch.float64)


def test_a_peak_on_a_part_is_all_and_a_peak_elsewhere_is_nothing():
    beak = parts((20.0, 36.0), (INF, INF))  # the middle of cell row 4, column 2
    for cell, share in (((4, 2), 1.0), ((2, 4), 0.0), ((3, 2), 0.0), ((4, 3), 0.0)):
        found = on_parts(peaked(cell)[:, 0], peaked(cell, cell), beak, SIDE)
        assert found["pointing"] == found["prototypes"] == share
    wide = on_parts(peaked((4, 2))[:, 0], None, beak, SIDE, radius=0.4)
    assert wide["attention_mass"] == pytest.approx(1)
    assert on_parts(peaked((0, 5))[:, 0], None, beak, SIDE)["attention_mass"] == 0


def test_prototypes_are_counted_one_by_one_and_on_any_part():
    found = on_parts(None, peaked((4, 2), (0, 0), (1, 1), (4, 2), (5, 5)), parts((20.0, 36.0), (12.0, 12.0)), SIDE)
    assert found["prototypes"] == pytest.approx(3 / 5)
    assert "pointing" not in found
    assert "attention_mass" not in found


@pytest.mark.parametrize(("distance", "on"), [(4.79, 1.0), (4.81, 0.0)])
def test_the_radius_is_a_tenth_of_the_side(distance, on):
    found = on_parts(peaked((4, 2))[:, 0], None, parts((20.0 + distance * 0.6, 36.0 - distance * 0.8)), SIDE)
    assert found["pointing"] == on


@pytest.mark.parametrize("height", [0.0, -1.0])
def test_a_map_without_a_positive_value_points_nowhere(height):
    everywhere = parts((4.0, 4.0), (20.0, 36.0), (44.0, 44.0))
    maps = peaked((4, 2), height=0.0) + height
    assert on_parts(None, maps, everywhere, SIDE, radius=0.99)["prototypes"] == 0
    found = on_parts(torch.zeros(1, CELLS, CELLS), None, everywhere, SIDE, radius=0.99)
    assert found["pointing"] == found["attention_mass"] == 0


def test_an_image_without_parts_has_no_figure():
    both = torch.cat([parts((INF, INF)), parts((20.0, 36.0))])
    maps = peaked((4, 2)).expand(2, -1, -1, -1)
    for share in on_parts(maps[:, 0], maps, both, SIDE).values():
        assert share.isnan().tolist() == [True, False]


def test_chance_is_what_random_points_get_and_the_centre_what_the_middle_gets():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, SIDE, (4, 7, 2))
    found = on_parts(torch.ones(4, CELLS, CELLS), None, torch.from_numpy(places), SIDE)
    points = rng.uniform(0, SIDE, (40_000, 2))
    for image, chance in enumerate(found["chance"].tolist()):
        nearest = np.linalg.norm(points[:, None] - places[image], axis=2).min(axis=1)
        assert chance == pytest.approx((nearest <= 0.1 * SIDE).mean(), abs=0.015)
    torch.testing.assert_close(found["attention_mass"], found["chance"])  # a map that is the same everywhere
    nearest = np.linalg.norm(places - SIDE / 2, axis=2).min(axis=1)
    assert found["centre"].tolist() == (nearest <= 0.1 * SIDE).tolist()
    assert on_parts(None, None, parts((24.0, 20.0)), SIDE)["centre"] == 1


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 7), st.sampled_from([12, 16]), st.floats(0.05, 0.5))
def test_pixel_by_pixel_and_map_by_map(seed, rows, columns, side, radius):
    rng = torch.Generator().manual_seed(seed)
    attention, fired = torch.rand(1, rows, columns, generator=rng), torch.rand(1, 3, rows, columns, generator=rng)
    places = torch.rand(1, 4, 2, generator=rng, dtype=torch.float64) * side
    places[0, 3] = INF
    found = on_parts(attention, fired, places, side, radius)

    def is_on(x, y):
        return any((x - px) ** 2 + (y - py) ** 2 <= (radius * side) ** 2 for px, py in places[0].tolist())

    def sampled(y, x):  # bilinear, the outermost values going on to the border
        y = min(max((y + 0.5) * rows / side - 0.5, 0), rows - 1)
        x = min(max((x + 0.5) * columns / side - 0.5, 0), columns - 1)
        top, left = int(y), int(x)
        low, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        a, b, values = y - top, x - left, attention[0].double()
        above = values[top, left] * (1 - b) + values[top, right] * b
        return (above * (1 - a) + (values[low, left] * (1 - b) + values[low, right] * b) * a).item()

    pixels = [(sampled(y, x), is_on(x + 0.5, y + 0.5)) for y in range(side) for x in range(side)]
    mass = sum(value for value, on in pixels if on) / sum(value for value, _ in pixels)
    assert found["attention_mass"].item() == pytest.approx(mass, abs=1e-5)
    assert found["chance"].item() == pytest.approx(sum(on for _, on in pixels) / len(pixels))

    def hit(one):
        row, column = max(((r, c) for r in range(rows) for c in range(columns)), key=lambda cell: one[cell])
        return is_on((column + 0.5) * side / columns, (row + 0.5) * side / rows)

    assert found["pointing"].item() == hit(attention[0])
    assert found["prototypes"].item() == pytest.approx(sum(hit(each) for each in fired[0]) / 3)


@pytest.fixture(scope="module")
def trained(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    return record, network, record.dataset.unchanged_at(tiny_birds)


def untrained(record, *heads):
    torch.manual_seed(0)
    config = NetworkConfig(
        backbone="small", classes=len(record.labels), heads=heads, prototypes_per_class=7, prototype_channels=8
    )
    return Network(config).eval().requires_grad_(False)


def test_the_maps_are_those_of_the_predicted_class(trained):
    network, images = untrained(trained[0], "full", "attention"), torch.rand(9, 3, 32, 32)
    forward = network(images)
    for head in ("full", "attention"):
        attention, fired, predicted = activation_maps(network, head, images)
        torch.testing.assert_close(attention, forward.attention)
        assert torch.equal(predicted, forward.logits[head].argmax(1))
        assert (fired is None) == (head == "attention")
    attention, fired, predicted = activation_maps(network, "full", images)
    for image, label in enumerate(predicted.tolist()):
        own = range(label * 7, label * 7 + 7)
        best = sorted(own, key=lambda prototype: -forward.similarities[image, prototype])[:SHOWN]
        for place, prototype in enumerate(best):
            distances = forward.distances[image, prototype]
            expected = torch.log((distances + 1) / (distances + network.config.gamma)) * forward.attention[image]
            torch.testing.assert_close(fired[image, place], expected)


def test_a_trained_run_is_measured_under_the_attack_on_its_own_head(trained, tiny_birds, monkeypatch):
    record, network, dataset = trained
    made = []

    def spy(attacker, name, pixels, labels):
        made.append((name, attacker.head))
        return attack(attacker, name, pixels, labels)

    attack = Attacker.attack
    monkeypatch.setattr(Attacker, "attack", spy)
    attackers = Attackers(network=network)
    result = pointing(record, attackers, dataset, attacks=("pgd10-8",), count=9)
    assert result["images"] == 9
    assert made == [(name, head) for head in ("full", "attention") for name in ("clean", "pgd10-8")]
    suite = replace(SUITES["paper"], attacks=("pgd10-8",), count=9, autoattack_count=0)
    answers = evaluate_run(record, attackers, tiny_birds, suite)
    assert list(result["heads"]) == list(answers["right"]) == ["full", "attention"]
    for head, columns in result["heads"].items():
        assert list(columns) == ["clean", "pgd10-8"]
        for name, column in columns.items():
            assert column["right"]["share"] == round(answers["right"][head][name].count("1") / 9, 4)
            for kind in ("parts", "field_marks"):
                assert set(column[kind]) == set(MEASURES)
                assert (column[kind]["prototypes"] is None) == (head == "attention")
                for measure in (each for each in column[kind].values() if each):
                    assert 0 <= measure["interval"][0] <= measure["share"] <= measure["interval"][1] <= 1
            assert column["field_marks"]["chance"]["share"] < column["parts"]["chance"]["share"]
    clean, attacked = result["heads"]["full"].values()
    assert clean["parts"]["chance"] == attacked["parts"]["chance"]
    assert clean["parts"]["attention_mass"] != attacked["parts"]["attention_mass"]


@pytest.mark.parametrize("head", ["attention", "full"])
def test_a_network_of_one_head_has_what_that_head_has(trained, head):
    record, _, dataset = trained
    attackers = Attackers(network=untrained(record, head))
    found = pointing(record, attackers, dataset, attacks=(), count=3)["heads"][head]["clean"]
    missing = {"attention": {"prototypes"}, "full": {"attention_mass", "pointing"}}[head]
    assert {measure for measure, value in found["parts"].items() if value is None} == missing


def test_nobody_knows_the_field_marks_of_other_species(trained):
    record, network, dataset = trained
    dataset = replace(dataset, labels=("Auk", "Bee-eater", "Crow"))
    found = pointing(record, Attackers(network=network), dataset, attacks=(), count=3)["heads"]["full"]["clean"]
    assert found["field_marks"] is None
    assert found["parts"]["pointing"] is not None


def test_what_cannot_be_measured_is_one_sentence(trained):
    record, network, dataset = trained
    bare = {part: tuple(replace(each, landmarks=()) for each in samples) for part, samples in dataset.parts.items()}
    attackers, options = Attackers(network=network), {"attacks": (), "count": 3}
    with pytest.raises(DatasetError, match=r"no part annotations for its test images.*CUB-200-2011"):
        pointing(record, attackers, replace(dataset, parts=bare), **options)
    with pytest.raises(OptionError, match="neither attention nor prototypes"):
        pointing(record, Attackers(network=untrained(record, "pooled")), dataset, **options)
    with pytest.raises(OptionError, match="unknown part 'tset'"):
        pointing(record, attackers, dataset, part="tset", **options)
    with pytest.raises(OptionError, match="unknown attack"):
        pointing(record, attackers, dataset, **{**options, "attacks": ("pdg10-8",)})
    for radius in (0.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match=r"not in 0\.\.1"):
            pointing(record, attackers, dataset, radius=radius, **options)
