"""From samples to tensors: decode by the image spec, once into memory where it fits, in a reproducible order.

The only file of this folder that needs PyTorch.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import ImageError, MissingExtra
from bundle.image import ImageSpec
from bundle.progress import shown
from training.data.index import Sample

try:
    import torch
    from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate
except ImportError as error:
    raise MissingExtra.named("training", "Loading images for training", error) from None

Samples = tuple[Sample, ...]
Item = tuple[torch.Tensor, int, int]
CACHE_BYTES = 2**31
SLOW_SECONDS = 2.0  # a shorter decoding needs no bar


def images_array(samples: Samples, spec: ImageSpec) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Decode every sample, cropped to its box: images (n, H, W, 3) uint8 and labels (n,) int64, in the given order.

    The first image that cannot be decoded raises an ImageError that names its file.
    """
    images = np.empty((len(samples), spec.height, spec.width, 3), dtype=np.uint8)

    def decode(index: int) -> None:
        images[index] = spec.read(samples[index].path, samples[index].box)

    # Pillow releases the GIL while it decodes and resizes, so threads suffice.
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        waiting = [pool.submit(decode, index) for index in range(len(samples))]
        for each in shown(waiting, "decoding", unit="images", after=SLOW_SECONDS):
            each.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return images, np.array([sample.label for sample in samples], dtype=np.int64)


class ImageParts(Dataset[Item]):
    """One part of a dataset: item i is (uint8 tensor [H, W, 3], label, i), from memory or from its file."""

    def __init__(self, samples: Samples, spec: ImageSpec, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.samples = samples
        self.spec = spec
        self.in_memory = len(samples) * spec.height * spec.width * 3 <= cache_bytes
        self._images = torch.from_numpy(images_array(samples, spec)[0]) if self.in_memory else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        if self._images is not None:
            return self._images[index], sample.label, index
        return torch.from_numpy(self.spec.read(sample.path, sample.box).copy()), sample.label, index


def load_part(samples: Samples, spec: ImageSpec, *, cache_bytes: int = CACHE_BYTES) -> ImageParts:
    """Decode a part once into memory if it takes at most `cache_bytes`; else each item is decoded when it is asked."""
    return ImageParts(samples, spec, cache_bytes=cache_bytes)


class EpochOrder(Sampler[int]):
    """A new order each pass, which depends on the seed and the number of the pass alone; every image comes `copies`
    times in a pass.
    """

    def __init__(self, length: int, seed: int, copies: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.copies = copies
        self.epoch = 0

    def __len__(self) -> int:
        return self.length * self.copies

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        return iter((torch.randperm(len(self), generator=generator) % self.length).tolist())


@dataclass(frozen=True)
class Share:
    """This process's part of every batch, where `processes` work on it together."""

    rank: int = 0
    processes: int = 1


class BatchOrder(Sampler[list[int]]):
    """Batches of a common order, of which this process takes its share: every `processes`-th image.

    Shuffled batches are for training: they are cut to a multiple of the processes, so that all shares are equally large
    and their mean is the batch's. Unshuffled ones are for measuring and keep every image.
    """

    def __init__(self, length: int, batch_size: int, shuffle_seed: int | None, share: Share, copies: int = 1) -> None:
        self.order: Sampler[int] = (
            SequentialSampler(range(length)) if shuffle_seed is None else EpochOrder(length, shuffle_seed, copies)
        )
        self.batch_size, self.shuffled, self.share = batch_size, shuffle_seed is not None, share

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            usable = len(batch) - (len(batch) % self.share.processes if self.shuffled else 0)
            if self.shuffled and usable < 2 <= len(order):
                return  # one image has no statistics to normalise by; it waits for another epoch
            if mine := batch[self.share.rank : usable : self.share.processes]:
                yield mine


class ImageLoader(DataLoader[Any]):
    """A DataLoader whose workers hand an ImageError over whole; the usual one would wrap it in a traceback text."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, ImageError):
                raise batch
            yield batch


def image_loader(
    samples: Samples | ImageParts,
    spec: ImageSpec,
    *,
    batch_size: int,
    shuffle_seed: int | None,
    workers: int = 0,
    share: Share = Share(),
    copies: int = 1,
) -> ImageLoader:
    """Batches (images [B, H, W, 3] uint8, labels [B] int64, indices [B] int64), deterministic by `shuffle_seed`.

    None keeps the order of the samples; shuffled, every image comes `copies` times. `workers` is used only where the
    part does not fit into memory. An ImageParts that was loaded before may stand for its samples, so that several
    loaders share one decoding.
    """
    part = samples if isinstance(samples, ImageParts) else load_part(samples, spec)
    return ImageLoader(
        _Guarded(part),
        batch_sampler=BatchOrder(len(part), batch_size, shuffle_seed, share, copies),
        num_workers=0 if part.in_memory else workers,
        collate_fn=_collate,
    )


class _Guarded(Dataset[Item | ImageError]):
    """Returns an ImageError as an item, where raising it in a worker would lose its type and text."""

    def __init__(self, part: ImageParts) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> Item | ImageError:
        try:
            return self.part[index]
        except ImageError as problem:
            return problem


def _collate(items: list[Item | ImageError]) -> Any:
    problem = next((item for item in items if isinstance(item, ImageError)), None)
    return default_collate(items) if problem is None else problem
