"""Which samples of a part are taken, where not all of them are."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bundle.errors import OptionError
from training.data.dataset import Dataset
from training.data.index import Sample

T = TypeVar("T")


def samples_of(dataset: Dataset, part: str) -> tuple[Sample, ...]:
    """The samples of a part that was asked for by name; raises OptionError where there are none."""
    if part not in dataset.parts:
        raise OptionError(f"unknown part {part!r}", hint=f"Choose one of: {', '.join(dataset.parts)}.")
    if not dataset.parts[part]:
        full = [name for name, samples in dataset.parts.items() if samples]
        raise OptionError(f"the {part} part of {dataset.name} holds no images", hint=f"There are: {', '.join(full)}.")
    return dataset.parts[part]


def spread(samples: tuple[T, ...], count: int) -> tuple[T, ...]:
    """At most `count` samples, evenly over the sorted part and so over the classes."""
    if count >= len(samples):
        return samples
    return tuple(samples[index * len(samples) // count] for index in range(count))


def evenly(n: int, count: int) -> npt.NDArray[np.int64]:
    """Positions of the same choice among n images in memory."""
    return np.array(spread(tuple(range(n)), count), np.int64)
