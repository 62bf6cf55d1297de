"""The loop of all attacks: inside the ball to the last float, and stronger with steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.attacks.surfaces import FILTER, curved_loss, linear_loss
from training.attacks.loop import Attack, Goal, climb, gradient_of, noisy_step, run_attack
from training.attacks.names import attack_named


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


def test_the_same_seed_gives_the_same_attack_and_another_seed_another():
    images, labels = torch.rand(2, 3, 6, 6), torch.zeros(2)

    def attack(seed):
        return run_attack(attack_named("pgd10-8"), curved_loss, images, labels, torch.Generator().manual_seed(seed))

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


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


def test_momentum_remembers_where_the_loss_pointed_before():
    """The gradient turns against the first step; MIM (Dong et al. 2018, decay 1) goes on where BIM turns back."""
    calls = []

    def turning(images, labels):
        calls.append(None)
        return images.sum(dim=(1, 2, 3)) * (1.0 if len(calls) % 2 else -1.0)

    start, labels = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    bim = run_attack(attack_named("bim2-8"), turning, start, labels)
    mim = run_attack(attack_named("mim2-8"), turning, start, labels)
    torch.testing.assert_close(bim, start)  # one step up, one down
    torch.testing.assert_close(mim, start + 4 / 255)  # one step up; then the velocities cancel


def test_a_goal_with_an_end_lets_go_of_what_has_reached_it_and_steps_shrink():
    """Against the loop written out for one image at a time."""
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.rand(12, 3, 6, 6, generator=generator), torch.arange(12) % 2
    attack = Attack(name="shrinking", eps=0.1, steps=5, step=0.04, shrink=0.5, momentum=1.0)

    def uphill(images, labels):
        return gradient_of(curved_loss, images, labels)

    def reached(images, labels):
        return curved_loss(images, labels) > 1.0  # which the loss of label 0 never is

    found = climb(attack, Goal(uphill=uphill, reached=reached), images, labels)
    lengths = []
    for index in range(len(images)):
        start, label = images[index : index + 1], labels[index : index + 1]
        image, velocity, steps = start, torch.zeros_like(start), 0
        while steps < 5 and not reached(image, label):
            gradient = uphill(image, label)
            velocity = velocity + gradient / gradient.abs().mean()
            image = image + 0.04 * (1 - 0.5 * steps / 5) * velocity.sign()
            image = torch.minimum(torch.maximum(image, start - 0.1), start + 0.1).clamp(0, 1)
            steps += 1
        torch.testing.assert_close(found.images[index : index + 1], image)
        assert bool(found.fooled[index]) == bool(reached(image, label))
        lengths.append(steps)
    assert {0, 5} < set(lengths), "some need no step, some one or more, some never arrive"
    assert 0 < found.fooled.sum() < len(images)
    without = climb(attack, Goal(uphill=uphill), images, labels)
    assert not without.fooled.any()
    assert not torch.equal(without.images, found.images)
