"""What a detector makes of attacked images that came as files, left out of its lessons and among them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

import fieldmark
from bundle.errors import DatasetError, OptionError
from detector.combination import Combination, fit_combination
from robustness import cli, fitting, found_attacks, found_document
from robustness.attack_files import AttackFolder, Attacks, Family
from robustness.fitting import DetectorSettings, Lessons, Parts, Taught, fit_and_calibrate
from robustness.found_attacks import Judged, Negatives, judge
from robustness.metrics import auroc, auroc_interval
from tests.robustness.test_attack_files import write as write_index
from training.attacks.attacker import Attackers
from training.attacks.files import AttackOrder, write_attacks
from training.data.loading import images_array
from training.run import Run, image_spec

ATTACKS = ("fgsm-8", "pgd10-8")


@pytest.fixture(scope="module")
def tried(tiny_run, tiny_birds):
    """A run's dataset, and what `judge` takes of its full head but the families."""
    record, network = Run(tiny_run).load_network()
    dataset = record.dataset.unchanged_at(tiny_birds)
    parts = Parts.of(dataset, image_spec(record.config))
    taught = fit_and_calibrate(network, "full", parts, DetectorSettings(attacks=ATTACKS, alpha=0.1), record.labels)
    clean, _ = images_array(dataset.parts["test"], image_spec(record.config))
    sources = tuple(sample.key for sample in dataset.parts["test"])
    return network, taught, Negatives(images=clean, sources=sources, folder=False), parts.calibration[0]


def noisy(images, sigma=40.0):
    random = np.random.default_rng(5)
    return (images + random.normal(0, sigma, images.shape)).clip(0, 255).astype(np.uint8)


def family(images, sources: Sequence[str] | None = None) -> Family:
    named = tuple(f"found {number}" for number in range(len(images))) if sources is None else tuple(sources)
    return Family(images=images, sources=named, total=len(images), tried=len(images))


def judged(tried, families: dict[str, Family], *, taught: Taught | None = None, seed: int = 0) -> dict[str, Any]:
    network, own, negatives, calibration = tried
    return judge(network, "full", own if taught is None else taught, negatives, calibration, families, seed)


def evidence(tried, images) -> Judged:
    network, taught, *_ = tried
    return Judged.of(network, "full", taught, images, np.arange(len(images)))


def test_left_out_it_is_the_detector_as_it_is_and_taught_it_knows_more(tried) -> None:
    _, (detector, lessons), negatives, _ = tried
    images = noisy(negatives.images)
    found = judged(tried, {"reviewed": family(images)})["reviewed"]
    assert (found["images"], found["sources"], found["lessons"]) == (len(images), len(images), list(ATTACKS))
    own, beside = evidence(tried, images), evidence(tried, negatives.images)
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


def test_what_taught_the_detector_by_name_is_left_out_of_its_weights(tried) -> None:
    _, (_, lessons), negatives, _ = tried
    images = noisy(negatives.images)
    found = judged(tried, {"fgsm-8": family(images)})["fgsm-8"]
    assert found["lessons"] == ["pgd10-8"]
    rest = lessons.combination(("pgd10-8",))
    scores = [rest.score(evidence(tried, each).evidence) for each in (negatives.images, images)]
    assert found["left_out"]["auroc"] == pytest.approx(auroc(*scores), abs=1e-4)
    # Another detector's weights than its own: what these say of its combination is of no account any more.
    other = replace(tried[1].detector, combination=lessons.combination(()))
    again = judged(tried, {"fgsm-8": family(images)}, taught=Taught(other, lessons))["fgsm-8"]
    assert again["left_out"]["auroc"] == found["left_out"]["auroc"]


def test_what_is_judged_never_taught_and_a_source_stays_in_one_fifth(tried, monkeypatch) -> None:
    """Every picture is there three times, so that folds over images would teach what they judge."""
    images = np.repeat(noisy(tried[2].images)[:8], 3, axis=0)
    parts, learnt = [], []
    figures, combination = found_attacks._Bench._figures, Lessons.combination

    def watched(self, found, rng):
        parts.append(found)
        return figures(self, found, rng)

    def learning(self, names, *, more=None):
        learnt.append(more)
        return combination(self, names, more=more)

    monkeypatch.setattr(found_attacks._Bench, "_figures", watched)
    monkeypatch.setattr(Lessons, "combination", learning)
    sources = [f"picture {number // 3}" for number in range(24)]
    found = judged(tried, {"reviewed": family(images, sources)})["reviewed"]
    assert (found["images"], found["sources"]) == (24, 8)
    assert found["left_out"]["interval"] == [0.0, 1.0], "eight pictures are fewer than ten, however often each comes"
    (folds,) = [each for each in parts if len(each) == found_attacks.FOLDS]
    rows = np.concatenate([part.evidence for _, part in folds])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, evidence(tried, images).evidence.tolist()))
    taught = [more for more in learnt if more is not None]
    for others, (_, part) in zip(taught, folds, strict=True):
        assert len(others) + len(part.predicted) == 24
        assert not set(map(tuple, others.tolist())) & set(map(tuple, part.evidence.tolist()))


def test_a_family_has_the_same_figures_whatever_else_lies_in_the_folder(tried) -> None:
    images = noisy(tried[2].images)
    alone = judged(tried, {"reviewed": family(images)})["reviewed"]
    first = {"another": family(images[:12], [f"found {11 - number}" for number in range(12)])}
    assert judged(tried, first | {"reviewed": family(images)})["reviewed"] == alone
    assert judged(tried, {"reviewed": family(images)}, seed=1)["reviewed"] != alone


def test_few_images_say_little(tried) -> None:
    found = judged(tried, {"reviewed": family(noisy(tried[2].images)[:4])})["reviewed"]
    assert found["taught"] is None
    assert found["left_out"]["interval"] == [0.0, 1.0]


def test_ten_of_ten_are_not_certain_and_few_clean_images_say_nothing() -> None:
    low, high = drawn(np.zeros(200), np.ones(10))
    assert 0.65 < low < 0.85, "as unsure as a share of ten of ten, whose interval begins at 0.72"
    assert high == 1
    low, high = drawn(np.zeros(1000), np.ones(1000))
    assert low > 0.995
    assert drawn(np.zeros(9), np.ones(200)) == (0, 1)


def drawn(clean, attacked, of: npt.NDArray[np.int64] | None = None) -> tuple[float, float]:
    """The interval for evidence of one column; `of` names the clean image that each attack was made of."""
    numbers = np.arange(len(clean), len(clean) + len(attacked)) if of is None else of
    sides = [
        Judged(evidence=np.exp(each)[:, None].astype(np.float32), predicted=np.zeros(len(each), np.int64), sources=at)
        for each, at in ((clean, np.arange(len(clean))), (attacked, numbers))
    ]
    place = found_attacks._Place.of(Combination(weights=np.ones(1, np.float32), bias=0.0), *sides)
    low, high = found_attacks.interval(sides[0], [place], np.random.default_rng(0))
    return low, high


def test_intervals_are_those_of_drawing_both_sides_anew() -> None:
    random = np.random.default_rng(4)
    clean, attacked = random.normal(0, 1, 300), random.normal(1, 1, 200)
    assert drawn(clean, attacked) == pytest.approx(auroc_interval(clean, attacked), abs=0.012)
    low, high = drawn(clean[:12], attacked)
    expected = auroc_interval(clean[:12], attacked)
    assert high - low == pytest.approx(expected[1] - expected[0], abs=0.04), "few clean images are what is unsure"


def test_an_attack_is_drawn_with_the_image_that_it_was_made_of() -> None:
    """A hard picture is hard clean and attacked, so pairs say more than strangers do."""
    random = np.random.default_rng(4)
    clean = random.normal(0, 1, 200)
    attacked = clean + random.normal(0.5, 0.1, 200)
    pairs = np.arange(200)
    found = drawn(clean, attacked, pairs)
    assert found == pytest.approx(auroc_interval(clean, attacked, pairs), abs=0.012)
    low, high = drawn(clean, attacked)
    assert found[1] - found[0] < 0.5 * (high - low)


def test_a_detector_that_no_attack_taught_learns_from_these_alone(tried) -> None:
    _, (detector, lessons), negatives, _ = tried
    free = replace(detector, combination=lessons.combination(()))
    bare = replace(lessons, fooled={}, every={})
    found = judged(tried, {"reviewed": family(noisy(negatives.images))}, taught=Taught(free, bare))["reviewed"]
    assert found["left_out"]["auroc"] == found["attack_free"]["auroc"]
    assert found["taught"]["auroc"] > 0.5


def test_what_was_found_does_not_change_which_lessons_count() -> None:
    """Nineteen images that fool are too few by themselves; those that were found do not make them enough."""
    random = np.random.default_rng(2)
    clean, fooled, every, more = (random.normal(mean, 1, (n, 2)).astype(np.float32) for mean, n in
                                  ((9, 60), (15, 19), (10, 60), (12, 200)))  # fmt: skip
    lessons = Lessons(
        layers=1, available=60, clean=clean, negatives=clean, fooled={"fgsm-8": fooled}, every={"fgsm-8": every}
    )
    found = lessons.combination(("fgsm-8",), more=more)
    expected = fit_combination(clean, np.concatenate([every, more]))
    assert np.array_equal(found.score(more), expected.score(more))


def test_what_was_left_out_or_is_not_to_be_believed_is_said(tried) -> None:
    images, (_, lessons), negatives = noisy(tried[2].images), tried[1], tried[2]
    none = images[:0]
    families = {
        "fgsm-8": Family(images=images[:4], sources=("a", "b", "c", "d"), total=9, tried=9),
        "reviewed": Family(images=images[:12], sources=tuple("abcdefghijkl"), total=40, tried=14),
        "lost": Family(images=none, sources=(), total=3, tried=3),
    }
    rows = ({"network": "attention", "attack": "reviewed", "path": "", "source": "", "label": ""},)
    folder = AttackFolder(path=Path("found"), rows=rows, cut=True)
    clean = Family(images=negatives.images[:3], sources=negatives.sources[:3], total=3, tried=3)
    attacks = Attacks(families=families, clean=clean)
    told = list(found_document.sentences("full", folder, attacks, negatives, lessons))
    assert told == [
        "full: these attacks were on attention, and are judged here as they are",
        "the index lists more than 1,000,000 images; those after them are left out",
        "the folder's 3 clean images are too few to tell anything; 10 are the least",
        found_document.OTHER_CAMERA,
        "fgsm-8: 4 images are too few to tell anything; 10 are the least",
        "fgsm-8: 5 of 9 images are gone, or are none",
        "fgsm-8: it taught the detector; left out, the weights are learnt again from pgd10-8",
        "reviewed: 14 of 40 images, evenly over them",
        "reviewed: 2 of 14 images are gone, or are none",
        "lost: none of its 3 images can be read, so it is not judged",
    ]
    own = replace(negatives, folder=True)
    enough = replace(clean, images=negatives.images[:12], sources=negatives.sources[:12], tried=14, total=14)
    told = list(found_document.sentences("full", folder, replace(attacks, clean=enough), own, lessons))
    assert found_document.OTHER_CAMERA not in told
    assert "clean: 2 of 14 images are gone, or are none" in told
    assert set(judged(tried, {"lost": families["lost"], "reviewed": families["reviewed"]})) == {"reviewed"}


def run(capsys, *arguments):
    code = 0
    try:
        fieldmark.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.fixture
def small(monkeypatch) -> None:
    """What the tiny run has images for."""
    settings = DetectorSettings(attacks=("fgsm-8",), alpha=0.3)
    monkeypatch.setattr(cli, "ALPHA", 0.3)
    monkeypatch.setattr(fitting, "DetectorSettings", lambda **_: settings)


def test_a_folder_of_the_attack_verb_is_judged_by_head_beside_its_own_clean_images(
    small, tiny_run, tiny_birds, tmp_path, capsys, monkeypatch
) -> None:
    record, network = Run(tiny_run).load_network()
    heads = network.config.heads
    order = AttackOrder(attacks=("clean", "noise", "fgsm-8"), heads=heads, count=12)
    write_attacks(record, Attackers(network=network), tiny_birds, tmp_path / "attacks", order)
    moved = []
    monkeypatch.setattr(Attackers, "to_device", lambda self: moved.append(self))
    common = ("evaluate", tiny_run, "--data", tiny_birds, "--attacked-images", tmp_path / "attacks")
    out = tmp_path / "found.json"
    code, said, err = run(capsys, *common, "--out", out)
    assert code == 0, err
    assert "left out" in said
    assert "nothing of those that nobody found" in " ".join(said.split())
    assert len(moved) == 1, "the networks go to a GPU where there is one"
    document = json.loads(out.read_text())
    assert len(document["heads"]) == len(set(heads) & {"full", "attention"})
    for head, families in document["heads"].items():
        assert set(families) == {"fgsm-8"}, "noise is a control, and clean images are the other side"
        assert (families["fgsm-8"]["images"], families["fgsm-8"]["sources"]) == (12, 12)
        assert families["fgsm-8"]["lessons"] == []
        assert document["clean"][head] == {"source": "folder", "images": 12}
    assert found_document.OTHER_CAMERA not in document["sentences"]
    for words in (("--suite", "full"), ("--attacks", "fgsm-8"), ("--minutes", "3"), ("--part", "train")):
        code, _, err = run(capsys, *common, *words)
        assert code == 2
        assert "takes the place of suites and attacks" in " ".join(err.split())
    code, _, err = run(capsys, *common[:-1], tmp_path / "nowhere")
    assert code == 1
    assert "cannot be read" in " ".join(err.split())


def test_a_narrow_terminal_cuts_no_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    each = {"auroc": 0.835, "interval": [0.65, 0.93], "flagged": {"count": 8, "of": 20, "interval": [0.22, 0.61]}}
    measured = {"images": 20, **dict.fromkeys(found_document.WORDS, each)}
    Console().print(found_document.table({"attention": {"fgsm-8": measured}}))
    said = capsys.readouterr().out
    assert said.count("attention") == len(found_document.WORDS)
    assert "…" not in said


def test_nothing_clean_to_tell_them_from_is_a_sentence(tried, tiny_run, tiny_birds, tmp_path: Path) -> None:
    opened = Run(tiny_run)
    record, network = opened.load_network()
    dataset = record.dataset.unchanged_at(tiny_birds)
    bare = replace(dataset, parts={**dataset.parts, "test": ()})
    folder = AttackFolder.read(write_index(tmp_path, [("full", "reviewed", number) for number in range(8)]))
    with pytest.raises(OptionError, match=r"the dataset has no test part.*10 are the least"):
        found_document.found_document(opened, Attackers(network=network), bare, folder, None)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rows = [("one", "reviewed", 0), ("two", "reviewed", 1)]
    with pytest.raises(OptionError, match="holds attacks on one, two alone"):
        found_document.found_document(
            opened, Attackers(network=network), dataset, AttackFolder.read(write_index(foreign, rows)), None
        )
    (foreign / "one" / "reviewed" / "00000.png").unlink()
    with pytest.raises(DatasetError, match="holds no attacked image that can be read"):
        AttackFolder.read(foreign).attacks("one", image_spec(record.config))
