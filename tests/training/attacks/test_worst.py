"""The worst of several losses and restarts, image by image."""

import torch

from bundle import tensors
from tests.training.attacks.surfaces import curved_loss, linear_loss
from training.attacks.loop import run_attack
from training.attacks.losses import judge_of, losses_against
from training.attacks.names import attack_named
from training.attacks.worst import worst_case
from training.data import open_dataset
from training.data.loading import images_array
from training.pixels import from_bytes
from training.run import Run, image_spec


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


def test_the_full_network_is_fooled_where_either_of_the_two_losses_fools_it(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    images, labels = images_array(open_dataset(tiny_birds).parts["test"], image_spec(record.config))
    pixels, truth = from_bytes(torch.from_numpy(images)), torch.from_numpy(labels)
    attack = attack_named("bim10-8")
    own, joint = losses_against(network, tensors.FULL)
    judge = judge_of(network, tensors.FULL)
    first, second = (run_attack(attack, loss, pixels, truth) for loss in (own, joint))
    assert not torch.equal(first, second)
    with torch.no_grad():
        fooled = ~judge(first, truth) | ~judge(second, truth)
        found = worst_case(attack, (own, joint), judge, pixels, truth)
        torch.testing.assert_close(found.fooled, fooled)
        torch.testing.assert_close(judge(found.images, truth), ~fooled)
        kept = own(found.images, truth)[~fooled]
        torch.testing.assert_close(kept, torch.maximum(own(first, truth), own(second, truth))[~fooled])
