"""From a row of squared distances to one adversarial score: a logistic regression on their logarithms.

Distances grow by factors under attack, so their logarithms are what is close to linear in the evidence.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import DetectorError, MissingExtra

Float32 = npt.NDArray[np.float32]
FLOOR = 1e-6  # squared distances below it count as equal; keeps the logarithm finite


@dataclass(frozen=True, kw_only=True)
class Combination:
    """score = weights . log(distance + FLOOR) + bias; higher is more suspicious, 0 is even odds on the fitted data."""

    weights: Float32  # one for each column of the layer scores
    bias: float

    def score(self, layer_scores: npt.NDArray[np.floating]) -> Float32:
        """layer_scores : (n, columns) squared distances -> (n,) float32."""
        logs = np.log(layer_scores.astype(np.float32) + np.float32(FLOOR))
        scores: Float32 = (logs @ self.weights + np.float32(self.bias)).astype(np.float32)
        return scores


def fit_combination(clean: npt.NDArray[np.floating], adversarial: npt.NDArray[np.floating]) -> Combination:
    """Fit on layer scores of negatives : (n, columns) and positives : (m, columns), both weighted equally."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as problem:
        raise MissingExtra.named("training", "fitting a detector", problem) from None
    if len(clean) < 2 or len(adversarial) < 2:
        raise DetectorError(
            f"{len(clean)} clean and {len(adversarial)} adversarial images are too few to learn a detector from",
            hint="Use a larger validation part, or stronger attacks.",
        )
    x = np.log(np.concatenate([clean, adversarial]).astype(np.float64) + FLOOR)
    y = np.concatenate([np.zeros(len(clean)), np.ones(len(adversarial))])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)).fit(x, y)
    scaler, logistic = model[0], model[1]
    weights = logistic.coef_[0] / scaler.scale_
    bias = float(logistic.intercept_[0] - (weights * scaler.mean_).sum())
    return Combination(weights=weights.astype(np.float32), bias=bias)
