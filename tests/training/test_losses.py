"""The regulariser of Eq. 3 against the triple loop it stands for, in float64: value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses import LossWeights, nearest_prototypes, regulariser, sparsity, total_loss
from training.networks import Forward, Network, NetworkConfig


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


def test_nearest_prototypes_by_hand():
    distances = torch.tensor([5.0, 3.0, 2.0, 7.0, 1.0, 9.0]).view(1, 6, 1, 1)  # three classes with two prototypes
    own, others = nearest_prototypes(distances, torch.tensor([1]), 3)
    assert (own.item(), others.item()) == (2.0, 1.0)


@pytest.mark.parametrize("joint", [False, True])
def test_the_total_loss_is_the_sum_of_its_terms(joint):
    torch.manual_seed(0)
    forward = Forward(
        stages=[],
        attention_logits=torch.randn(3, 2),
        attention=torch.rand(3, 2, 2),
        local=torch.empty(0),
        distances=torch.rand(3, 4, 2, 2),
        similarities=torch.empty(0),
        logits=torch.randn(3, 2),
    )
    labels = torch.tensor([0, 1, 1])
    weights = LossWeights(cluster=3.0, separation=0.5)
    expected = torch.nn.functional.cross_entropy(forward.attention_logits, labels)
    expected = expected + torch.nn.functional.cross_entropy(forward.logits, labels)
    if joint:
        cluster, separation = naive(forward.distances, forward.attention, labels.tolist(), 2)
        expected = expected + 3 * cluster - 0.5 * separation
    torch.testing.assert_close(total_loss(forward, labels, weights, joint=joint), expected)


def test_label_smoothing_mixes_both_heads_targets_with_the_uniform_distribution():
    torch.manual_seed(0)
    attention_logits, logits = torch.randn(3, 4), torch.randn(3, 4)
    empty = torch.empty(0)
    forward = Forward(
        stages=[],
        attention_logits=attention_logits,
        attention=empty,
        local=empty,
        distances=empty,
        similarities=empty,
        logits=logits,
    )
    labels = [0, 3, 1]
    expected = 0.0
    for head in (attention_logits, logits):
        for row, label in zip(head.log_softmax(1), labels, strict=True):
            expected = expected - (0.8 * row[label] + 0.2 * row.mean()) / 3
    loss = total_loss(forward, torch.tensor(labels), LossWeights(label_smoothing=0.2), joint=False)
    torch.testing.assert_close(loss, expected)


def test_sparsity_counts_only_weights_from_other_classes():
    network = Network(NetworkConfig(backbone="small", classes=3, prototypes_per_class=2, prototype_channels=4))
    assert sparsity(network).item() == pytest.approx(12 * 0.5)  # 3 classes, 4 others' prototypes each, -0.5
    with torch.no_grad():
        network.prototype_head.classifier.weight[0, 0] += 9  # class 0's own prototype
        network.prototype_head.classifier.weight[0, 5] -= 9
    assert sparsity(network).item() == pytest.approx(12 * 0.5 + 9)
