"""Where a sample's parts lie in the tensor that the network sees."""

import numpy as np

from bundle.image import ImageSpec, upright_size
from training.data.index import Landmark, Sample


def placed(sample: Sample, spec: ImageSpec) -> tuple[Landmark, ...]:
    """The visible parts in pixels of the tensor that `spec.read` makes of the sample; without those outside the crop.

    A published location names a pixel, and so means its middle.
    """
    if not sample.landmarks:
        return ()
    points = np.array([(x, y) for _, x, y in sample.landmarks]) + 0.5
    moved = spec.place(points, upright_size(sample.path), sample.box).tolist()
    named = ((name, x, y) for (name, _, _), (x, y) in zip(sample.landmarks, moved, strict=True))
    return tuple(mark for mark in named if 0 <= mark[1] < spec.width and 0 <= mark[2] < spec.height)
