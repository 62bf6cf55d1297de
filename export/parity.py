"""The proof that a graph computes what PyTorch computes: every output, several batch sizes, real images; and how far it
is from that in a narrower precision.
"""

import numpy as np
import numpy.typing as npt
import torch

from bundle import tensors
from bundle.errors import ExportError
from bundle.manifest import Difference, Parity
from export.graph import GraphSession
from export.served import ServedNetwork

BATCHES = (1, 2, 7, 64)
# Largest difference allowed, as atol + rtol * |PyTorch|; float32 rounding in other orders stays far below.
TOLERANCES: dict[str, tuple[float, float]] = {
    tensors.PROBABILITIES: (1e-3, 1e-3),
    tensors.INSTANCE_SCORE: (1e-3, 1e-3),
    tensors.LAYER_SCORES: (1e-2, 2e-3),
    tensors.ATTENTION: (1e-3, 1e-3),
    tensors.PROTOTYPE_SIMILARITIES: (1e-2, 1e-2),  # log((d + 1) / (d + gamma)) is steep at d = 0
    tensors.PROTOTYPE_INDICES: (1e-2, 1e-2),  # compared by what PyTorch says of the prototypes they name
}


Values = npt.NDArray[np.float64]


@torch.no_grad()
def prove_parity(module: ServedNetwork, session: GraphSession, images: npt.NDArray[np.uint8], *, exact: bool) -> Parity:
    """The graph's differences from PyTorch over images : (n, H, W, 3) in batches of 1, 2, 7 and 64; `exact`ly the same
    but for rounding they must be in float32, or ExportError is raised. Fewer images than 64 are repeated.
    """
    if len(images) < max(BATCHES):
        images = np.resize(images, (max(BATCHES), *images.shape[1:]))
    module.eval()
    for batch in BATCHES:
        expected = dict(zip(tensors.OUTPUTS[module.head], module(torch.from_numpy(images[:batch])), strict=True))
        found = session.run(images[:batch])
        differences = {}
        for name, tensor in expected.items():
            want, have = tensor.numpy(), found[name]
            if want.shape != have.shape or want.dtype != have.dtype:
                raise ExportError(
                    f"{module.head}.{name} at batch {batch}: the graph gives {have.dtype} {have.shape}, "
                    f"PyTorch {want.dtype} {want.shape}"
                )
            if name == tensors.PROTOTYPE_INDICES:
                # Prototypes that are equal to rounding may change places, or stand for one another.
                every = module.similarities(torch.from_numpy(images[:batch])).numpy()
                want, have = (_similarities(every, indices) for indices in (want, have))
            wide = want.astype(np.float64)
            difference = np.abs(have.astype(np.float64) - wide)
            if not np.isfinite(difference).all():
                raise ExportError(f"{module.head}.{name} at batch {batch}: the graph gives what is no finite number")
            if exact and not np.all(difference <= _allowed(name, expected, module)):
                raise ExportError(
                    f"{module.head}.{name} at batch {batch}: the graph differs from PyTorch by {difference.max():.3g}",
                    hint="No bundle was written. Training longer or with another seed may help; please report it.",
                )
            differences[name] = _difference(difference, np.abs(wide))
    # The largest batch has the images of all others.
    classes = expected[tensors.PROBABILITIES].numpy().argmax(1) == found[tensors.PROBABILITIES].argmax(1)
    flags = expected[tensors.IS_ADVERSARIAL].numpy() == found[tensors.IS_ADVERSARIAL]
    return Parity(
        runtime=session.runtime,
        images=len(images),
        argmax_agreement=float(classes.mean()),
        flag_agreement=float(flags.mean()),
        outputs=differences,
    )


def _difference(difference: Values, size: Values) -> Difference:
    """Relative to |PyTorch| : `size`, or to its mean where that is larger, since near zero a ratio says little."""
    relative = difference / np.maximum(np.maximum(size, size.mean()), np.finfo(np.float32).tiny)
    return Difference(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        max_rel=float(relative.max()),
        mean_rel=float(relative.mean()),
    )


def _allowed(name: str, expected: dict[str, torch.Tensor], module: ServedNetwork) -> Values | float:
    if name in TOLERANCES:
        atol, rtol = TOLERANCES[name]
        scale = tensors.PROTOTYPE_SIMILARITIES if name == tensors.PROTOTYPE_INDICES else name
        return atol + rtol * np.abs(expected[scale].numpy().astype(np.float64))
    # p-value and flag step where a calibration score lies within rounding of the score; count those steps.
    score = expected[tensors.INSTANCE_SCORE].numpy()[:, None]
    atol, rtol = TOLERANCES[tensors.INSTANCE_SCORE]
    close = np.abs(module.calibration.numpy() - score) <= atol + rtol * np.abs(score)
    own = np.ones_like(close)
    if module.calibration_classes is not None:
        predicted = expected[tensors.PROBABILITIES].numpy().argmax(1)
        own = module.calibration_classes.numpy() == predicted[:, None]
    steps = (close & own).sum(1) / (own.sum(1) + 1)
    if name == tensors.P_VALUE:
        return np.asarray(steps + 1e-6, dtype=np.float64)
    near_alpha = np.abs(expected[tensors.P_VALUE].numpy() - module.alpha) <= steps + 1e-6
    return np.where(near_alpha, 1.0, 0.0)


def _similarities(every: npt.NDArray[np.float32], indices: npt.NDArray[np.int64]) -> Values:
    """The similarities [N, t] of the prototypes that are named; nan where one does not exist or is named twice."""
    chosen = np.full(indices.shape, np.nan)
    for row, names in enumerate(indices.tolist()):
        for place, name in enumerate(names):
            if 0 <= name < every.shape[1] and name not in names[:place]:
                chosen[row, place] = every[row, name]
    return chosen
