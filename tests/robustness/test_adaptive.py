"""Attacks on both: they break a detector that is weak on purpose, stay in the ball, and what they claim is true."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bundle.errors import OptionError
from detector.combination import Combination
from detector.gaussian import ClassGaussians
from detector.model import Detector
from robustness.adaptive import METHODS, AdaptiveAttack, attack_both, succeeds
from robustness.defended import Defended, DefendedForward
from robustness.fitting import features_of
from training.attacks.loop import run_attack
from training.attacks.losses import margin
from training.attacks.names import attack_named
from training.run import Run


@pytest.fixture(scope="module")
def network(tiny_run):
    return Run(tiny_run).load_network()[1]


@pytest.fixture(scope="module")
def images(network):
    """Noise images and the answers to them, so that every image begins rightly answered."""
    pixels = (torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 255).round() / 255
    with torch.no_grad():
        return pixels, network(pixels, "full").logits["full"].argmax(1)


def weak(network, pixels, layers=("stage1",)):
    """A detector of one early layer around the given images: whatever moves away from them is flagged."""
    shown = (pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    features, predicted = features_of(network, "full", shown)
    gaussians = []
    for layer in layers:
        center = features[layer].mean(axis=0).astype(np.float32)
        spread = features[layer].std(axis=0).mean() + 1e-6
        gaussians.append(
            ClassGaussians(
                whitening=(np.eye(len(center)) / spread).astype(np.float32),
                center=center,
                means=np.zeros((network.config.classes, len(center)), np.float32),
                shrinkage=0.0,
                overall=np.eye(len(center), dtype=np.float32),
            )
        )
    combination = Combination(weights=np.array([0.5, 0.5, 0.1] * len(layers), np.float32), bias=0.0)
    detector = Detector(
        layers=layers,
        gaussians=tuple(gaussians),
        combination=combination,
        calibration=np.zeros(99, np.float32),
        alpha=0.05,
    )
    found = detector.score(features, predicted)
    steps = np.linspace(found.min(), found.max(), 99).astype(np.float32)
    return detector.calibrated(steps, np.zeros(99, np.int64), 0.05, ("a", "b", "c"))


class Drawn(nn.Module):
    """Two classes by the sign of w . x, and a detector that sees how far `seen` . x has moved; both drawn by hand."""

    def __init__(self, seen_channels):
        super().__init__()
        self.w = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)).sign()
        self.seen = (
            self.w * torch.tensor([1.0 if channel < seen_channels else 0.0 for channel in range(3)])[:, None, None]
        )

    def forward(self, images):
        side = ((images - 0.5) * self.w).sum((1, 2, 3)) + 1.0
        score = ((images - 0.5) * self.seen).sum((1, 2, 3)).abs()
        logits = torch.stack([side, -side], 1)
        return DefendedForward(logits, score, score[:, None], (logits,))

    def flags(self, answer, _):
        return answer.score > 0.5


@pytest.mark.parametrize(("method", "weight"), [("selective", 1.0), ("orthogonal", 1.0), ("joint", 0.1)])
def test_a_weak_detector_that_flags_plain_attacks_is_broken_and_a_perfect_one_is_not(method, weight):
    """It sees a third of the pixels, so that the rest can be used; one that sees them all leaves no way."""
    pixels, labels = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    for channels, broken in ((1, True), (3, False)):
        defended = Drawn(channels)
        plain = run_attack(attack_named("bim10-8"), lambda x, y, net=defended: margin(net(x).logits, y), pixels, labels)
        answer = defended(plain)
        assert (answer.logits.argmax(1) == 1).all()
        assert defended.flags(answer, 0.05).all()  # of use against who does not aim at it
        attack = AdaptiveAttack(name="both", alpha=0.05, method=method, eps=8 / 255, steps=100, weight=weight)
        found = attack_both(attack, defended, pixels, labels, torch.Generator().manual_seed(0))
        assert found.fooled.sum() >= 3 if broken else not found.fooled.any()


def test_a_gated_head_is_attacked_by_its_own_loss_or_by_all_of_them(network, images):
    pixels, labels = images
    defended = Defended(network, "full", weak(network, pixels)).eval()
    steps = {}
    for own in (False, True):
        attack = AdaptiveAttack(name="o", alpha=0.05, method="selective", eps=0.1, steps=1, own=own)
        steps[own] = METHODS["selective"](attack, defended)(pixels, labels)
        leaves = pixels.clone().requires_grad_()
        answer = defended(leaves)
        heads = (answer.logits,) if own else answer.heads
        assert len(answer.heads) == 2
        (expected,) = torch.autograd.grad(sum(margin(each, labels).sum() for each in heads), leaves)
        torch.testing.assert_close(steps[own], expected)
    assert not torch.equal(steps[False], steps[True])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(METHODS)), st.integers(0, 64), st.integers(1, 6), st.integers(0, 2**31))
def test_inside_the_ball_in_whole_levels_and_true_to_what_is_claimed(network, images, method, level, steps, seed):
    pixels, labels = images
    defended = Defended(network, "full", weak(network, pixels)).eval()
    attack = AdaptiveAttack(name="any", alpha=0.05, method=method, eps=level / 255, steps=steps)
    found = attack_both(attack, defended, pixels, labels, torch.Generator().manual_seed(seed))
    moved = (found.images * 255 - pixels * 255).abs()
    assert moved.max() <= level + 1e-3
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert torch.equal((found.images * 255).round() / 255, found.images)
    assert torch.equal(succeeds(defended, found.images, labels, 0.05), found.fooled)


def test_the_score_and_answer_are_those_of_the_numpy_detector(network, images):
    pixels, _ = images
    detector = weak(network, pixels, ("stage1", "attended"))
    shown = (pixels * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    features, predicted = features_of(network, "full", shown)
    with torch.no_grad():
        answer = Defended(network, "full", detector).eval()(pixels)
    np.testing.assert_allclose(answer.score.numpy(), detector.score(features, predicted), rtol=1e-4, atol=1e-4)
    assert torch.equal(answer.logits.argmax(1), torch.from_numpy(predicted))


def test_the_orthogonal_step_leaves_the_other_side_as_it_is(network, images):
    pixels, labels = images
    defended = Defended(network, "full", weak(network, pixels)).eval()
    attack = AdaptiveAttack(name="o", alpha=0.05, method="orthogonal", eps=0.1, steps=1)
    step = METHODS["orthogonal"](attack, defended)(pixels, labels).flatten(1)
    leaves = pixels.clone().requires_grad_()
    (hiding,) = torch.autograd.grad(-defended(leaves).score.sum(), leaves)
    hiding = hiding.flatten(1)  # all answers are right, so the step fools, and must not touch the score
    cosine = (step * hiding).sum(1) / (step.norm(dim=1) * hiding.norm(dim=1)).clamp_min(1e-12)
    assert step.norm(dim=1).min() > 0
    assert cosine.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "other"}, "joint, selective, orthogonal"),
        ({"eps": 1.5}, "outside"),
        ({"steps": 0}, "fewer than one"),
    ],
)
def test_numbers_that_mean_nothing(changes, message):
    with pytest.raises(OptionError, match=message):
        AdaptiveAttack(**{"name": "x", "method": "joint", "eps": 0.1, "steps": 3, "alpha": 0.05, **changes})
