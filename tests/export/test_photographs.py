"""From photographs as people have them to a bundle: parts that lack classes, six classes of twenty, no test part."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bundle import Bundle
from bundle.errors import DetectorError, OptionError
from export.bundling import export_run
from export.plan import ExportSettings
from robustness.fitting import DetectorSettings
from robustness.suites import Suite
from training.data import Dataset, open_dataset
from training.fit import Trainer
from training.parallel import Devices
from training.presets import preset
from training.run import Run

SMALL = Suite(
    name="quick",
    attacks=("fgsm-8", "pgd2-8"),
    count=8,
    curve_steps=1,
    adaptive_steps=2,
    adaptive_count=4,
    clean_count=8,
)
CONSOLE = Console(quiet=True)


def photographs(root: Path, place: str, count: int) -> None:
    for number in range(count):
        path = root / place / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([number, *place.encode()])
        blots = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        blots.resize((40, 40), Image.Resampling.BICUBIC).save(path, quality=90)


def train(dataset: Dataset, out: Path) -> Path:
    config = preset(
        "small",
        image_size=32,
        epochs=1,
        batch_size=16,
        prototypes_per_class=1,
        prototype_channels=8,
        last_layer_epochs=0,
    )
    Trainer(Run(out), dataset, config, Devices(accelerator="cpu"), CONSOLE).fit(resume=False)
    return out


def test_parts_that_lack_classes_train_export_and_report(tmp_path: Path) -> None:
    """Of five classes validation knows two and the test part two others."""
    for name in "abcde":
        photographs(tmp_path / "set", f"train/{name}", 24)
    for name in "ab":
        photographs(tmp_path / "set", f"validation/{name}", 6)
    for name in "cd":
        photographs(tmp_path / "set", f"test/{name}", 6)
    run = train(open_dataset(tmp_path / "set"), tmp_path / "run")
    settings = ExportSettings(detector=DetectorSettings(attacks=("fgsm-8",)), suite=SMALL)
    bundle = export_run(run, tmp_path / "bundle", settings, CONSOLE)
    told = bundle.manifest.training["dataset"]
    assert told["division"] == "validation: given by the dataset (2 of 5 classes)"
    assert told["counts"]["calibration"] >= 19
    assert not {"root", "series", "bad"} & set(told)
    report = json.loads((bundle.path / "report" / "report.json").read_text())
    assert report["dataset"] == told
    assert {head: each["clean"]["right"]["of"] for head, each in report["heads"].items()} == {"full": 8, "attention": 8}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twenty") / "set"
    for name in "abcdef":
        photographs(root, name, 20)
    return root


def test_six_classes_of_twenty_photographs_export_at_the_default_alpha(twenty: Path, tmp_path: Path) -> None:
    run = train(open_dataset(twenty), tmp_path / "run")
    made = export_run(run, tmp_path / "bundle", ExportSettings(detector=DetectorSettings(attacks=())), CONSOLE)
    opened = Bundle.open(made.path)
    assert {each.detector.calibration_n for each in opened.manifest.networks.values()} == {19}
    assert {each.detector.alpha for each in opened.manifest.networks.values()} == {0.05}


def test_the_alpha_that_was_named_before_training_is_the_one_that_export_takes(twenty: Path, tmp_path: Path) -> None:
    dataset = open_dataset(twenty, calibration=0.1, test=0)
    (note,) = (note for note in dataset.notes if "--alpha" in note)
    alpha = float(note.rsplit(" ", 1)[1])
    run = train(dataset, tmp_path / "run")
    with pytest.raises(DetectorError, match="cannot support alpha"):
        export_run(run, tmp_path / "no", ExportSettings(detector=DetectorSettings(attacks=())), CONSOLE)
    settings = ExportSettings(detector=DetectorSettings(attacks=(), alpha=alpha))
    with pytest.raises(OptionError, match="set has no test images") as caught:
        export_run(run, tmp_path / "no", replace(settings, suite=SMALL), CONSOLE)
    assert "--report none" in caught.value.hint
    made = export_run(run, tmp_path / "bundle", settings, CONSOLE)
    assert made.manifest.networks["full"].detector.alpha == alpha
