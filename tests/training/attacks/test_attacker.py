"""An attacker by name: the loss, the target and the network that are meant."""

import pytest
import torch

from training.attacks.attacker import Attackers
from training.attacks.loop import run_attack
from training.attacks.losses import LOSSES, cross_entropy, losses_against, margin, targets_of
from training.attacks.names import attack_named
from training.run import Run


def test_a_transferred_attack_is_made_on_the_source_and_judged_on_the_network(tiny_run, substitute):
    _, network = Run(tiny_run).load_network()
    source = substitute.load_network()[1]
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    attackers = Attackers(network=network, sources={"twin": source})
    attacked = attackers.on("full").attack("bim10-8@twin", pixels, labels)
    expected = run_attack(attack_named("bim10-8"), losses_against(source, "pooled")[0], pixels, labels)
    torch.testing.assert_close(attacked, expected)
    mine = run_attack(attack_named("bim10-8"), losses_against(network, "full")[0], pixels, labels)
    assert not torch.equal(attacked, mine)


def test_an_attack_raises_the_loss_it_names(tiny_run):
    _, network = Run(tiny_run).load_network()
    pixels, labels, made = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2]), {}
    for name, loss in (("bim10-8", cross_entropy), ("bim10-8:ce", cross_entropy), ("bim10-8:margin", margin)):
        made[name] = Attackers(network=network).on("attention").attack(name, pixels, labels)
        losses = losses_against(network, "attention", loss)
        torch.testing.assert_close(made[name], run_attack(attack_named("bim10-8"), losses[0], pixels, labels))
    assert torch.equal(made["bim10-8"], made["bim10-8:ce"])
    assert not torch.equal(made["bim10-8"], made["bim10-8:margin"])


@pytest.mark.parametrize("head", ["full", "attention"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_targeted_attack_comes_closer_to_its_target(untrained, head, loss):
    torch.manual_seed(3)
    pixels = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        logits = untrained(pixels, head).logits[head]
    labels = logits.argmax(1)
    attacker = Attackers(network=untrained).on(head)
    targets = targets_of("least-likely", logits, labels, torch.Generator())
    attacked = attacker.attack(f"bim20-32:{loss}:least-likely", pixels, labels)
    with torch.no_grad():
        after = untrained(attacked, head).logits[head]
    assert (LOSSES[loss](after, targets) < LOSSES[loss](logits, targets)).all()
    assert ((attacked - pixels).abs() <= 32 / 255 + 1e-6).all()
    own = attacker.attack(f"bim20-32:{loss}", pixels, labels)
    assert not torch.equal(attacked, own)


def test_every_attacker_of_a_head_begins_anew_from_the_seed_and_goes_on_from_there(untrained):
    pixels, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    attackers = Attackers(network=untrained, seed=4)
    first = attackers.on("full")
    made = [first.attack("noise", pixels, labels) for _ in range(2)]
    assert not torch.equal(*made)
    assert torch.equal(attackers.on("full").attack("noise", pixels, labels), made[0])
    assert not torch.equal(Attackers(network=untrained, seed=5).on("full").attack("noise", pixels, labels), made[0])
