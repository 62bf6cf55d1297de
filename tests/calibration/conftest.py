"""What the tests of this room share: exported bundles of the tiny run, and photographs by another camera."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from rich.console import Console

from bundle import Bundle

ALPHA = 0.1
CALIBRATED, TESTED = 120, 240  # images of the other camera


@pytest.fixture(scope="session")
def bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both networks of the tiny run, calibrated on birds as they were drawn."""
    from export.bundling import export_run
    from export.plan import ExportSettings
    from robustness.fitting import DetectorSettings

    out = tmp_path_factory.mktemp("calibration") / "bundle"
    settings = ExportSettings(detector=DetectorSettings(attacks=("fgsm-8",), alpha=ALPHA))
    return export_run(tiny_run, out, settings, Console(quiet=True))


@pytest.fixture(scope="session")
def other_camera(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """New birds of the same species by another camera: softer, warmer, compressed; to calibrate with and to test."""
    from training.data.cub_writer import BirdSet, write_birds

    folder = tmp_path_factory.mktemp("camera")
    drawn = folder / "drawn"
    write_birds(drawn, BirdSet(species=3, size=32, images_train=100, images_test=20, seed=11), workers=1)
    found: dict[str, list[Path]] = {"calibrate": [], "test": []}
    pictures = sorted(path for path in drawn.rglob("*") if path.suffix in (".jpg", ".png"))
    order = np.random.default_rng(0).permutation(len(pictures))[: CALIBRATED + TESTED].tolist()
    for place, index in enumerate(order):
        name = "calibrate" if place < CALIBRATED else "test"
        path = folder / name / f"{place:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        with Image.open(pictures[index]) as picture:
            soft = np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(1)), float)
        warm = (soft * (1.25, 1.0, 0.65)).clip(0, 255).astype(np.uint8)
        Image.fromarray(warm).save(path, quality=80)
        found[name].append(path)
    return found
