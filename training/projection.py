"""Prototype projection: every prototype becomes the nearest patch of its own class's training images."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from training.attacks import from_bytes
from training.data import Sample
from training.networks import Network
from training.run import PrototypeSource

# uint8 images [B, H, W, 3], labels [B], positions in the part [B]
Batches = Iterable[tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def project(
    network: Network, batches: Callable[[], Batches], samples: tuple[Sample, ...], device: torch.device
) -> list[PrototypeSource]:
    """Replace each prototype by its nearest own-class x_i^t over clean, unaugmented images, attention ignored (as the
    authors' code does), and tell where each came from.
    """
    network.eval()
    head = network.prototype_head
    count, per_class = len(head.prototypes), network.config.prototypes_per_class
    best = torch.full((count,), torch.inf)
    patches = head.prototypes.detach().clone()
    where = torch.zeros(count, 3, dtype=torch.long)  # position in the part, row, column
    for images, labels, positions in batches():
        forward = network(from_bytes(images.to(device)))
        width = forward.distances.shape[-1]
        for item, (label, position) in enumerate(zip(labels.tolist(), positions.tolist(), strict=True)):
            own = slice(label * per_class, (label + 1) * per_class)
            nearest, cell = forward.distances[item, own].flatten(1).min(dim=1)
            closer = nearest.cpu() < best[own]
            for offset in closer.nonzero().flatten().tolist():
                index, (row, column) = own.start + offset, divmod(int(cell[offset]), width)
                best[index] = nearest[offset].cpu()
                patches[index] = forward.local[item, :, row, column]
                where[index] = torch.tensor([position, row, column])
    head.prototypes.copy_(patches)
    return [
        PrototypeSource(label=index // per_class, source=samples[position].key, row=row, column=column)
        for index, (position, row, column) in enumerate(where.tolist())
    ]
