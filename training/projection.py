"""The end of training: every prototype becomes the nearest patch of its own class's training images, and the last layer
is fitted to what they are now.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from bundle.progress import shown
from training.config import TrainingConfig
from training.data import Sample
from training.feed import Batch, Walk, epoch_seed
from training.losses import others_mask, sparsity
from training.networks import Network
from training.pixels import from_bytes
from training.run import PrototypeSource

# images [B, 3, H, W] in [0, 1] and labels [B] -> attacked images
Attacked = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def project(
    network: Network, batches: Walk, samples: tuple[Sample, ...], device: torch.device
) -> list[PrototypeSource]:
    """Replace each prototype by its nearest own-class x_i^t over clean, unaugmented images, attention ignored (as the
    authors' code does), and tell where each came from.
    """
    network.eval()
    head = network.prototype_head
    if head is None:
        return []
    count, per_class = len(head.prototypes), network.config.prototypes_per_class
    best = torch.full((count,), torch.inf, device=device)
    patches = head.prototypes.detach().clone()
    where = torch.zeros(count, 3, dtype=torch.long)  # position in the part, row, column
    for images, labels, positions in batches():
        forward = network(from_bytes(images.to(device)))
        if forward.distances is None or forward.local is None:
            raise AssertionError("a prototype head gives distances")
        width = forward.distances.shape[-1]
        own = labels.to(device)[:, None] * per_class + torch.arange(per_class, device=device)  # [B, c]
        maps = forward.distances.flatten(2)  # [B, m, hw]
        nearest, cell = maps.gather(1, own[:, :, None].expand(-1, -1, maps.shape[2])).min(dim=2)
        for item, offset in (nearest < best[own]).nonzero().tolist():  # few, after the first batches
            index, (row, column) = int(own[item, offset]), divmod(int(cell[item, offset]), width)
            if nearest[item, offset] < best[index]:
                best[index] = nearest[item, offset]
                patches[index] = forward.local[item, :, row, column]
                where[index] = torch.tensor([int(positions[item]), row, column])
    head.prototypes.copy_(patches)
    return [
        PrototypeSource(label=index // per_class, source=samples[position].key, row=row, column=column)
        for index, (position, row, column) in enumerate(where.tolist())
    ]


def fit_last_layer(
    network: Network,
    batches: Walk,
    config: TrainingConfig,
    attacked: Attacked | None = None,
    *,
    console: Console | None = None,
) -> None:
    """Fit only the last layer on the projected prototypes' similarities, which are computed once; batches come on the
    network's device. `attacked` changes images before they are looked at, anew in every pass. Shown on `console`.
    """
    head = network.prototype_head
    if head is None:
        return
    optimizer = torch.optim.Adam(head.classifier.parameters(), lr=config.learning_rate_last_layer)
    generator = torch.Generator().manual_seed(epoch_seed(config, config.epochs))
    similarities, labels = _similarities(network, batches(), attacked)
    others = others_mask(head)  # once: with a thousand classes it has ten million entries
    passes = shown(range(config.last_layer_epochs), "fitting the last layer", unit="passes", console=console)
    for epoch in passes:
        if attacked is not None and epoch:
            similarities, labels = _similarities(network, batches(), attacked)
        drops = epoch // config.last_layer_drop if config.last_layer_drop else 0
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_last_layer * 0.1**drops
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for chosen in order.split(config.batch_size):
            loss = F.cross_entropy(head.classifier(similarities[chosen]), labels[chosen])
            loss = loss + config.loss.sparsity * sparsity(head, others)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _similarities(network: Network, batches: Iterable[Batch], attacked: Attacked | None) -> tuple[Tensor, Tensor]:
    """[n, m] of all images, and their labels [n]."""
    network.eval()
    similar, truth = [], []
    for images, labels, _ in batches:
        inputs = from_bytes(images)
        if attacked is not None:
            inputs = attacked(inputs, labels)
        with torch.no_grad():
            similar.append(network(inputs).similarities)
        truth.append(labels)
    return torch.cat(similar), torch.cat(truth)
