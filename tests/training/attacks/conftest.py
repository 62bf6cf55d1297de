"""A network that nobody has trained, of enough classes for AutoAttack."""

import pytest
import torch

from training.networks import Network, NetworkConfig


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    config = NetworkConfig(backbone="small", classes=5, prototypes_per_class=2, prototype_channels=8)
    return Network(config).eval().requires_grad_(False)
