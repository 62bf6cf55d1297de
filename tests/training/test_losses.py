"""The regulariser of Eq. 3 against the triple loop it stands for, in float64: value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import OptionError
from training.losses import (
    LossWeights,
    Objective,
    divergence,
    nearest_prototypes,
    others_mask,
    own_regulariser,
    regulariser,
    sparsity,
)
from training.networks import Forward, Network, NetworkConfig, PrototypeHead
from training.presets import preset
from training.projection import fit_last_layer


def naive(distances, attention, labels, classes):
    """Means over i, j, t of a_j^t times the distance of x_i^t to the nearest own and nearest other prototype."""
    batch, count, height, width = distances.shape
    per_class = count // classes
    cluster = separation = 0
    for i in range(batch):
        own = [index for index in range(count) if index // per_class == labels[i]]
        other = [index for index in range(count) if index // per_class != labels[i]]
        for j in range(batch):
            for row in range(height):
                for column in range(width):
                    a = attention[j, row, column]
                    cluster = cluster + a * distances[i, own, row, column].min()
                    separation = separation + a * distances[i, other, row, column].min()
    total = batch * batch * height * width
    return cluster / total, separation / total


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**31))
def test_the_cheap_form_equals_the_triple_loop(batch, classes, per_class, seed):
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(
        batch, classes * per_class, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True
    )
    attention = torch.rand(batch, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(classes, (batch,), generator=generator)
    for fast, slow in zip(
        regulariser(distances, attention, labels, classes), naive(distances, attention, labels, classes), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
        for mine, twin in zip(
            torch.autograd.grad(fast, (distances, attention), retain_graph=True),
            torch.autograd.grad(slow, (distances, attention), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, twin, rtol=1e-12, atol=1e-12)


def test_every_image_by_its_own_attention_is_eqs_1_and_2():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(3, 4 * 2, 2, 3, generator=generator)  # 4 classes of 2 prototypes
    attention, labels = torch.rand(3, 2, 3, generator=generator), torch.tensor([0, 3, 1])
    cluster = separation = 0.0
    for image, label in enumerate(labels.tolist()):
        for row in range(2):
            for column in range(3):
                found = distances[image, :, row, column]
                own = [index // 2 == label for index in range(8)]
                cluster += attention[image, row, column] * min(found[index] for index in range(8) if own[index])
                separation += attention[image, row, column] * min(found[index] for index in range(8) if not own[index])
    expected = cluster / attention.numel(), separation / attention.numel()
    torch.testing.assert_close(own_regulariser(distances, attention, labels, 4), expected)


def test_own_attention_equals_the_batchs_for_a_batch_of_one():
    distances, attention, labels = torch.rand(1, 6, 4, 4), torch.rand(1, 4, 4), torch.tensor([2])
    ours = own_regulariser(distances, attention, labels, 3)
    torch.testing.assert_close(ours, regulariser(distances, attention, labels, 3))


def test_divergence_by_its_sum_and_nothing_for_equal_answers():
    clean, attacked = torch.randn(5, 4), torch.randn(5, 4)
    p, q = clean.softmax(1), attacked.softmax(1)
    torch.testing.assert_close(divergence(clean, attacked), (p * (p.log() - q.log())).sum(1).mean())
    assert divergence(clean, clean).abs() < 1e-6


def test_nearest_prototypes_by_hand():
    distances = torch.tensor([5.0, 3.0, 2.0, 7.0, 1.0, 9.0]).view(1, 6, 1, 1)  # three classes with two prototypes
    own, others = nearest_prototypes(distances, torch.tensor([1]), 3)
    assert (own.item(), others.item()) == (2.0, 1.0)


CONFIG = NetworkConfig(backbone="small", classes=2, prototypes_per_class=2, prototype_channels=4)


def made_up(classes=2, channels=3):
    """A forward pass that no network made."""
    torch.manual_seed(0)
    return Forward(
        stages=[],
        logits={"attention": torch.randn(3, classes), "full": torch.randn(3, classes)},
        attention=torch.rand(3, 2, 2),
        embedding=torch.randn(3, channels),
        distances=torch.rand(3, 2 * classes, 2, 2),
    )


def loss_of_terms(weights, forward, labels, *, joint=True, config=CONFIG):
    return Objective(weights, config, 3)(forward, labels, joint=joint)


def cross_entropies(forward, labels):
    return sum(torch.nn.functional.cross_entropy(logits, labels) for logits in forward.logits.values())


@pytest.mark.parametrize("joint", [False, True])
def test_the_total_loss_is_the_sum_of_its_terms(joint):
    forward, labels = made_up(), torch.tensor([0, 1, 1])
    expected = cross_entropies(forward, labels)
    if joint:
        cluster, separation = naive(forward.distances, forward.attention, labels.tolist(), 2)
        expected = expected + 3 * cluster - 0.5 * separation
    weights = LossWeights(cluster=3.0, separation=0.5)
    torch.testing.assert_close(loss_of_terms(weights, forward, labels, joint=joint), expected)


def test_protopnets_terms_take_each_images_closest_patch_alone():
    forward, labels = made_up(), [0, 1, 1]
    cluster = separation = 0.0
    for image, label in enumerate(labels):
        own = [forward.distances[image, 2 * label + k, r, c] for k in range(2) for r in range(2) for c in range(2)]
        other = [
            forward.distances[image, 2 - 2 * label + k, r, c] for k in range(2) for r in range(2) for c in range(2)
        ]
        cluster, separation = cluster + min(own) / 3, separation + min(other) / 3
    expected = cross_entropies(forward, torch.tensor(labels)) + 0.8 * cluster - 0.08 * separation
    weights = LossWeights(cluster=0.8, separation=0.08, over="nearest")
    torch.testing.assert_close(loss_of_terms(weights, forward, torch.tensor(labels)), expected)


def test_prototype_conformity_by_its_sums():
    forward, labels = made_up(classes=4), [0, 3, 1]
    config = NetworkConfig(backbone="small", classes=4)
    objective = Objective(LossWeights(cluster=0, separation=0, proximity=0.5, contrast=0.01), config, 3)
    near = away = 0.0
    for e, label in zip(forward.embedding, labels, strict=True):
        near = near + (e - objective.centers[label]).square().sum() / 3
        for other in set(range(4)) - {label}:
            w, own = objective.centers[other], objective.centers[label]
            away = away + ((e - w).square().sum() + (own - w).square().sum()) / 3 / 3
    expected = cross_entropies(forward, torch.tensor(labels)) + 0.5 * near - 0.01 * away
    torch.testing.assert_close(objective(forward, torch.tensor(labels), joint=True), expected)


def test_the_triplet_term_pulls_a_class_together_and_pushes_others_away():
    forward, labels = made_up(), torch.tensor([0, 0, 1])
    unit = torch.nn.functional.normalize(forward.embedding)
    distance = torch.cdist(unit, unit)
    hinges = [
        (distance[0, 1] - distance[0, 2] + 0.7).clamp_min(0),
        (distance[1, 0] - distance[1, 2] + 0.7).clamp_min(0),
    ]
    positive = [hinge for hinge in hinges if hinge > 0]
    assert positive, "nothing to test"
    expected = cross_entropies(forward, labels) + 2 * sum(positive) / len(positive)
    weights = LossWeights(cluster=0, separation=0, triplet=2.0, triplet_margin=0.7)
    torch.testing.assert_close(loss_of_terms(weights, forward, labels), expected)


def test_a_weight_of_zero_switches_its_term_off():
    forward, labels = made_up(), torch.tensor([0, 1, 1])
    none = LossWeights(cluster=0.0, separation=0.0)
    torch.testing.assert_close(loss_of_terms(none, forward, labels), cross_entropies(forward, labels))


def test_label_smoothing_mixes_all_heads_targets_with_the_uniform_distribution():
    forward, labels = made_up(classes=4), [0, 3, 1]
    expected = 0.0
    for logits in forward.logits.values():
        for row, label in zip(logits.log_softmax(1), labels, strict=True):
            expected = expected - (0.8 * row[label] + 0.2 * row.mean()) / 3
    config = NetworkConfig(backbone="small", classes=4)
    weights = LossWeights(label_smoothing=0.2)
    loss = loss_of_terms(weights, forward, torch.tensor(labels), joint=False, config=config)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"over": "some"}, "attention, own, nearest"),
        ({"cluster": -1.0}, "cluster"),
        ({"label_smoothing": 1.0}, "smoothing"),
    ],
)
def test_bad_weights_are_one_sentence(change, message):
    with pytest.raises(OptionError, match=message):
        LossWeights(**change)


def test_sparsity_counts_only_weights_from_other_classes():
    head = Network(
        NetworkConfig(backbone="small", classes=3, prototypes_per_class=2, prototype_channels=4)
    ).prototype_head
    assert sparsity(head).item() == pytest.approx(12 * 0.5)  # 3 classes, 4 others' prototypes each, -0.5
    with torch.no_grad():
        head.classifier.weight[0, 0] += 9  # class 0's own prototype
        head.classifier.weight[0, 5] -= 9
    assert sparsity(head).item() == pytest.approx(12 * 0.5 + 9)
    assert sparsity(head, others_mask(head)).item() == sparsity(head).item()


def test_the_last_layer_is_fitted_with_one_mask_for_all_its_steps(monkeypatch):
    """With a thousand classes a mask has ten million entries; made anew at every step, it took half of the time."""
    config = NetworkConfig(backbone="small", classes=3, prototypes_per_class=2, prototype_channels=8)
    torch.manual_seed(0)
    networks = [Network(config)]
    networks.append(Network(config))
    networks[1].load_state_dict(networks[0].state_dict())
    images, labels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8), torch.arange(8) % 3
    settings = preset("small", batch_size=4, last_layer_epochs=3, prototypes_per_class=2, prototype_channels=8)
    made, own_class = [], PrototypeHead.own_class
    monkeypatch.setattr(PrototypeHead, "own_class", staticmethod(lambda *shape: made.append(1) or own_class(*shape)))
    fit_last_layer(networks[0], lambda: [(images, labels, torch.arange(8))], settings)
    assert len(made) == 1
    monkeypatch.setattr("training.projection.sparsity", lambda head, mask: sparsity(head))
    fit_last_layer(networks[1], lambda: [(images, labels, torch.arange(8))], settings)
    weights = [network.prototype_head.classifier.weight for network in networks]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], Network(config).prototype_head.classifier.weight)
