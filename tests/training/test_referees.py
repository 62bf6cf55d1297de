"""Our objectives against finite differences."""

import pytest
import torch

from training.losses import Objective
from training.networks import Network, NetworkConfig
from training.systems import SYSTEMS

pytestmark = pytest.mark.referee


@pytest.mark.parametrize("system", ["maxsep", "ap-triplet", "ap-pcl", "protopnet"])
def test_the_gradient_of_every_objective_by_the_image_and_the_weights_is_that_of_finite_differences(system):
    """A whole network in float64 along random directions; ReLU and maxima have corners, which a small step avoids."""
    torch.manual_seed(0)
    heads, weights = SYSTEMS[system].heads, SYSTEMS[system].loss
    config = NetworkConfig(backbone="small", classes=3, heads=heads, prototypes_per_class=2, prototype_channels=8)
    net = Network(config).double().eval()
    objective = Objective(weights, config, net.backbone.channels[-1]).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    moving = [x, *(each for each in (*net.parameters(), *objective.parameters()) if each.requires_grad)]

    def value():
        return objective(net(x), labels, joint=True)

    gradients = torch.autograd.grad(value(), moving, allow_unused=True)
    step = 1e-7
    for target, gradient in zip(moving, gradients, strict=True):
        if gradient is None:
            continue
        direction = torch.nn.functional.normalize(torch.randn_like(target).flatten(), dim=0).view_as(target)
        with torch.no_grad():
            ends = []
            for sign in (1, -2):
                target.add_(sign * step * direction)
                ends.append(value())
            target.add_(step * direction)
        numeric = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-6)
