"""A detector's file, read in part: what is asked of it is whole, or a sentence says what is not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import detector_file
from bundle.detector_file import DetectorFile, opened, write
from bundle.errors import BundleCorrupt

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")
SCORES = np.arange(9, dtype=np.float32)


def test_the_specification_names_every_array() -> None:
    for name in (
        detector_file.LAYERS,
        detector_file.WEIGHTS,
        detector_file.BIAS,
        detector_file.ALPHA,
        detector_file.CALIBRATION,
        detector_file.CALIBRATION_CLASSES,
        detector_file.CALIBRATION_LAYERS,
    ):
        assert f"`{name}`" in SPECIFICATION
        assert f"\n    {name}" in (detector_file.__doc__ or "") or f", {name} " in (detector_file.__doc__ or "")
    for name in (
        detector_file.WHITENING,
        detector_file.CENTER,
        detector_file.MEANS,
        detector_file.SHRINKAGE,
        detector_file.OVERALL,
    ):
        assert f"`<layer>/{name}`" in SPECIFICATION
        assert re.search(rf"LAYER/{name}|, /{name}", detector_file.__doc__ or "")


def test_a_part_is_read_without_the_others(tmp_path: Path) -> None:
    """The toy's detectors, and bundles of before, have other arrays beside the calibration, or none."""
    write(tmp_path / "d.npz", {"calibration": SCORES, "calibration_classes": np.arange(9) % 3})
    with opened(tmp_path / "d.npz") as file:
        np.testing.assert_array_equal(file.calibration(), SCORES)
        classes = file.calibration_classes(3)
        assert file.calibration_layers(6) is None
    assert classes is not None
    np.testing.assert_array_equal(classes, np.arange(9) % 3)
    write(tmp_path / "d.npz", {"calibration": SCORES})
    with opened(tmp_path / "d.npz") as file:
        assert file.calibration_classes(3) is None


WRONG: dict[str, tuple[dict[str, Any], Callable[[DetectorFile], object], str]] = {
    "absent": ({}, DetectorFile.calibration, "it has no calibration"),
    "whole numbers": ({"calibration": np.arange(9)}, DetectorFile.calibration, "its calibration is not [9] finite"),
    "one number": ({"calibration": np.float32(1)}, DetectorFile.calibration, "its calibration is not [1] finite"),
    "falling": ({"calibration": -SCORES}, DetectorFile.calibration, "its calibration is not in ascending order"),
    "a class too many": (
        {"calibration": SCORES, "calibration_classes": np.arange(9)},
        lambda file: file.calibration_classes(8),
        "its calibration_classes are not a label's position for each score",
    ),
    "a column too few": (
        {"calibration": SCORES, "calibration_layers": np.ones((9, 5), np.float32)},
        lambda file: file.calibration_layers(6),
        "its calibration_layers is not [9, 6] finite numbers",
    ),
    "a name alone": ({"layers": np.array("stage1")}, DetectorFile.layers, "its layers are none"),
    "two alphas": ({"alpha": np.array([0.1, 0.2])}, DetectorFile.alpha, "its alpha is not between 0 and 1"),
    "alpha as text": ({"alpha": np.array("0.1")}, DetectorFile.alpha, "its alpha is not between 0 and 1"),
    "a problem of the reader's own": ({}, lambda file: int("x"), "invalid literal for int"),
}


@pytest.mark.parametrize("way", WRONG)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, way: str) -> None:
    arrays, read, sentence = WRONG[way]
    write(tmp_path / "d.npz", arrays)
    with pytest.raises(BundleCorrupt, match=r"d\.npz is not a detector \(") as caught, opened(tmp_path / "d.npz") as f:
        read(f)
    assert sentence in str(caught.value)
    assert caught.value.hint
