"""Fitting and scoring Mahalanobis distances: ours, the reference's loop over classes, and pytorch-ood where installed.

K classes, D feature channels, batches of 64 images, 10 training images a class and at least 4000; random features.
"""

import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_ood.detector import Mahalanobis

from benchmarks.record import paired
from detector.gaussian import ClassGaussians
from detector.moments import ClassMoments

CASES = tuple((classes, depth) for classes in (20, 200, 1000) for depth in (128, 512))
BATCH = 64
ROUNDS = 20
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def measure_mahalanobis(cases: tuple[tuple[int, int], ...] = CASES, rounds: int = ROUNDS) -> dict[str, Any]:
    """By case: seconds and peak MB of fitting, milliseconds of scoring one batch in pairs, and how far both agree."""
    return {f"K{classes} D{depth}": _case(classes, depth, rounds) for classes, depth in cases}


def _case(classes: int, depth: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(max(4000, 10 * classes)) % classes)
    features = (rng.normal(size=(classes, depth))[labels] + rng.normal(size=(len(labels), depth))).astype(np.float32)
    batch = features[:BATCH]
    result: dict[str, Any] = {"images": len(labels), "fit": {}, "score_ms": {}}
    fits: dict[str, Callable[[], Any]] = {
        "ours": partial(stream, features, labels, classes),
        "loop": partial(loop_fit, features, labels, classes),
    }
    scorers: dict[str, Callable[[], Any]] = {}
    fitted = stream(features, labels, classes)
    means, precision = loop_fit(features, labels, classes)
    fits["pytorch-ood"] = lambda: Mahalanobis(None).fit_features(torch.from_numpy(features), torch.from_numpy(labels))
    scorers["pytorch-ood"] = partial(fits["pytorch-ood"]().predict_features, torch.from_numpy(batch))
    scorers["loop"] = partial(loop_score, torch.from_numpy(batch), torch.from_numpy(means), torch.from_numpy(precision))
    for name, fit in fits.items():
        started = time.perf_counter()
        fit()
        seconds = time.perf_counter() - started
        tracemalloc.start()  # counts what numpy allocates beside the features, which are there already; not PyTorch
        fit()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        result["fit"][name] = {"seconds": round(seconds, 4)} | (
            {} if name == "pytorch-ood" else {"peak_mb": round(peak / 2**20, 2)}
        )
    threads = torch.get_num_threads()
    for name, scorer in scorers.items():
        ours = partial(fitted.evidence, batch, labels[:BATCH])  # all three distances, where others give the nearest
        result["score_ms"][name] = paired(ours, scorer, rounds=rounds, warmup=2)  # first is ours
    exact = naive(batch, means, precision)
    result["threads"] = threads
    result["largest_relative_difference"] = {
        "ours": float(np.max(np.abs(_unshrunk(features, labels, classes).squared_distances(batch) / exact - 1))),
        "loop": float(np.max(np.abs(scorers["loop"]().numpy() / exact - 1))),
    }
    return result


def stream(features: Float32, labels: npt.NDArray[np.int64], classes: int) -> ClassGaussians:
    """Our fit, batch by batch."""
    moments = ClassMoments(classes, features.shape[1])
    for start in range(0, len(labels), BATCH):
        moments.add(features[start : start + BATCH], labels[start : start + BATCH])
    return moments.gaussians(layer="benchmark")


def loop_fit(features: Float32, labels: npt.NDArray[np.int64], classes: int) -> tuple[Float32, Float32]:
    """As the reference: every feature kept, class by class, and the inverse of the covariance of what is left. Here in
    float64, so that it can be held against ours; returned in float32 as it is used.
    """
    groups = [features[labels == k].astype(np.float64) for k in range(classes)]
    means = np.stack([group.mean(axis=0) for group in groups])
    left = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
    precision = np.linalg.inv(left.T @ left / len(left))
    return means.astype(np.float32), precision.astype(np.float32)


def loop_score(batch: torch.Tensor, means: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """As the reference: for each class the diagonal of a product over all pairs of images; (B, K) squared distances."""
    columns = []
    for mean in means:
        centred = batch - mean
        columns.append((centred @ precision @ centred.T).diag())
    return torch.stack(columns, dim=1)


def naive(batch: Float32, means: Float32, precision: Float32) -> Float64:
    """(x - m)^T P (x - m) in float64, (B, K)."""
    wide = precision.astype(np.float64)
    rows = []
    for x in batch.astype(np.float64):
        centred = x - means
        rows.append(np.einsum("kd,kd->k", centred @ wide, centred))
    return np.array(rows)


def _unshrunk(features: Float32, labels: npt.NDArray[np.int64], classes: int) -> ClassGaussians:
    """Our distances under the loop's covariance, scatter / n, to be held against it."""
    moments = ClassMoments(classes, features.shape[1])
    moments.add(features, labels)
    factor = np.linalg.cholesky(moments.scatter / len(labels))
    whitening = np.linalg.solve(factor, np.eye(len(factor)))
    center = moments.counts @ moments.means / len(labels)
    return ClassGaussians(
        whitening=whitening.astype(np.float32),
        center=center.astype(np.float32),
        means=((moments.means - center) @ whitening.T).astype(np.float32),
        shrinkage=0.0,
        overall=whitening.astype(np.float32),
    )
