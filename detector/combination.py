"""From a row of squared distances to one adversarial score, linear in their logarithms.

Distances grow by factors under attack, so their logarithms are what is close to linear in the evidence. The weights are
those of a logistic regression where there are attacked images to learn from. Else what counts is how much further an
image is from a class than from all images (after Ren et al. 2021), one standard deviation alike everywhere.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.errors import DetectorError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
FLOOR = 1e-6  # squared distances below it count as equal; keeps the logarithm finite
STEPS, HALVINGS, TOLERANCE = 50, 30, 1e-9  # of Newton's method; the loss is convex, and some 8 steps suffice


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
    if len(clean) < 2 or len(adversarial) < 2:
        raise DetectorError(
            f"{len(clean)} clean and {len(adversarial)} adversarial images are too few to learn a detector from",
            hint="Use a larger validation part, stronger attacks, or none: --attacks none.",
        )
    weights, bias = fit_logistic(logarithms(clean), logarithms(adversarial))
    return Combination(weights=weights.astype(np.float32), bias=bias)


def relative_combination(clean: npt.NDArray[np.floating], layers: int) -> Combination:
    """Without any attacked image, from layer scores of clean ones : (n, columns), the last column of a layer `overall`:
    the sum of the standardised logarithms of the ratios of the other columns to it, of mean 0 on these images.
    """
    if len(clean) < 2:
        raise DetectorError(
            f"{len(clean)} clean images are too few to learn a detector from", hint="Use a larger validation part."
        )
    logs = logarithms(clean).reshape(len(clean), layers, -1)
    mean, scale = _standard(logs[:, :, :-1] - logs[:, :, -1:])
    weights = np.concatenate([1 / scale, -(1 / scale).sum(axis=1, keepdims=True)], axis=1)
    return Combination(weights=weights.ravel().astype(np.float32), bias=float(-(mean / scale).sum()))


def logarithms(layer_scores: npt.NDArray[np.floating]) -> Float64:
    """What the combination is linear in."""
    logs: Float64 = np.log(layer_scores.astype(np.float64) + FLOOR)
    return logs


def fit_logistic(negatives: Float64, positives: Float64) -> tuple[Float64, float]:
    """Weights (columns,) and bias of a logistic regression of rows : (n, columns), (m, columns).

    Columns are standardised, both classes weigh (n + m) / 2, and half the squared norm of the standardised weights is
    added to the loss, so that it has its minimum also where the classes can be told apart. It is scikit-learn's
    LogisticRegression(class_weight="balanced", solver="newton-cholesky") on such columns; where p-values are counted
    anew, this room is loaded without it.
    """
    rows = np.concatenate([negatives, positives])
    mean, scale = _standard(rows)
    x = np.column_stack([(rows - mean) / scale, np.ones(len(rows))])
    sign = np.repeat([-1.0, 1.0], [len(negatives), len(positives)])
    weight = len(rows) / 2 / np.repeat([len(negatives), len(positives)], [len(negatives), len(positives)])
    ridge = np.append(np.ones(rows.shape[1]), 0.0)  # the bias is free

    def loss(theta: Float64) -> float:
        return float(weight @ np.logaddexp(0, -sign * (x @ theta)) + ridge @ theta**2 / 2)

    theta, best = np.zeros(len(ridge)), loss(np.zeros(len(ridge)))
    for _ in range(STEPS):
        wrong = np.exp(-np.logaddexp(0, sign * (x @ theta)))  # probability of the other class
        gradient = ridge * theta - x.T @ (weight * sign * wrong)
        if np.abs(gradient).max() < TOLERANCE * len(rows):
            break
        curvature = (x * (weight * wrong * (1 - wrong))[:, None]).T @ x + np.diag(ridge + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(HALVINGS):
            if (value := loss(theta - step)) <= best:
                break
            step /= 2
        theta, best = theta - step, value
    weights = theta[:-1] / scale
    return weights, float(theta[-1] - weights @ mean)


def _standard(rows: Float64) -> tuple[Float64, Float64]:
    """Mean and standard deviation by column; a column that does not vary is left as it is."""
    scale = rows.std(axis=0)
    return rows.mean(axis=0), np.where(scale > 1e-9, scale, 1.0)
