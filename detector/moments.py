"""Class means and the covariance within classes in one pass over the features, in float64 (Chan et al. 1979).

n images, D feature channels, K classes; memory K D + 2 D^2, however large n is. What is added up are Helmert
innovations: the m-th image of a class differs from the mean of those before it by h = sqrt((m - 1) / m) (x_m -
mean_{m-1}). Their outer products sum to the scatter within classes, and the n - K of them have mean 0 and its
covariance. So they are to Ledoit & Wolf (2004) what centred observations are, and sum ||h||^4 is all their shrinkage
needs beside the scatter.
"""

import numpy as np
import numpy.typing as npt

from bundle.errors import DetectorError
from detector.gaussian import ClassGaussians

Float64 = npt.NDArray[np.float64]


class ClassMoments:
    """Sums over the features of one layer; `add` batches, `merge` what other workers have added. Means and covariance
    do not depend on the order; the shrinkage does a little, and wants images of all classes mixed.
    """

    def __init__(self, classes: int, dimensions: int) -> None:
        self.counts = np.zeros(classes, np.int64)  # [K]
        self.means = np.zeros((classes, dimensions))  # [K, D]
        self.scatter = np.zeros((dimensions, dimensions))  # sum of h h^T
        self.fourth = 0.0  # sum of ||h||^4
        self.not_finite = 0  # feature vectors left out; `gaussians` refuses any
        # The same of all images as one class. It cannot be had from the classes: merging whole classes would add a few
        # huge innovations instead of many usual ones, and Ledoit-Wolf would take them for noise.
        self.whole = self if classes == 1 else ClassMoments(1, dimensions)

    def add(self, features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> None:
        """One batch, features : (n, D), labels : (n,) below K."""
        if self.whole is not self:
            self.whole.add(features, np.zeros_like(labels))
        usable = np.isfinite(features).all(axis=1)
        self.not_finite += int((~usable).sum())
        order = np.flatnonzero(usable)[np.argsort(labels[usable], kind="stable")]
        if not len(order):
            return
        x = np.asarray(features[order], np.float64)
        found, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        group = np.repeat(np.arange(len(found)), counts)  # (n,) into `found`
        # Counted from the class mean so far, or from the first image of a new class, sums lose no digits.
        before = self.counts[found]
        origin = np.where(before[:, None] > 0, self.means[found], x[starts])
        x -= origin[group]
        sums = np.cumsum(x, axis=0) - x  # of all rows before a row, those of other classes still among them
        sums -= sums[starts][group]
        earlier = before[group] + np.arange(len(x)) - starts[group]  # m - 1
        innovations = x - sums / np.maximum(earlier, 1)[:, None]
        innovations *= np.sqrt(earlier / (earlier + 1))[:, None]
        self._gather(innovations)
        self.counts[found] += counts
        self.means[found] = origin + np.add.reduceat(x, starts, axis=0) / self.counts[found][:, None]

    def merge(self, other: "ClassMoments") -> None:
        """Add what `other` has seen: per class one more innovation, between the two means."""
        if self.whole is not self:
            self.whole.merge(other.whole)
        total = self.counts + other.counts
        share = other.counts / np.maximum(total, 1)
        apart = other.means - self.means
        self.scatter += other.scatter
        self.fourth += other.fourth
        self.not_finite += other.not_finite
        self._gather(apart * np.sqrt(self.counts * share)[:, None])
        self.means += apart * share[:, None]
        self.counts = total

    def covariance(self) -> tuple[Float64, float]:
        """Ledoit & Wolf (2004): (1 - s) S + s tr(S) / D I with S = scatter / (n - K), [D, D], and s."""
        n, depth = int((self.counts - 1).sum()), len(self.scatter)
        empirical = self.scatter / n
        level = np.trace(empirical) / depth
        identity = level * np.eye(depth)
        distance = float(np.square(empirical - identity).sum())
        noise = (self.fourth / n - float(np.square(empirical).sum())) / n
        shrinkage = min(max(noise, 0.0) / distance, 1.0) if distance > 0 else 0.0
        return (1 - shrinkage) * empirical + shrinkage * identity, shrinkage

    def gaussians(self, *, layer: str) -> ClassGaussians:
        """What scoring needs; `layer` is for error messages."""
        n, classes = int(self.counts.sum()), len(self.counts)
        if self.not_finite:
            raise DetectorError(
                f"layer {layer}: {self.not_finite} of {n + self.not_finite} feature vectors are not finite",
                hint="Train again.",
            )
        if not self.counts.all():
            raise DetectorError(f"layer {layer}: class {int(np.argmin(self.counts))} has no training image")
        if n < classes + 2:  # of one innovation alone, no covariance
            raise DetectorError(f"layer {layer}: {n} images of {classes} classes leave no spread within a class")
        covariance, shrinkage = self.covariance()
        center = self.whole.means[0]
        try:
            # A dead channel has no variance; Ledoit-Wolf lifts it unless every channel is dead.
            whitening, overall = _whitening(covariance), _whitening(self.whole.covariance()[0])
        except np.linalg.LinAlgError:
            raise DetectorError(f"layer {layer}: the features of a class do not vary", hint="Train again.") from None
        return ClassGaussians(
            whitening=whitening.astype(np.float32),
            center=center.astype(np.float32),
            means=((self.means - center) @ whitening.T).astype(np.float32),
            shrinkage=shrinkage,
            overall=overall.astype(np.float32),
        )

    def _gather(self, innovations: Float64) -> None:
        self.scatter += innovations.T @ innovations
        self.fourth += float(np.square(np.square(innovations).sum(axis=1)).sum())


def _whitening(covariance: Float64) -> Float64:
    """The inverse Cholesky factor."""
    return np.linalg.solve(np.linalg.cholesky(covariance), np.eye(len(covariance)))


def fit_gaussians(features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, layer: str) -> ClassGaussians:
    """The same of features that are all in memory : (n, D), labels : (n,)."""
    moments = ClassMoments(int(labels.max()) + 1, features.shape[1])
    moments.add(features, labels)
    return moments.gaussians(layer=layer)
