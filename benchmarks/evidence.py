"""Which distances a detector should look at: nearest class, predicted class, or both, on the same features."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bundle import tensors
from detector.combination import fit_combination
from detector.conformal import p_values
from detector.model import layer_scores
from detector.moments import fit_gaussians
from export.bundling import ExportSettings
from robustness.fitting import attacked, measure
from training.adversaries import CLEAN, NOISE, run_dataset, spread
from training.data.loading import images_array
from training.networks import Network
from training.run import Run, image_spec

ATTACKS = ("fgsm-8", "pgd10-2", "pgd10-8")
IMAGES = 200
ALPHA = ExportSettings().alpha


def measure_evidence(bundle_path: Path) -> dict[str, Any]:
    """Share flagged at alpha on test images, of all and of those that were fooled, by network and distance."""
    record, network = Run(bundle_path.parent / "run").load_network()
    dataset = run_dataset(record, Path(record.dataset.root))
    wanted = {"train": None, "validation": IMAGES, "calibration": None, "test": IMAGES}
    parts = {
        name: images_array(
            dataset.parts[name] if count is None else spread(dataset.parts[name], count), image_spec(record.config)
        )
        for name, count in wanted.items()
    }
    return {"alpha": ALPHA, "images": IMAGES} | {
        served: _compare(network, served, parts) for served in tensors.NETWORKS
    }


def _compare(network: Network, served: str, parts: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    features, _ = measure(network, served, parts["train"][0])
    labels = parts["train"][1]
    gaussians = {layer: fit_gaussians(values, labels, layer=layer) for layer, values in features.items()}
    generator = torch.Generator().manual_seed(1)

    def scores(part: str, attack: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        images = attacked(attack, network, served, parts[part], generator)
        measured, predicted = measure(network, served, images)
        found = layer_scores(tuple(gaussians), tuple(gaussians.values()), measured, predicted)
        return found, predicted == parts[part][1]

    fitted = {attack: scores("validation", attack) for attack in (CLEAN, NOISE, *ATTACKS)}
    tested = {attack: scores("test", attack) for attack in (CLEAN, NOISE, *ATTACKS)}
    calibration = scores("calibration", CLEAN)[0]
    result: dict[str, Any] = {}
    for choice, columns in (("nearest", slice(0, None, 2)), ("predicted", slice(1, None, 2)), ("both", slice(None))):
        negatives = np.concatenate([fitted[CLEAN][0], fitted[NOISE][0]])[:, columns]
        positives = np.concatenate([found[~right] for found, right in (fitted[attack] for attack in ATTACKS)])
        combination = fit_combination(negatives, positives[:, columns])
        ascending = np.sort(combination.score(calibration[:, columns]))
        result[choice] = {}
        for attack, (found, right) in tested.items():
            flags = p_values(combination.score(found[:, columns]), ascending) <= ALPHA
            fooled = int((~right).sum())
            result[choice][attack] = {
                "flagged": round(float(flags.mean()), 4),
                "fooled": fooled,
                "flagged_of_fooled": round(float(flags[~right].mean()), 4) if fooled else None,
            }
    return result
