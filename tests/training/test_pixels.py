"""Pixels and bytes: there and back, rounded, and with noise."""

import pytest
import torch

from training.pixels import from_bytes, gaussian_noise, round_to_bytes


def test_noise_has_the_asked_spread_and_bytes_round_trip():
    grey = torch.full((1, 3, 64, 64), 0.5)
    noisy = gaussian_noise(grey, 8 / 255, torch.Generator().manual_seed(0))
    assert (noisy - grey).std().item() == pytest.approx(8 / 255, rel=0.05)
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert torch.equal(round_to_bytes(from_bytes(every)), every)


def test_bytes_are_rounded_and_not_cut():
    values = torch.tensor([0.0, 0.4, 0.6, 254.6, 255.0, 300.0, -3.0]) / 255
    assert round_to_bytes(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))[0, 0, :, 0].tolist() == [
        0,
        0,
        1,
        255,
        255,
        255,
        0,
    ]
