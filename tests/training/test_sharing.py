"""What two processes share is what one process has on the whole batch: statistics, rows, and gradients through both."""

from functools import partial

import pytest
import torch
from torch import nn

from training.parallel import Devices, in_parallel
from training.sharing import SharedBatchNorm, gathered, share_statistics

TWO = Devices(accelerator="cpu", devices=2)


def whole_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 5, 5, generator=generator) * 3 + 2, torch.randn(8, 3, 5, 5, generator=generator)


def normaliser():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)))
    torch.manual_seed(1)
    for each in network.parameters():
        nn.init.normal_(each)
    network[1][0].running_mean.fill_(0.5)  # as after some training
    network[1][0].running_var.fill_(2.0)
    return network


def normalise_a_share(folder, fabric):
    """In a process of its own: forward and backward on every second image, training and then evaluating."""
    rank, (images, weights) = fabric.global_rank, whole_batch()
    network = normaliser()
    share_statistics(network, fabric.device)
    images = images[rank::2].clone().requires_grad_()
    found = network(images)
    (found * weights[rank::2]).sum().backward()
    told = {"found": found.detach(), "gradient": images.grad, "after": network.eval()(images).detach()}
    torch.save({**told, "state": network.state_dict()}, folder / f"{rank}.pt")


def gather_a_share(folder, fabric):
    """Of two rows each; every process's loss depends on all rows, in its own way."""
    rank = fabric.global_rank
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    found = gathered(rows)
    labels = gathered(torch.tensor([rank, rank + 10]))
    ((rank + 1) * found.square()).sum().backward()
    torch.save({"found": found.detach(), "labels": labels, "gradient": rows.grad}, folder / f"{rank}.pt")


def test_a_shared_batch_normalisation_is_that_of_the_whole_batch(tmp_path):
    in_parallel(TWO, partial(normalise_a_share, tmp_path))
    images, weights = whole_batch()
    network = normaliser()
    images.requires_grad_()
    found = network(images)
    (found * weights).sum().backward()
    after = network.eval()(images)
    for rank in (0, 1):
        told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, expected in (("found", found), ("gradient", images.grad), ("after", after)):
            torch.testing.assert_close(told[name], expected[rank::2], rtol=1e-4, atol=1e-5)
        assert told["state"].keys() == network.state_dict().keys()
        for name, expected in network.state_dict().items():
            torch.testing.assert_close(told["state"][name], expected)


def test_gathered_rows_are_all_rows_and_every_process_has_its_gradient(tmp_path):
    in_parallel(TWO, partial(gather_a_share, tmp_path))
    for rank in (0, 1):
        told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert told["found"][:, 0].tolist() == [0, 0, 1, 1]
        assert told["labels"].tolist() == [0, 10, 1, 11]
        assert torch.equal(told["gradient"], torch.full((2, 3), (1 + 2) * 2.0 * rank))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_keeps_its_parameters_and_names_when_its_statistics_are_shared(training):
    network = normaliser().train(training)
    before, names = {id(each) for each in network.parameters()}, list(network.state_dict())
    share_statistics(network, torch.device("cpu"))
    assert isinstance(network[1][0], SharedBatchNorm)
    assert {id(each) for each in network.parameters()} == before
    assert list(network.state_dict()) == names
    assert (network[1][0].eps, network[1][0].momentum, network[1][0].training) == (1e-3, 0.3, training)
