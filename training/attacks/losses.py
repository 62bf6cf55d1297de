"""What an attacker raises: losses of a network's heads, untargeted or towards a target class.

Logits are [B, K], labels [B], losses [B]: higher is closer to the attacker's aim.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle import tensors
from training.attacks.loop import Judge, LossFunction
from training.networks import Network

LogitLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best other logit minus the label's (Carlini & Wagner 2017): positive exactly when the answer is wrong."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """DLR (Croce & Hein 2020): the margin over the gap between best and third logit; scaling changes nothing."""
    ordered = logits.sort(dim=1).values
    gap = ordered[:, -1] - ordered[:, -min(3, logits.shape[1])]
    return margin(logits, labels) / (gap + 1e-12)


LOSSES: dict[str, LogitLoss] = {"ce": cross_entropy, "margin": margin, "dlr": difference_of_logits_ratio}


def targeted(loss: LogitLoss) -> LogitLoss:
    """The loss of an attack that is given targets [B] in the place of labels: lowered instead of raised."""
    return lambda logits, targets: -loss(logits, targets)


# What a targeted attack wants to be answered: any other class, or the second or last by the answer to the clean image.
TARGETS = ("random", "runner-up", "least-likely")


def targets_of(kind: str, logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Target classes [B], none of them the label, from the logits [B, K] of the clean images."""
    own = labels[:, None]
    if kind == "runner-up":
        return logits.scatter(1, own, -torch.inf).argmax(1)
    if kind == "least-likely":
        return logits.scatter(1, own, torch.inf).argmin(1)
    shift = torch.randint(1, logits.shape[1], labels.shape, generator=generator).to(labels.device)
    return (labels + shift) % logits.shape[1]


def loss_of(network: Network, head: str | None = None, loss: LogitLoss = cross_entropy) -> LossFunction:
    """`loss` of one head's logits, or summed over all heads of the network; the paper attacks with the sum of both."""

    def total(images: Tensor, labels: Tensor) -> Tensor:
        logits = network(images, head).logits
        return torch.stack([loss(each, labels) for name, each in logits.items() if head in (None, name)]).sum(0)

    return total


def judge_of(network: Network, head: str, *, wanted: bool = True) -> Judge:
    """Whether the head answers with the label; with `wanted` false, whether it answers with anything but the target."""

    def right(images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = network(images, head).logits[head]
        return (logits.argmax(1) == labels) == wanted

    return right


def losses_against(network: Network, head: str, loss: LogitLoss = cross_entropy) -> tuple[LossFunction, ...]:
    """What is tried against a head: its own loss; where an attention head gates it, also the joint one of both heads,
    which is all that the authors' code tries.
    """
    own = loss_of(network, head, loss)
    gated = head == tensors.FULL and network.attention_head is not None
    return (own, loss_of(network, None, loss)) if gated else (own,)
