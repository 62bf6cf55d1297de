"""One Gaussian per class and one covariance for all of them, per layer: squared Mahalanobis distance (Lee et al. 2018);
and one Gaussian of all images, for what is unusual whatever the class (Ren et al. 2021).

n images, D feature channels, K classes. Fitted in float64 (detector.moments), scored in float32 on whitened, centred
features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ClassGaussians:
    """Fitted state. With z = W (x - g), the squared distance to class k is ||z - m_k||^2."""

    whitening: Float32  # W, [D, D], the inverse Cholesky factor of the shrunk within-class covariance
    center: Float32  # g, [D], the mean of all features; centring keeps float32 exact
    means: Float32  # m_k, [K, D], whitened class means
    shrinkage: float  # Ledoit-Wolf's share of the identity
    overall: Float32  # [D, D], whitens features whose class is not known

    def squared_distances(self, features: npt.NDArray[np.floating]) -> Float32:
        """features : (n, D) -> squared Mahalanobis distance to every class, (n, K) float32.

        The norm expansion costs one matrix product; centring by g first keeps its rounding error near 1e-5.
        """
        z = (features.astype(np.float32) - self.center) @ self.whitening.T
        norms = np.square(z).sum(axis=1, keepdims=True) + np.square(self.means).sum(axis=1)
        squared: Float32 = np.maximum(norms - 2 * (z @ self.means.T), 0)
        return squared

    def evidence(self, features: npt.NDArray[np.floating], predicted: npt.NDArray[np.integer]) -> Float32:
        """Squared distance to the nearest class mean, to that of the predicted class : (n,), and to the mean of all
        images, (n, 3) float32.

        An attack that succeeds moves the answer further than the features: near one class, called another. The third
        tells an unusual image from one that only its class makes unusual.
        """
        squared = self.squared_distances(features)
        whole = np.square((features.astype(np.float32) - self.center) @ self.overall.T).sum(axis=1)
        return np.stack([squared.min(axis=1), squared[np.arange(len(squared)), predicted], whole], axis=1)
