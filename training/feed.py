"""What a run is fed with: its images as batches on the device, in an order and with random draws that the seed decides.

Where processes train together, each has its own share of every batch, and draws of its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from bundle.progress import Work
from training.config import TrainingConfig
from training.data import Dataset
from training.data.choice import spread
from training.data.loading import Share, image_loader, load_part
from training.hardening import WATCHED
from training.run import image_spec

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Batch(NamedTuple):
    """B images and what is known of them."""

    images: Tensor  # [B, H, W, 3] uint8
    labels: Tensor  # [B] int64
    positions: Tensor  # [B] int64, in the part; on the CPU


Walk = Callable[[], Iterable[Batch]]  # once over all images of a part, whenever it is called


class Feed:
    """The parts that training looks at, decoded once where they fit into memory."""

    def __init__(
        self, dataset: Dataset, config: TrainingConfig, fabric: "Fabric", *, workers: int, console: Console
    ) -> None:
        self.config, self.fabric, self.workers, self.console = config, fabric, workers, console
        self.share = Share(fabric.global_rank, fabric.world_size)
        self.spec = image_spec(config)
        samples = {name: dataset.parts[name] for name in ("train", "validation")}
        samples["watched"] = spread(samples["validation"], WATCHED) if config.adversarial != "none" else ()
        self.parts = {name: load_part(each, self.spec) for name, each in samples.items()}
        self.steps_per_epoch = math.ceil(len(samples["train"]) * config.copies / config.batch_size)

    def batches(self, part: str, epoch: int | None = None, share: Share | None = None) -> Iterator[Batch]:
        """Shuffled by (seed, epoch), every image as often as the config has copies; or once each, in order, when
        `epoch` is None.
        """
        loader = image_loader(
            self.parts[part],
            self.spec,
            batch_size=self.config.batch_size,
            shuffle_seed=None if epoch is None else epoch_seed(self.config, epoch),
            workers=self.workers,
            share=share or self.share,
            copies=1 if epoch is None else self.config.copies,
        )
        for images, labels, positions in loader:
            yield Batch(images.to(self.fabric.device), labels.to(self.fabric.device), positions)

    def whole(self, what: str) -> Iterator[Batch]:
        """The whole training part, in order and in every process alike; shown as the work `what`."""
        with Work(what, len(self.parts["train"]), console=self.console) as work:
            for batch in self.batches("train", share=Share()):
                yield batch
                work.advance(len(batch.labels))

    def draws(self, epoch: int, *, shared: bool = False) -> torch.Generator:
        """Fresh, known random state for one epoch, so that a resumed run repeats an uninterrupted one exactly; another
        one in every process, but where all take the same steps: `shared`.
        """
        seed = epoch_seed(self.config, epoch) + (0 if shared else self.share.rank * 1_000_003)
        torch.manual_seed(seed)
        return torch.Generator().manual_seed(seed)


def epoch_seed(config: TrainingConfig, epoch: int) -> int:
    """Of everything that is drawn in an epoch; what is drawn before and after them all counts on from the last."""
    return config.seed * 100_003 + epoch
