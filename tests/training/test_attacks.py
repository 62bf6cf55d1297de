"""Attacks: inside the ball to the last float, stronger with steps, and what their names mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import OptionError
from training.attack_losses import TARGETS, cross_entropy, difference_of_logits_ratio, margin, targeted, targets_of
from training.attacks import (
    Attack,
    attack_named,
    from_bytes,
    gaussian_noise,
    noisy_step,
    round_to_bytes,
    run_attack,
    worst_case,
)

WEIGHTS = torch.Generator().manual_seed(5)
FILTER = torch.randn(3, 6, 6, generator=WEIGHTS)


def linear_loss(images, labels):
    return (images * FILTER).sum((1, 2, 3)) * (1 - 2 * labels)


def curved_loss(images, labels):
    return ((images - 0.4) ** 2 * FILTER).sum((1, 2, 3)).sin() + 0.1 * labels


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["fgsm-8", "fgsm-2", "rfgsm-8", "bim10-8", "pgd10-2", "pgd10-8", "mim10-8", "pgd7-30"]),
    st.integers(0, 2**31),
    st.sampled_from([linear_loss, curved_loss]),
)
def test_the_result_never_leaves_the_ball_or_the_image_range(name, seed, loss):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 6, 6, generator=generator)
    images[0, :, :2] = 0.0
    images[0, :, 2:4] = 1.0
    attack = attack_named(name)
    result = run_attack(attack, loss, images, torch.tensor([0, 1, 0]), generator)
    assert result.min() >= 0
    assert result.max() <= 1
    assert (result <= (images + attack.eps).clamp(0, 1)).all()
    assert (result >= (images - attack.eps).clamp(0, 1)).all()


def test_fgsm_on_a_linear_loss_is_the_best_corner():
    images, labels = torch.full((1, 3, 6, 6), 0.5), torch.zeros(1)
    result = run_attack(attack_named("fgsm-8"), linear_loss, images, labels)
    torch.testing.assert_close(result, images + 8 / 255 * FILTER.sign())


@pytest.mark.parametrize("name", ["bim10-8", "pgd10-8", "mim10-8"])
def test_iterating_is_at_least_as_strong_as_one_step_on_a_linear_loss(name):
    images, labels = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(4)
    single = linear_loss(run_attack(attack_named("fgsm-8"), linear_loss, images, labels), labels)
    many = run_attack(attack_named(name), linear_loss, images, labels, torch.Generator().manual_seed(1))
    assert (linear_loss(many, labels) >= single - 1e-4).all()


def test_names_carry_the_papers_numbers():
    assert attack_named("pgd10-2") == Attack(name="pgd10-2", eps=2 / 255, steps=10, step=1 / 255, random_start=True)
    assert attack_named("pgd10-8").step == pytest.approx(2 / 255)
    assert attack_named("bim10-8") == Attack(name="bim10-8", eps=8 / 255, steps=10, step=8 / 255 / 10)
    assert attack_named("mim10-8").momentum == 1.0
    assert attack_named("rfgsm-8") == Attack(name="rfgsm-8", eps=8 / 255, steps=1, step=8 / 255, random_start=True)
    assert (attack_named("pgd100x10-8").steps, attack_named("pgd100x10-8").restarts) == (100, 10)
    assert attack_named("fgsm-2") == Attack(name="fgsm-2", eps=2 / 255, steps=1, step=2 / 255)


@pytest.mark.parametrize(
    "name",
    ["", "pgd", "pgd10", "cw10-8", "pgd10-8.5", "PGD10-8", "fgsm3-8", "pgd0-8", "pgd10-256", "pgd10x0-8", "bim10x3-8"],
)
def test_bad_names_are_one_sentence(name):
    with pytest.raises(OptionError, match="attack"):
        attack_named(name)


def test_the_same_seed_gives_the_same_attack_and_another_seed_another():
    images, labels = torch.rand(2, 3, 6, 6), torch.zeros(2)

    def attack(seed):
        return run_attack(attack_named("pgd10-8"), curved_loss, images, labels, torch.Generator().manual_seed(seed))

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


def test_noise_has_the_asked_spread_and_bytes_round_trip():
    grey = torch.full((1, 3, 64, 64), 0.5)
    noisy = gaussian_noise(grey, 8 / 255, torch.Generator().manual_seed(0))
    assert (noisy - grey).std().item() == pytest.approx(8 / 255, rel=0.05)
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert torch.equal(round_to_bytes(from_bytes(every)), every)


# ---- losses


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


# ---- worst case


class Counting:
    """A loss that remembers how many images it was asked about."""

    def __init__(self, loss):
        self.loss, self.asked = loss, 0

    def __call__(self, images, labels):
        self.asked += len(images) if images.requires_grad else 0
        return self.loss(images, labels)


def test_restarts_go_on_with_the_survivors_only():
    images, labels = torch.full((6, 3, 6, 6), 0.5), torch.zeros(6)
    weak = torch.arange(6) < 4  # fooled by anything at all
    images[~weak] = 0.0  # a mark by which the judge knows them

    def judge(attempt, _):
        return attempt.mean((1, 2, 3)) < 0.25

    loss = Counting(linear_loss)
    found = worst_case(attack_named("pgd3x5-8"), [loss], judge, images, labels, torch.Generator().manual_seed(0))
    assert found.fooled.tolist() == weak.tolist()
    assert loss.asked == 3 * 6 + 4 * 3 * 2
    assert ((found.images - images).abs().amax((1, 2, 3)) > 0).all(), "an image that nothing fools is attacked too"


def test_an_image_that_nothing_fools_keeps_the_attempt_with_the_highest_loss():
    images, labels = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(2)), torch.zeros(4)
    attack = attack_named("pgd2x6-8")

    def never(attempt, _):
        return torch.ones(len(attempt), dtype=torch.bool)

    found = worst_case(attack, [curved_loss], never, images, labels, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    every = torch.stack(
        [curved_loss(run_attack(attack, curved_loss, images, labels, generator), labels) for _ in range(6)]
    )
    torch.testing.assert_close(curved_loss(found.images, labels), every.amax(0))


def test_a_second_loss_catches_what_the_first_cannot():
    images, labels = torch.full((2, 3, 6, 6), 0.5), torch.zeros(2)

    def flat(images, _):
        return (images * 0).sum((1, 2, 3))

    def judge(attempt, labels):
        return linear_loss(attempt, labels) < linear_loss(images[: len(attempt)], labels) + 1

    attack = attack_named("bim5-8")
    assert not worst_case(attack, [flat], judge, images, labels).fooled.any()
    assert worst_case(attack, [flat, linear_loss], judge, images, labels).fooled.all()


def test_the_noisy_step_of_training_is_one_signed_step_from_twice_the_noise():
    """N-FGSM by its formula (de Jorge et al. 2022, Eq. 6), and unlike attacks it may leave the ball."""
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 1])
    eps = 8 / 255

    def loss(x, y):
        return (x.flatten(1) * torch.tensor([1.0, -1.0]).repeat(24)).sum(1)

    made = noisy_step(eps, eps, loss, images, labels, torch.Generator().manual_seed(5))
    noise = 2 * eps * (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(5)) - 1)
    sign = torch.tensor([1.0, -1.0]).repeat(24).view(3, 4, 4)
    torch.testing.assert_close(made, images + noise + eps * sign)
    assert (made - images).abs().max() > eps
    edge = noisy_step(eps, eps, loss, torch.ones(1, 3, 4, 4), labels[:1], torch.Generator().manual_seed(5))
    assert edge.max() <= 1
