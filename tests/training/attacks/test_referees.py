"""Our attacks against independent implementations, image by image, on the same trained network."""

import copy

import numpy as np
import pytest
import torch

from bundle.image import ImageSpec
from training.attacks.autoattack import HeadLogits
from training.attacks.loop import run_attack
from training.attacks.losses import cross_entropy, judge_of, loss_of, losses_against, margin
from training.attacks.names import attack_named
from training.attacks.worst import worst_case
from training.data import open_dataset
from training.data.loading import images_array
from training.pixels import from_bytes
from training.run import Run

pytestmark = pytest.mark.referee


@pytest.fixture(scope="module")
def network(tiny_run):
    """In float64: a rounding error in one step must not choose another path for the next nine."""
    return Run(tiny_run).load_network()[1].double()


@pytest.fixture(scope="module")
def images(tiny_birds, tiny_config):
    part = open_dataset(tiny_birds, seed=tiny_config.seed).parts["test"]
    pixels, labels = images_array(part, ImageSpec(height=32, width=32))
    return from_bytes(torch.from_numpy(pixels)).double().contiguous(), torch.from_numpy(labels)


def assert_same_images(ours, theirs, eps):
    """Equal up to rounding; a gradient that is zero to rounding may take the other sign in a few pixels."""
    differs = ((ours - theirs).abs() > 1e-6).float().mean(dim=(1, 2, 3))
    assert (differs < 0.005).all(), f"share of pixels that differ, per image: {differs.tolist()} (eps {eps})"


@pytest.mark.parametrize("head", ["full", "attention"])
@pytest.mark.parametrize("name", ["fgsm-8", "bim10-2", "bim10-8", "pgd10-8", "mim10-8"])
def test_torchattacks_makes_the_same_images(network, images, head, name):
    import torchattacks

    attack, model = attack_named(name), HeadLogits(network, head).eval()
    referees = {
        "fgsm": lambda: torchattacks.FGSM(model, eps=attack.eps),
        "bim": lambda: torchattacks.BIM(model, eps=attack.eps, alpha=attack.step, steps=attack.steps),
        "pgd": lambda: torchattacks.PGD(
            model, eps=attack.eps, alpha=attack.step, steps=attack.steps, random_start=False
        ),
        "mim": lambda: torchattacks.MIFGSM(
            model, eps=attack.eps, alpha=attack.step, steps=attack.steps, decay=attack.momentum
        ),
    }
    theirs = referees[name[:3] if name[:4] != "fgsm" else "fgsm"]()(images[0], images[1])
    still = attack.__class__(**{**vars(attack), "random_start": False})
    ours = run_attack(still, loss_of(network, head), *images)
    assert_same_images(ours, theirs, attack.eps)


@pytest.mark.parametrize("head", ["full", "attention"])
@pytest.mark.parametrize("name", ["bim10-8", "pgd10-2"])
def test_foolbox_makes_the_same_images(network, images, head, name):
    import foolbox

    attack = attack_named(name)
    model = foolbox.PyTorchModel(HeadLogits(network, head).eval(), bounds=(0, 1))
    referee = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=attack.step, steps=attack.steps, random_start=False)
    theirs = referee.run(model, images[0], criterion=foolbox.criteria.Misclassification(images[1]), epsilon=attack.eps)
    still = attack.__class__(**{**vars(attack), "random_start": False})
    assert_same_images(run_attack(still, loss_of(network, head), *images), theirs, attack.eps)


def test_autoattack_finds_nothing_that_our_worst_case_at_many_restarts_leaves_far_behind(network, images):
    """AutoAttack is the authority: ours must not claim robustness that it refutes by a wide margin."""
    import pyautoattack

    network, (x, y) = copy.deepcopy(network).float(), images  # AutoAttack computes in float32
    x = x.float()
    attack = attack_named("pgd40x3-8")
    ours = worst_case(
        attack,
        [*losses_against(network, "attention"), loss_of(network, "attention", margin)],
        judge_of(network, "attention"),
        x,
        y,
        torch.Generator().manual_seed(0),
    )
    model = HeadLogits(network, "attention").eval()
    referee = pyautoattack.AutoAttack(
        model, eps=attack.eps, version="custom", attacks=["apgd-ce", "apgd-dlr"], device="cpu", seed=0
    )
    referee.verbose = False
    theirs, _ = referee.run_standard_evaluation(x, y, batch_size=len(x))
    refuted = (model(theirs).argmax(1) != y).float().mean().item()
    assert ours.fooled.float().mean().item() >= refuted - 0.1


def test_gradients_of_the_losses_agree_with_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 4])
    for loss in (cross_entropy, margin):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, labels), (logits,))


def test_numpy_twin_of_one_step(network, images):
    """FGSM by its definition, with the gradient by autograd of a plain expression."""
    x = images[0].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(network(x).logits["full"], images[1], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    expected = np.clip(images[0].numpy() + 8 / 255 * np.sign(gradient.numpy()), 0, 1)
    ours = run_attack(attack_named("fgsm-8"), loss_of(network, "full"), *images)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)
