"""Attacked images that came as files: what the detector makes of them, left out of its lessons and among them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from bundle.errors import DatasetError
from robustness import cli, decided, fitting
from robustness.decided import Family, judge, read_families, sentences
from robustness.fitting import DetectorSettings, Parts, Taught, fit_and_calibrate
from robustness.metrics import auroc
from training.data.loading import images_array
from training.run import Run, image_spec

COLUMNS = ("network", "attack", "path", "source", "label")


@pytest.fixture(scope="module")
def tried(tiny_run, tiny_birds):
    """A run, its parts, and its full head's detector with its lessons."""
    record, network = Run(tiny_run).load_network()
    dataset = record.dataset.unchanged_at(tiny_birds)
    parts = Parts.of(dataset, image_spec(record.config))
    settings = DetectorSettings(attacks=("fgsm-8",), alpha=0.1)
    detector, lessons = fit_and_calibrate(network, "full", parts, settings, record.labels)
    clean, _ = images_array(dataset.parts["test"], image_spec(record.config))
    return record, network, parts, detector, lessons, clean


def noisy(images, sigma=40.0):
    random = np.random.default_rng(5)
    return (images + random.normal(0, sigma, images.shape)).clip(0, 255).astype(np.uint8)


def write(folder: Path, images, attack: str = "reviewed", network: str = "full") -> Path:
    """As `fieldmark review --export attacks` writes a family."""
    (folder / attack).mkdir(parents=True)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / attack / f"{number:08d}.png")
            writer.writerow((network, attack, f"{attack}/{number:08d}.png", f"key-{number}", "Lark"))
    return folder


def test_left_out_it_is_the_detector_as_it_is_and_taught_it_knows_more(tried) -> None:
    _, network, parts, detector, lessons, clean = tried
    images = noisy(clean)
    found = judge(network, "full", Taught(detector, lessons), clean, parts.calibration[0],
                  {"reviewed": Family(images=images, total=len(images), unread=0)})["reviewed"]  # fmt: skip
    assert found["images"] == len(images)
    own = decided.Judged.of(network, "full", detector, images)
    beside = decided.Judged.of(network, "full", detector, clean)
    scores = detector.combination.score(own.evidence)
    assert found["left_out"]["auroc"] == pytest.approx(
        auroc(detector.combination.score(beside.evidence), scores), abs=1e-4
    )
    flags = int((detector.p_values(scores, own.predicted) <= np.float32(detector.alpha)).sum())
    assert found["left_out"]["flagged"]["count"] == flags
    free = lessons.combination(())
    assert found["attack_free"]["auroc"] == pytest.approx(
        auroc(free.score(beside.evidence), free.score(own.evidence)), abs=1e-4
    )
    assert found["taught"]["auroc"] >= found["left_out"]["auroc"] - 0.02
    assert found["taught"]["flagged"]["of"] == len(images), "each image is judged once"
    for each in (found["left_out"], found["taught"], found["attack_free"]):
        low, high = each["interval"]
        assert 0 <= low <= each["auroc"] <= high <= 1


def test_what_is_judged_never_taught(tried, monkeypatch) -> None:
    """Each combination has learnt from the other parts: together they are all of the family, once each."""
    _, network, parts, detector, lessons, clean = tried
    images = noisy(np.concatenate([clean, clean]))[:13]
    own = decided.Judged.of(network, "full", detector, images)
    seen = []
    figures = decided._Bench._figures

    def watched(self, judged):
        seen.append(judged)
        return figures(self, judged)

    learnt = []
    combination = type(lessons).combination
    monkeypatch.setattr(decided._Bench, "_figures", watched)
    monkeypatch.setattr(
        type(lessons), "combination", lambda self, names: learnt.append((names, self)) or combination(self, names)
    )
    judge(network, "full", Taught(detector, lessons), clean, parts.calibration[0],
          {"reviewed": Family(images=images, total=13, unread=0)})  # fmt: skip
    (folds,) = [each for each in seen if len(each) == decided.FOLDS]
    rows = np.concatenate([part.evidence for _, part in folds])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, own.evidence.tolist()))
    taught = [told.fooled[decided.OWN] for names, told in learnt if decided.OWN in names]
    assert len(taught) == decided.FOLDS
    for others, (_, part) in zip(taught, folds, strict=True):
        assert len(others) + len(part.predicted) == 13
        assert not set(map(tuple, others.tolist())) & set(map(tuple, part.evidence.tolist()))


def test_few_images_say_little_and_it_is_said(tried) -> None:
    _, network, parts, detector, lessons, clean = tried
    families = {"reviewed": Family(images=noisy(clean)[:4], total=9, unread=5)}
    found = judge(network, "full", Taught(detector, lessons), clean, parts.calibration[0], families)["reviewed"]
    assert found["taught"] is None
    assert found["left_out"]["interval"] == [0.0, 1.0]
    told = " ".join(sentences(families))
    assert "reviewed: 4 images are too few to tell anything; 10 are the least" in told
    assert "5 of 9 images are gone, or are none" in told


def test_a_detector_that_no_attack_taught_learns_from_these_alone(tried) -> None:
    _, network, parts, detector, lessons, clean = tried
    images = noisy(clean)
    families = {"reviewed": Family(images=images, total=len(images), unread=0)}
    free = replace(detector, combination=lessons.combination(()))
    bare = replace(lessons, fooled={}, every={})
    found = judge(network, "full", Taught(free, bare), clean, parts.calibration[0], families)["reviewed"]
    assert found["left_out"]["auroc"] == found["attack_free"]["auroc"]
    assert found["taught"]["auroc"] > 0.5


def test_the_files_of_a_folder_are_read_as_they_are(tried, tmp_path: Path) -> None:
    record, *_, clean = tried
    folder = write(tmp_path / "attacks", noisy(clean)[:6])
    (family,) = read_families(folder, image_spec(record.config)).values()
    assert np.array_equal(family.images, noisy(clean)[:6])
    (folder / "reviewed" / "00000000.png").unlink()
    (folder / "reviewed" / "00000001.png").write_bytes(b"<svg onload=alert(1)>")
    (tmp_path / "secret.png").write_bytes((folder / "reviewed" / "00000002.png").read_bytes())
    (folder / "reviewed" / "00000003.png").unlink()
    (folder / "reviewed" / "00000003.png").symlink_to(tmp_path / "secret.png")
    with (folder / "index.csv").open("a") as stream:
        stream.write("full,reviewed,../secret.png,k,Lark\n")
        stream.write(f"full,reviewed,{tmp_path}/secret.png,k,Lark\n")
    (family,) = read_families(folder, image_spec(record.config)).values()
    assert (len(family.images), family.total, family.unread) == (3, 8, 5), "nothing outside the folder is opened"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        (b"", "has not the columns"),
        (b"path,label\na.png,b\n", "has not the columns"),
        (b"\xff\xfe", "is no list of attacked images"),
        (b"network,attack,path,source,label\nfull,reviewed\n", "too few or too many cells"),
        (b"network,attack,path,source,label\nfull,reviewed,a,b,c,d\n", "too few or too many cells"),
        (b"network,attack,path,source,label\n", "holds no attacked image"),
        (b"network,attack,path,source,label\nfull,reviewed,gone.png,s,l\n", "holds no attacked image"),
        (b"network,attack,path,source,label\nfull,reviewed,a\x00b,s,l\n", "holds no attacked image"),
    ],
)
def test_what_is_no_folder_of_attacks_is_a_sentence(tried, tmp_path: Path, text: bytes | None, words: str) -> None:
    record, *_ = tried
    if text is not None:
        (tmp_path / "index.csv").write_bytes(text)
    with pytest.raises(DatasetError, match=words):
        read_families(tmp_path, image_spec(record.config))


def run(capsys, *arguments):
    code = 0
    try:
        fieldmark.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_the_verb_tells_it_as_a_table_and_as_json(tried, tiny_run, tiny_birds, tmp_path, capsys, monkeypatch) -> None:
    *_, clean = tried
    monkeypatch.setattr(cli, "ALPHA", 0.3)  # the tiny run has few calibration images
    small = DetectorSettings(attacks=("fgsm-8",), alpha=0.3)
    monkeypatch.setattr(fitting, "DetectorSettings", lambda **_: small)
    folder, out = write(tmp_path / "attacks", noisy(clean)[:12]), tmp_path / "found.json"
    common = ("evaluate", tiny_run, "--data", tiny_birds, "--attacked-images", folder)
    code, said, err = run(capsys, *common, "--out", out)
    assert code == 0, err
    assert "left out" in said
    assert "nothing of those that nobody found" in " ".join(said.split())
    document = json.loads(out.read_text())
    assert set(document["heads"]["full"]) == {"reviewed"}
    assert document["heads"]["full"]["reviewed"]["images"] == 12
    for words in (("--suite", "full"), ("--attacks", "fgsm-8"), ("--minutes", "3"), ("--part", "train")):
        code, _, err = run(capsys, *common, *words)
        assert code == 2
        assert "takes the place of suites and attacks" in " ".join(err.split())
    code, _, err = run(capsys, *common[:-1], tmp_path / "nowhere")
    assert code == 1
    assert "cannot be read" in " ".join(err.split())
