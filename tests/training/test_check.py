"""`data check`, and what training looks at by itself: every bad file, every copy, complete lists, and exit codes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bundle.errors import CheckpointError, DatasetError, OptionError
from bundle.image import ImageSpec
from training.cli import app as training
from training.data import open_dataset
from training.data.check import examine, sound
from training.data.cli import app
from training.presets import preset
from training.run import Run, image_spec

SPEC = ImageSpec(height=32, width=32)
TINY = (
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "1",
    "--accelerator",
    "cpu",
    "--set",
    "last_layer_epochs=0",
)


def photograph(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blots = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blots).resize((64, 48), Image.Resampling.BICUBIC).save(path, format="JPEG", quality=92)
    return path


def folder(root: Path, *places: str, each: int = 16) -> Path:
    for number, place in enumerate(places):
        for shot in range(each):
            photograph(root / place / f"{shot:03}.jpg", 1000 * number + shot)
    return root


def spoil(*paths: Path) -> None:
    """Half of each file is lost."""
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def check(data: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["data", "check", str(data), *options])
    return done.exit_code, done.output


def train(data: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(training, ["train", str(data), "--out", str(out), *TINY, *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_a_sound_folder_has_nothing_wrong(tmp_path: Path) -> None:
    code, said = check(folder(tmp_path / "birds[old]", "a", "b"))
    assert (code, said.splitlines()[-1]) == (0, "32 images decoded, nothing wrong")
    assert "validation: 10 % of the training images, series kept together (0 found)" in said
    assert "calibration: 4 images support an alpha of 0.2 and above" in said
    assert "note: calibration: 4 images support no alpha below 0.2" in said


def test_every_bad_file_is_listed_in_json_and_twenty_in_text(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b", each=40)
    spoilt = [tmp_path / "a" / f"{shot:03}.jpg" for shot in range(30)]
    spoil(*spoilt)
    (tmp_path / "b" / "000.jpg").write_text("no image")
    code, said = check(tmp_path)
    assert code == 4
    assert "cannot be read: 31" in said
    assert said.count("damaged") == 20
    assert "and 11 more: --json lists all" in said
    code, said = check(tmp_path, "--json")
    document = json.loads(said)
    assert (code, document["clean"]) == (4, False)
    assert [each["path"] for each in document["bad"]] == sorted([f"a/{p.name}" for p in spoilt] + ["b/000.jpg"])
    assert all(each["reason"] for each in document["bad"])


def test_the_limit_of_pixels_is_that_of_training(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    with Image.open(tmp_path / "a" / "003.jpg") as image:
        image.save(tmp_path / "a" / "whole.png")  # no draft of it can be decoded
    (tmp_path / "a" / "003.jpg").unlink()
    code, said = check(tmp_path, "--max-pixels", str(64 * 48 - 1))
    assert (code, "cannot be read: 1" in said) == (4, True)
    assert check(tmp_path, "--max-pixels", str(64 * 48))[0] == 0


def test_a_name_of_two_lines_stays_on_one(tmp_path: Path) -> None:
    folder(tmp_path, "a\nb", "c[/]")
    spoil(tmp_path / "a\nb" / "000.jpg")
    code, said = check(tmp_path)
    assert code == 4
    assert any(line.startswith("  a\\nb/000.jpg: ") for line in said.splitlines())


def test_copies_across_given_parts_and_classes_are_found(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "test/a", "test/b", "validation/a", "validation/b")
    same = tmp_path / "test" / "a" / "other name.jpg"
    same.write_bytes((tmp_path / "train" / "a" / "000.jpg").read_bytes())
    with Image.open(tmp_path / "train" / "b" / "001.jpg") as image:
        image.resize((100, 75)).save(tmp_path / "validation" / "b" / "smaller.jpg", quality=60)
    (tmp_path / "train" / "b" / "twin.jpg").write_bytes((tmp_path / "train" / "a" / "002.jpg").read_bytes())
    code, said = check(tmp_path, "--json")
    document = json.loads(said)
    assert code == 4
    paths = [[each["path"] for each in keys] for keys in document["same_bytes"]]
    assert paths == [["test/a/other name.jpg", "train/a/000.jpg"], ["train/a/002.jpg", "train/b/twin.jpg"]]
    assert [[each["path"] for each in keys] for keys in document["near_copies"]] == [
        ["train/b/001.jpg", "validation/b/smaller.jpg"]
    ]
    findings = examine(*(dataset := open_dataset(tmp_path), dataset.looked))
    first, second = findings.sentences()
    assert first.startswith("2 photographs stand in two parts, as test/a/other name.jpg (test) and train/a/000.jpg (")
    assert second == (
        "1 photograph stands in two classes, as train/a/002.jpg (a) and train/b/twin.jpg (b): one of the two is wrong"
    )
    assert "note: 2 photographs stand in two parts" in train(tmp_path, tmp_path / "run")


def test_near_copies_within_a_part_are_listed_and_harm_nobody(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    with Image.open(tmp_path / "a" / "000.jpg") as image:
        image.save(tmp_path / "a" / "again.jpg", quality=50)
    code, said = check(tmp_path)
    assert code == 0
    assert "near copies: 1" in said
    assert "series: 1 found, 2 images the longest" in said


def test_published_formats_are_compared_too(tiny_birds: Path) -> None:
    code, said = check(tiny_birds, "--json")
    document = json.loads(said)
    assert (code, document["clean"], document["near_copies"]) == (0, True, [])
    assert document["images"] == {"train": 84, "validation": 12, "calibration": 24, "test": 12}
    assert {sum(parts.values()) for parts in document["classes_by_part"].values()} == {44}
    assert document["smallest_alpha"] == 0.04
    code, said = check(tiny_birds)
    assert (code, said.splitlines()[1].split()[1]) == (0, tiny_birds.name), "the set by its name"
    assert f"{tiny_birds.name} is in the format of CUB-200-2011" in said
    assert said.splitlines()[-1] == "132 images decoded, nothing wrong"


def test_show_says_what_check_says(tmp_path: Path) -> None:
    folder(tmp_path / "set", "train/a", "train/b", "train/c", "validation/a")
    (tmp_path / "set" / "train" / "a" / "x.cr2").touch()
    options = ["--out", str(tmp_path / "sheet.png")]
    done = CliRunner().invoke(app, ["data", "show", str(tmp_path / "set"), *options])
    assert done.exit_code == 0, done.output
    assert "set is a folder of class folders" in done.output
    assert "validation: given by the dataset (1 of 3 classes)" in done.output
    assert "note: 1 .cr2 passed over" in done.output
    assert "note: validation: 2 of 3 classes have no images ('b', 'c')" in done.output
    shares = ["--validation", "0.25", "--test", "0.5", "--division-seed", "7", "--json"]
    done = CliRunner().invoke(app, ["data", "show", str(tmp_path / "set"), *options, *shares])
    document = json.loads(done.output)
    assert document["images"]["test"] == 24
    assert any("its share of 0.25 is not used" in note for note in document["notes"])


def test_training_stops_with_all_bad_files_at_once(tmp_path: Path) -> None:
    folder(tmp_path / "set", "a", "b")
    spoil(*(tmp_path / "set" / "a" / f"{shot:03}.jpg" for shot in range(12)))
    with pytest.raises(DatasetError) as caught:
        train(tmp_path / "set", tmp_path / "run")
    assert caught.value.what.startswith(
        f"12 images of {tmp_path / 'set'} cannot be read: a/000.jpg: the image is damaged"
    )
    assert caught.value.what.endswith("; and 2 more")
    assert caught.value.what.count(".jpg: ") == 10
    assert "--skip-bad" in caught.value.hint
    assert "fieldmark data check" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_skip_bad_goes_on_and_every_later_look_leaves_the_same_ones_out(tmp_path: Path) -> None:
    folder(tmp_path / "birds[old]", "a[1]", "b")
    spoil(*(tmp_path / "birds[old]" / "a[1]" / f"{shot:03}.jpg" for shot in (3, 7)))
    run = tmp_path / "x[" / "y]"
    said = train(tmp_path / "birds[old]", run, "--skip-bad")
    assert f"note: 2 images that cannot be read are left out; {run / 'bad.csv'} lists them" in said
    assert said.startswith("birds[old]: 2 classes; ")
    with (run / "bad.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["a[1]/003.jpg", "a[1]/007.jpg"]
    assert all("damaged" in row["reason"] for row in rows)
    record = Run(run).read_record()
    dataset = record.dataset.unchanged_at(tmp_path / "birds[old]")
    assert dataset.bad == {row["path"]: row["reason"] for row in rows}
    assert len(dataset.samples) == 30
    assert dataset.looked is None
    again = train(tmp_path / "birds[old]", run, "--skip-bad", "--resume")
    assert "is finished" in again
    clean = folder(tmp_path / "clean", "a", "b")
    train(clean, run, "--force")
    assert not (run / "bad.csv").exists()


def test_bad_images_of_given_parts_and_boxes_count_too(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    lines = [f"{name}/{shot:03}.jpg,{name},0,0,60,40" for name in "ab" for shot in range(16)]
    lines[5] = "a/005.jpg,a,90,90,10,10"
    (tmp_path / "m.csv").write_text("\n".join(["path,label,x,y,width,height", *lines]))
    with pytest.raises(
        DatasetError, match=r"1 image of .* cannot be read: a/005.jpg: the bounding box .* lies outside"
    ):
        sound(open_dataset(tmp_path / "m.csv"), SPEC, skip_bad=False)
    left = sound(open_dataset(tmp_path / "m.csv"), SPEC, skip_bad=True)
    assert set(left.bad) == {"a/005.jpg"}
    assert len(left.samples) == 31


def test_limits_of_the_training_are_what_counts(tmp_path: Path) -> None:
    """A file that the usual limits refuse, and those of this training do not, is not bad."""
    folder(tmp_path, "a", "b")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 64, 3), dtype=np.uint8)).save(
        tmp_path / "a" / "thin.png"
    )
    dataset = open_dataset(tmp_path)
    assert dataset.looked is not None
    assert set(dataset.looked.bad) == {"a/thin.png"}
    assert sound(dataset, ImageSpec(height=32, width=32, min_side=4), skip_bad=False) is dataset


def test_the_seed_of_the_division_is_another_than_that_of_the_weights(tmp_path: Path) -> None:
    data = folder(tmp_path / "set", "a", "b")
    tests = []
    for name, options in (("one", ("--seed", "1")), ("two", ("--seed", "2")), ("other", ("--division-seed", "5"))):
        train(data, tmp_path / name, *options)
        record = Run(tmp_path / name).read_record()
        assert (record.config.seed, record.dataset.seed) == ({"one": 1, "two": 2}.get(name, 0), 5 * (name == "other"))
        tests.append({sample.key for sample in record.dataset.unchanged_at(data).parts["test"]})
        assert record.dataset.division == "validation: 10 % of the training images, series kept together (0 found)"
    assert tests[0] == tests[1] != tests[2]


def test_shares_are_recorded_and_used_again(tmp_path: Path) -> None:
    data = folder(tmp_path / "set", "a", "b")
    shares = ("--validation", "0.25", "--calibration", "0.25", "--test", "0.5")
    assert "16 test" in train(data, tmp_path / "run", *shares)
    record = Run(tmp_path / "run").read_record()
    dataset = record.dataset.unchanged_at(data)
    assert {part: len(samples) for part, samples in dataset.parts.items()} == record.dataset.counts
    assert record.dataset.counts == {"train": 8, "validation": 4, "calibration": 4, "test": 16}
    assert set(record.dataset.published()) == {
        "name", "format", "digest", "seed", "shares", "counts", "division"
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="started with another division of the data"):
        train(data, tmp_path / "run", "--resume")
    assert "is finished" in train(data, tmp_path / "run", "--resume", *shares)


def test_a_stopped_run_goes_on_with_the_division_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "set", "a", "b")
    train(data, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    monkeypatch.setattr("training.data.dataset.look", lambda *_, **__: pytest.fail("looked at every image again"))
    with pytest.raises(CheckpointError, match="another division"):
        train(data, tmp_path / "run", "--resume", "--division-seed", "1")
    assert "going on after epoch 1" in train(data, tmp_path / "run", "--resume")


def test_no_images_for_validation_are_refused_before_training(tmp_path: Path) -> None:
    data = folder(tmp_path / "set", "a", "b")
    with pytest.raises(OptionError, match="set leaves no images for validation") as caught:
        train(data, tmp_path / "run", "--validation", "0")
    assert "--validation" in caught.value.hint
    with pytest.raises(OptionError, match=r"the calibration fraction 1\.5 is not in"):
        train(data, tmp_path / "run", "--calibration", "1.5")


def test_a_part_without_images_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    data = folder(tmp_path / "set", "a", "b")
    train(data, tmp_path / "run", "--test", "0")
    words = ["attack", str(tmp_path / "run"), "--out", str(tmp_path / "attacked"), "--attacks", "clean"]
    done = CliRunner().invoke(training, words)
    assert isinstance(done.exception, OptionError)
    assert done.exception.what == "the test part of set holds no images"
    assert done.exception.hint == "There are: train, validation, calibration."


def test_photographs_of_phones_in_heic_are_trained_on_where_they_can_be_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    for name in ("oak", "elm"):
        (tmp_path / name).mkdir()
        for number in range(4):
            image = Image.new("RGB", (40, 30), (60 * number, 100, 200))
            pillow_heif.from_pillow(image).save(tmp_path / name / f"{number}.heic")
    dataset = open_dataset(tmp_path)
    assert sum(map(len, dataset.parts.values())) == 8
    sample = dataset.parts["train"][0]
    assert image_spec(preset("small", image_size=32)).read(sample.path).shape == (32, 32, 3)


def test_the_largest_image_is_a_setting_that_reaches_every_reader():
    config = preset("small", max_pixels=1000)
    assert image_spec(config).max_pixels == 1000
    assert preset("small").max_pixels == image_spec(preset("small")).max_pixels == 50_000_000
