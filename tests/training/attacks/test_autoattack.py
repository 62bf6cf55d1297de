"""AutoAttack, the authority: in the ball, repeatable, and what is called attacked is."""

import pytest
import torch

from training.attacks.attacker import Attackers
from training.attacks.autoattack import HeadLogits, auto_attack
from training.attacks.losses import judge_of


def test_autoattack_stays_in_the_ball_and_leaves_less_standing_than_nothing(untrained):
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    labels = untrained(pixels).logits["attention"].argmax(1)
    attacked = auto_attack(untrained, "attention", pixels, labels, eps=8 / 255, seed=0)
    assert (attacked >= (pixels - 8 / 255).clamp(0, 1)).all()
    assert (attacked <= (pixels + 8 / 255).clamp(0, 1)).all()
    with torch.no_grad():
        assert not judge_of(untrained, "attention")(attacked, labels).all()
        torch.testing.assert_close(HeadLogits(untrained, "attention")(pixels), untrained(pixels).logits["attention"])
    again = auto_attack(untrained, "attention", pixels, labels, eps=8 / 255, seed=0)
    assert torch.equal(attacked, again)
    assert torch.equal(auto_attack(untrained, "full", pixels, labels, eps=0.0, seed=0), pixels)


def test_apgd_runs_the_two_gradient_attacks_of_the_suite_and_nothing_else(untrained, monkeypatch):
    import pyautoattack.autoattack as library

    def never(*_, **__):
        raise AssertionError("not one of the two")

    monkeypatch.setattr(library.FABAttack_PT, "perturb", never)
    monkeypatch.setattr(library.SquareAttack, "perturb", never)
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 32, 32)
    labels = untrained(pixels).logits["attention"].argmax(1)
    attackers = Attackers(network=untrained)
    made = attackers.on("attention").attack("apgd-8", pixels, labels)
    assert ((made - pixels).abs() <= 8 / 255 + 1e-7).all()
    plain = attackers.on("attention").attack("pgd10-8", pixels, labels)
    judge = judge_of(untrained, "attention")
    with torch.no_grad():
        assert judge(made, labels).sum() <= judge(plain, labels).sum()
    with pytest.raises(AssertionError, match="not one of the two"):
        attackers.on("attention").attack("autoattack-1", pixels, labels)


def test_autoattack_hands_out_no_clean_image_as_attacked(untrained):
    """Also where it has nothing to do: images that are answered wrongly from the start, and survivors."""
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    right = untrained(pixels).logits["attention"].argmax(1)
    labels = torch.cat([right[:3], (right[3:] + 1) % 5])
    made = Attackers(network=untrained).on("attention").attack("autoattack-1", pixels, labels)
    judge = judge_of(untrained, "attention")
    with torch.no_grad():
        assert not judge(made[3:], labels[3:]).any()
    untouched = (made == pixels).flatten(1).all(1)
    assert not untouched[:3].any()
    assert ((made - pixels).abs() <= 1 / 255 + 1e-7).all()
