"""Which layers a detector could do without, by how well it finds attacks that it did not learn from.

Backward elimination: all layers take part, and one leaves where the rest do clearly better without it. What is measured
is the area under the ROC curve (AUROC) on images and on an attack that both are held out of the logistic regression.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from detector.combination import fit_logistic, logarithms
from robustness.metrics import auroc

FOLDS = 5
MARGIN = 0.002  # of AUROC; less is no reason to look at less
Rows = tuple[npt.NDArray[np.floating], npt.NDArray[np.integer]]  # layer scores (n, columns), number of each image (n,)


def left_out_auroc(negatives: Rows, positives: Mapping[str, Rows], columns: Sequence[int]) -> npt.NDArray[np.float64]:
    """AUROC by fold of images, a mean over attacks: each is judged by weights that saw neither it nor those images.

    A single attack is judged by weights learnt on it, on other images. 0 where nothing can be judged. (FOLDS,)
    """
    clean, clean_fold = logarithms(negatives[0][:, columns]), negatives[1] % FOLDS
    attacked = {name: (logarithms(rows[:, columns]), images % FOLDS) for name, (rows, images) in positives.items()}
    found = np.zeros(FOLDS)
    for fold in range(FOLDS):
        judged = []
        for name, (rows, row_fold) in attacked.items():
            others = [other for other in attacked if other != name] or [name]
            known = np.concatenate([attacked[other][0][attacked[other][1] != fold] for other in others])
            tested = clean[clean_fold == fold], rows[row_fold == fold]
            if len(known) and all(map(len, tested)):
                weights, _ = fit_logistic(clean[clean_fold != fold], known)
                judged.append(auroc(tested[0] @ weights, tested[1] @ weights))
        found[fold] = np.mean(judged) if judged else 0.0
    return found


def columns_of(layers: Sequence[int], width: int) -> list[int]:
    """Positions of the columns of these layers, `width` each."""
    return [layer * width + column for layer in layers for column in range(width)]


def select_layers(layers: int, negatives: Rows, positives: Mapping[str, Rows]) -> tuple[int, ...]:
    """Positions of the layers to keep, each of which owns an equal run of columns.

    A layer leaves if the mean AUROC gains MARGIN by it, and more than a standard error over the folds, in pairs.
    """
    width = negatives[0].shape[1] // layers

    def judged(chosen: Sequence[int]) -> npt.NDArray[np.float64]:
        return left_out_auroc(negatives, positives, columns_of(chosen, width))

    chosen = list(range(layers))
    best = judged(chosen)
    while len(chosen) > 1:
        rest = [[layer for layer in chosen if layer != gone] for gone in chosen]
        scores = [judged(candidate) for candidate in rest]
        winner = int(np.argmax([score.mean() for score in scores]))  # the first of equals
        gain = scores[winner] - best
        if gain.mean() < max(MARGIN, gain.std(ddof=1) / FOLDS**0.5):
            break
        chosen, best = rest[winner], scores[winner]
    return tuple(chosen)
