"""A bundle of the paper's size with random weights: speed does not depend on what a network has learned."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bundle import tensors
from bundle.false_alarms import ALPHA
from bundle.folder import write_bundle
from bundle.image import ImageSpec
from bundle.manifest import MANIFEST_SCHEMA, PrototypeInfo
from detector.combination import Combination
from detector.gaussian import ClassGaussians
from detector.model import DISTANCES, Detector
from export.staging import Staging, stage_network
from robustness.fitting import features_of
from training.networks import Network, NetworkConfig

CALIBRATION = 100  # scores; what comparing with them costs does not show beside a backbone


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A network with random weights, a detector for each head, and random images (n, H, W, 3)."""

    network: Network
    spec: ImageSpec
    detectors: dict[str, Detector]
    images: npt.NDArray[np.uint8]
    labels: tuple[str, ...]


def synthetic(backbone: str, *, size: int = 224, classes: int = 200) -> Synthetic:
    """`backbone` with both heads for `size` x `size` pixels."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = Network(NetworkConfig(backbone=backbone, classes=classes)).eval().requires_grad_(False)
    images = rng.integers(0, 256, (CALIBRATION, size, size, 3), dtype=np.uint8)
    detectors = {}
    for head in tensors.NETWORKS:
        features, _ = features_of(network, head, images[:2])
        detectors[head] = Detector(
            layers=tuple(features),
            gaussians=tuple(_gaussians(values, classes, rng) for values in features.values()),
            combination=Combination(weights=np.ones(len(DISTANCES) * len(features), np.float32), bias=0.0),
            calibration=np.zeros(CALIBRATION, np.float32),
            alpha=ALPHA,
        )
    return Synthetic(
        network=network,
        spec=ImageSpec(height=size, width=size),
        detectors=detectors,
        images=images,
        labels=tuple(f"class {index}" for index in range(classes)),
    )


def write_synthetic(folder: Path, backbone: str, *, size: int = 224, classes: int = 200) -> Path:
    """Write a bundle of it; returns its path."""
    made = synthetic(backbone, size=size, classes=classes)
    images, spec, labels = made.images, made.spec, made.labels
    staged = folder / "staged"
    (staged / "prototypes").mkdir(parents=True)
    (staged / "detector").mkdir()
    Image.fromarray(images[0]).save(staged / "prototypes" / "0.jpg")
    staging = Staging(folder=staged, spec=spec, labels=labels, calibration=images, examples=images)
    networks = {head: stage_network(made.network, head, detector, staging) for head, detector in made.detectors.items()}
    count = classes * made.network.config.prototypes_per_class
    prototypes = [
        PrototypeInfo(
            label=index * classes // count,
            source="random",
            image="prototypes/0.jpg",
            row=0,
            column=0,
            box=(0, 0, 32, 32),
        )
        for index in range(count)
    ]
    fields = {
        "schema": MANIFEST_SCHEMA,
        "name": f"{backbone}-random",
        "labels": labels,
        "image": spec,
        "networks": networks,
        "prototypes": tuple(prototypes),
        "training": {"weights": "random"},
    }
    return write_bundle(folder / backbone, staged, fields).path


def _gaussians(features: np.ndarray, classes: int, rng: np.random.Generator) -> ClassGaussians:
    """Class means scattered around the layer's mean, a covariance that is the identity."""
    depth = features.shape[1]
    return ClassGaussians(
        whitening=np.eye(depth, dtype=np.float32),
        center=features.mean(axis=0),
        means=rng.normal(size=(classes, depth)).astype(np.float32),
        shrinkage=0.0,
        overall=np.eye(depth, dtype=np.float32),
    )
