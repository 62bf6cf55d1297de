"""What attackers raise: by hand, and of the head that is meant."""

import pytest
import torch

from bundle import tensors
from training.attacks.losses import (
    TARGETS,
    cross_entropy,
    difference_of_logits_ratio,
    loss_of,
    margin,
    targeted,
    targets_of,
)
from training.run import Run


def test_margin_is_positive_exactly_when_the_answer_is_wrong():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) != labels)


def test_the_logits_ratio_does_not_change_with_scale_or_shift():
    logits, labels = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 6
    ratio = difference_of_logits_ratio(logits, labels)
    torch.testing.assert_close(difference_of_logits_ratio(7 * logits + 3, labels), ratio, rtol=1e-4, atol=1e-5)
    assert (margin(7 * logits, labels) - margin(logits, labels)).abs().max() > 1


def test_by_hand():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    assert margin(logits, labels).item() == -2
    assert difference_of_logits_ratio(logits, labels).item() == pytest.approx(-2 / 3)
    targets = torch.tensor([1])
    assert targeted(cross_entropy)(logits, targets).item() == pytest.approx(-cross_entropy(logits, targets).item())


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_targets_are_other_classes_than_the_label(classes):
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(300, classes, generator=generator), torch.arange(300) % classes
    found = {kind: targets_of(kind, logits, labels, generator) for kind in TARGETS}
    for targets in found.values():
        assert (targets != labels).all()
        assert ((targets >= 0) & (targets < classes)).all()
    ranks = logits.argsort(1).tolist()
    for ranked, label, second, last in zip(
        ranks, labels.tolist(), found["runner-up"].tolist(), found["least-likely"].tolist(), strict=True
    ):
        others = [each for each in ranked if each != label]
        assert (second, last) == (others[-1], others[0])
    assert len(set(((found["random"] - labels) % classes).tolist())) == classes - 1


def test_the_attention_head_is_attacked_by_its_own_loss(tiny_run):
    _, network = Run(tiny_run).load_network()
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        forward = network(images)
        for head in tensors.NETWORKS:
            expected = torch.nn.functional.cross_entropy(forward.logits[head], labels, reduction="none")
            torch.testing.assert_close(loss_of(network, head)(images, labels), expected)
