"""The study's tables: which rows there are, how seeds are summed up, and a page that keeps its prose."""

import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import page
from benchmarks.record import read_kept, same_options, save
from benchmarks.study import command as study
from benchmarks.study import pictures, tables
from benchmarks.study.classes import first_classes
from benchmarks.study.place import Place
from benchmarks.study.plan import Row, ablation
from bundle.errors import OptionError
from bundle.false_alarms import wilson
from bundle.records import to_plain
from training.backbones import BACKBONES
from training.data import open_dataset
from training.networks import HEADS
from training.presets import preset
from training.run import Run, published_config


@pytest.mark.parametrize("backbone", ["small", "vgg16", "vgg19", "resnet34", "vgg16-96"])
def test_every_row_is_a_preset_and_has_a_name_of_its_own(backbone: str) -> None:
    jobs = list(study.jobs(backbone, 3))
    names = [(seed, row.name) for seed, row in jobs]
    assert len(set(names)) == len(names) == 3 * (10 + 4 + 2 + 2) + 5
    for _, row in jobs:
        texts = [word for word in row.options if word != "--set"]
        config = preset(row.preset, texts=texts)
        assert config.backbone == backbone.partition("-")[0]
        assert (config.adversarial != "none") == row.fast
    assert set(study.SOURCES.values()) <= set(BACKBONES)


def test_options_that_fit_no_row_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    for options, message in (
        ({"backbone": "foo"}, "unknown preset 'foo'"),
        ({"backbone": "../x"}, "unknown preset"),
        ({"backbone": "ap-vgg16"}, "'ap-vgg16' is no backbone"),
        ({"backbone": "vgg16", "image_size": 2000, "data": tmp_path}, "image size 2000"),
        ({"image_size": 9, "data": tmp_path}, "image size 9"),
        ({"weights": "imagenet", "data": tmp_path}, "small backbone takes no weights"),
        ({"settings": ["loss.cluser=1"]}, "cluser"),
        ({"settings": ["loss.cluster=5"]}, "maxsep-none-small: loss.cluster is set twice"),  # which Table 3 changes
        ({"settings": ["seed=7"]}, "--set seed is not for a study.*--seeds"),
        ({"settings": ["image_size = 32"]}, "--set image_size is not for a study.*--image-size"),
        ({"settings": ["loss.cluster"]}, "NAME=VALUE"),
        ({"weights": "nowhere.pt", "backbone": "vgg16", "data": tmp_path}, "no weights file at nowhere"),
    ):
        given = {name: default for name, default in _defaults().items() if name != "out"}
        with pytest.raises(OptionError, match=message):
            study.bench(**{**given, "out": tmp_path / "study", **options})


def test_the_main_comparison_is_whole_before_anything_else_begins() -> None:
    jobs = [(seed, row.name) for seed, row in study.jobs("vgg16-96", 2, 1)]
    main = [f"{system}-vgg16-96{fast}" for fast in ("", "-fast") for system in ("ap", "maxsep", "protopnet")]
    assert jobs[:6] == [(0, name) for name in main]
    assert [(1, name) for name in main] == [job for job in jobs if job[0] == 1]  # the others have one seed


def test_a_weights_file_is_of_one_backbone_and_others_are_no_substitutes() -> None:
    assert study._substitutes("vgg16", ["--weights", "vgg16.pt"]) == {"bb-v": "vgg16"}
    assert study._substitutes("vgg16", []) == study._substitutes("vgg16", ["--weights", "none"]) == study.SOURCES
    assert study._substitutes("small", ["--weights", "none"]) == study.SOURCES


def _defaults() -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(study.bench).parameters.items()}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"rows": []}', '{"of": ', "\udcff"])
def test_what_was_kept_and_is_damaged_is_named(text: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OptionError, match=r"kept\.json cannot be read .*Remove it"):
        read_kept(kept, "of", "rows")
    kept.write_text('{"of": {}, "rows": [], "more": 1}')
    assert read_kept(kept, "of", "rows")["more"] == 1


@pytest.mark.parametrize(
    "changed",
    [{"autoattack_images": ["c"]}, {"right": []}, {"right": {"full": 5}}, {"images": None}, {"right": {"full": {}}}],
)
def test_an_evaluation_that_is_not_as_it_was_written_is_named(changed: dict[str, Any], tmp_path: Path) -> None:
    right = {"full": {"clean": "11", "worst": "10", "pgd10-2": "10", "bim10-2": "01"}}
    whole = {"seed": 0, "images": ["a", "b"], "autoattack_images": ["b"], "right": right}
    kept = tmp_path / "ap-small-0.json"
    kept.write_text(json.dumps(whole))
    answers = study._evaluated(kept)["right"]["full"]
    assert (answers["worst-2"], answers["worst-there"]) == ("00", "0")
    kept.write_text(json.dumps(whole | changed))
    with pytest.raises(OptionError, match=r"ap-small-0\.json is not as it was written .*Remove it"):
        study._evaluated(kept)


@pytest.mark.parametrize(
    "told", [{"of": {}, "rows": [{}]}, {"of": [], "rows": [1]}, {"of": {"steps": 1}, "rows": [{}]}]
)
def test_a_measured_run_that_is_not_as_it_was_written_is_named(told: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x-0-0123abcd.json").write_text(json.dumps(told))
    with pytest.raises(OptionError, match=r"x-0-0123abcd\.json is not as it was written"):
        study.sr5.kept_rows(tmp_path)


def test_a_result_stands_in_the_folder_of_results() -> None:
    for name in ("calibrate/../../x", "../x", "/tmp/x", "a/b"):
        with pytest.raises(OptionError, match="is no name"):
            save(name, {})


def test_a_study_of_the_first_classes_has_their_images_boxes_and_test_part(tiny_birds: Path, tmp_path: Path) -> None:
    whole, out = open_dataset(tiny_birds), tmp_path / "study"
    manifest = first_classes(tiny_birds, 2, out)
    few = open_dataset(manifest)
    kept = sorted(whole.labels)[:2]
    assert list(few.labels) == kept
    assert few.name == f"{whole.name}-2"

    def told(dataset: Any, parts: tuple[str, ...]) -> set[tuple[Any, ...]]:
        samples = [sample for part in parts for sample in dataset.parts[part] if dataset.labels[sample.label] in kept]
        return {(sample.path.resolve(), sample.box, dataset.labels[sample.label]) for sample in samples}

    learnt = ("train", "validation", "calibration")
    assert told(few, ("test",)) == told(whole, ("test",))
    assert told(few, learnt) == told(whole, learnt)
    assert all(sample.path.is_file() for sample in few.samples)
    before = manifest.read_bytes()
    assert first_classes(tiny_birds, 2, out) == manifest  # a study that goes on
    assert manifest.read_bytes() == before
    assert open_dataset(first_classes(manifest, 2, tmp_path / "again")).labels == few.labels
    for count in (1, len(whole.labels) + 1):
        with pytest.raises(OptionError, match=f"{count} classes of {whole.name} cannot be taken"):
            first_classes(tiny_birds, count, out)
    with pytest.raises(OptionError, match="drawn whole"):
        study.bench(**{**_defaults(), "classes": 2, "out": out})


def test_a_study_of_the_first_classes_replaces_nothing_of_somebody_elses(tiny_birds: Path, tmp_path: Path) -> None:
    name = f"{open_dataset(tiny_birds).name}-2"
    given = {**_defaults(), "data": tiny_birds, "classes": 2, "out": tmp_path}
    for foreign in (name, f"{name}.csv"):
        (tmp_path / foreign).write_text("my own work")
        with pytest.raises(OptionError, match=f"{name}.* is there, and not from here"):
            study.bench(**given)
        assert (tmp_path / foreign).read_text() == "my own work"
        (tmp_path / foreign).unlink()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": Path("nowhere")}, "there is no dataset at nowhere"),
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"weights": "typo.pth", "backbone": "vgg16"}, r"no weights file at typo\.pth"),
        ({"image_size": 200}, "at most 128 pixels"),
    ],
)
def test_what_no_row_can_be_trained_with_is_refused_before_a_folder_is_made(
    tiny_birds: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        study.bench(**{**_defaults(), "data": tiny_birds, "classes": 2, "out": tmp_path, **changed})
    assert not list(tmp_path.iterdir())


def test_a_study_does_not_mix_evaluations_of_other_options(tmp_path: Path) -> None:
    same_options(tmp_path / "options.json", {"count": 10, "epochs": 8})
    same_options(tmp_path / "options.json", {"count": 100, "epochs": 8})  # of which nothing was made
    (tmp_path / "gap-vgg16").mkdir()
    same_options(tmp_path / "options.json", {"count": 100, "epochs": 8})
    with pytest.raises(OptionError, match="holds results with count 100, not 50"):
        same_options(tmp_path / "options.json", {"count": 50, "epochs": 8})
    with pytest.raises(OptionError, match="results with apgd None, not True"):
        same_options(tmp_path / "options.json", {"count": 100, "epochs": 8, "apgd": True})
    same_options(tmp_path / "apgd.json", {"apgd": True})
    with pytest.raises(OptionError, match="results with apgd True, not None"):
        same_options(tmp_path / "apgd.json", {})


def test_the_tables_name_rows_that_are_trained_and_heads_that_exist() -> None:
    names = {row.name for _, row in study.jobs("small", 1)}
    for system, head, _ in tables.ORDER:
        assert head in HEADS
        assert {f"{system}-small", f"{system}-small-fast"} <= names
    for suffix, (_, variants) in tables.ABLATED.items():
        for variant in variants:
            assert f"maxsep-{'' if variant is None else variant + '-'}small{suffix}" in names


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 30), st.integers(0, 2**31))
def test_a_summary_is_the_mean_over_seeds_inside_its_interval(seeds: int, images: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, (seeds, images))
    found = study._summary(["".join(map(str, row)) for row in bits])
    assert found["mean"] == pytest.approx(bits.mean(), abs=1e-4)
    assert found["by_seed"] == pytest.approx(list(bits.mean(axis=1)), abs=1e-4)
    assert found["images"] == images
    low, high = found["interval"]
    assert 0 <= low <= high <= 1
    assert low <= wilson(bits.mean() * images, images)[0] + 1e-4
    assert high >= wilson(bits.mean() * images, images)[1] - 1e-4


def test_autoattack_is_compared_with_the_others_on_its_own_images() -> None:
    evaluation = {
        "images": ["a", "b", "c", "d"],
        "autoattack_images": ["b", "d"],
        "right": {"full": {"worst": "0110", "autoattack-8": "01"}},
    }
    assert study._told_apart(evaluation)["right"]["full"][study.WORST_THERE] == "10"
    without = {"images": ["a"], "autoattack_images": [], "right": {"full": {"worst": "1"}}}
    assert study._told_apart(without)["right"]["full"] == {"worst": "1"}
    assert study.WORST_THERE in tables.TITLES


def rows_of(accuracy: float) -> list[dict[str, Any]]:
    """One finished seed of every row, each column with the same figure."""
    found = []
    for _, row in study.jobs("small", 1):
        config = preset(row.preset)
        heads = ("full", "attention") if config.system == "maxsep" else ("attention",)
        heads = ("full",) if config.system == "protopnet" else heads
        columns = ("clean", "pgd10-8", "worst") if row.attacks else tuple(tables.TITLES)
        summary = {"mean": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1], "images": 100}
        loss = {"cluster": config.loss.cluster, "separation": config.loss.separation}
        for head in heads:
            facts = {"config": {"image_size": 48, "epochs": config.epochs, "loss": loss}}
            each = {"row": row.name, "head": head, "seeds": [0], "run": facts}
            found.append({**each, "accuracy": dict.fromkeys(columns, summary)})
    return found


def write_result(path: Path, accuracy: float) -> Path:
    where = {"cpu": "a processor", "cores": 2, "packages": {"torch": "2"}, "commit": "0" * 40}
    facts = {"environment": where, "dataset": "birds", "backbone": "small", "rows": rows_of(accuracy)}
    path.write_text(json.dumps(facts))
    return path


def test_the_page_gets_every_table_and_keeps_the_prose_around_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    result = write_result(tmp_path / "tables.json", 0.5)
    tables.write_page(result, "small")
    first = page.PAGE.read_text()
    for title in (*tables.BLOCKS.values(), *(title for title, _ in tables.ABLATED.values()), "Recipes"):
        assert title in first
    assert first.count("| **Ours-FR** |") == 2 * len(tables.BLOCKS)
    assert "50.0 (40 to 60)" in first
    page.PAGE.write_text(first.replace("# Results", "# Results\n\nBefore.") + "\nAfter.\n")
    tables.write_page(write_result(tmp_path / "tables.json", 0.25), "small")
    second = page.PAGE.read_text()
    assert second.startswith("# Results\n\nBefore.\n\n<!-- begin: small -->")
    assert second.endswith("After.\n")
    assert "25.0 (15 to 35)" in second
    assert "50.0" not in second
    tables.write_page(tmp_path / "tables.json", "small")
    assert page.PAGE.read_text() == second


def test_ours_is_held_against_the_others_image_by_image() -> None:
    """On the same images an exact test sees what two intervals do not. An image of two seeds is one image, and a study
    in its midst has one row more often.
    """
    ours, other = "1" * 12 + "0" * 4, "0" * 12 + "1" * 2 + "0" * 2
    right = {
        "**Ours-A**": {column: {0: ours, 1: ours} for column in tables.PAIRED},
        "AP": {column: {0: other, 1: other, 2: "1" * 16} for column in tables.PAIRED},
    }
    lines = tables._pairs(right)
    assert lines[-2] == "| Ours-A, AP |" + " 12 : 2, p = 0.013 |" * len(tables.PAIRED)
    assert len(lines) == 2 + 2 + 1 + 1  # Ours-FR and ProtoPNet are not there
    right["AP"]["clean"] = {0: ours, 1: other}
    assert tables._pairs(right)[-2].startswith("| Ours-A, AP | 12 : 2, p = 0.013 |")
    right["AP"]["clean"] = {0: ours, 1: ours[::-1]}  # 4 images better, 4 worse
    assert tables._pairs(right)[-2].startswith("| Ours-A, AP | 4 : 4, p = 1 |")
    right["ProtoPNet"] = {"clean": {0: ours}, "worst": {2: ours}}
    assert tables._pairs(right)[-2] == "| Ours-A, ProtoPNet | 0 : 0 | – | – | – |"
    assert tables._pairs({"AP": right["AP"]}) == []


def evaluation(images: list[str], seed: int, **right: str) -> dict[str, Any]:
    """As 'fieldmark evaluate' writes it, of one head."""
    return {"seed": seed, "images": images, "autoattack_images": [], "right": {"attention": right}}


def test_settings_reach_every_row_and_what_is_told_of_it(
    tiny_run: Path, tiny_birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, list[str]] = {}

    def fieldmark(verb: str, *given: Any, threads: int | None = None) -> None:
        words[verb] = [str(each) for each in given]
        if verb == "evaluate":
            out = Path(words[verb][words[verb].index("--out") + 1])
            out.write_text(json.dumps(evaluation(["a", "b"], 0, clean="10", worst="00")))

    monkeypatch.setattr(study, "fieldmark", fieldmark)
    monkeypatch.setattr(study, "_sources", lambda *_: {})
    monkeypatch.setattr(study, "jobs", lambda *_: [(0, Row(name="maxsep-small", preset="maxsep-small"))])
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    (tmp_path / "results.md").write_text("# Results\n")
    folder = tmp_path / "study" / f"{tiny_birds.name}-small"
    folder.mkdir(parents=True)
    (folder / "maxsep-small-0").symlink_to(tiny_run)
    given = {**_defaults(), "data": tiny_birds, "image_size": 32, "out": tmp_path / "study"}
    given |= {"pictures": False, "detectors": False, "settings": ["regularise_from=0.5", " ema=0.9"]}
    study.bench(**given)
    assert [words["train"][i + 1] for i, word in enumerate(words["train"]) if word == "--set"] == [
        "ema=0.9",
        "regularise_from=0.5",
    ]
    document = json.loads((tmp_path / f"paper_tables_{tiny_birds.name}_small.json").read_text())
    assert document["settings"] == ["ema=0.9", "regularise_from=0.5"]
    assert document["rows"][0]["command"].endswith("--set ema=0.9 --set regularise_from=0.5")
    told = (tmp_path / "results.md").read_text()
    assert "; every row, not the substitutes, with `--set ema=0.9`; every row, not the substitutes, with `--set" in told
    study.bench(**given | {"settings": ["ema=0.9", "regularise_from=0.5"]})  # the same, in another order
    with pytest.raises(OptionError, match=r"settings \['ema=0.9', .*--set as it was"):
        study.bench(**given | {"settings": None})


def test_seeds_of_a_row_are_summed_up_over_what_all_of_them_met(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stopped before its last attack takes that column with it, and no more."""
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    place = Place(folder=tmp_path / "small", backbone="small")
    place.folder.mkdir()
    for seed, right in ((0, {"clean": "11", "apgd-2": "10"}), (1, {"clean": "10"})):
        (place.folder / f"ap-small-{seed}.json").write_text(json.dumps(evaluation(["a", "b"], seed, **right)))
        (place.folder / f"ap-small-{seed}").symlink_to(tiny_run)
    (row,) = json.loads(study._save(place, 2, ()).read_text())["rows"]
    assert (row["seeds"], row["accuracy"].keys(), row["right"]) == ([0, 1], {"clean"}, {"clean": ["11", "10"]})
    one = json.loads(study._save(place, 1, ()).read_text())["rows"][0]
    assert one["accuracy"].keys() == {"clean", "apgd-2"}
    text = tables.tables(json.loads(study._save(place, 2, ()).read_text()))
    assert "| AP | 2 | 75.0" in text
    (place.folder / "maxsep-small-0.json").write_text(json.dumps(evaluation(["a", "c"], 0, clean="11")))
    (place.folder / "maxsep-small-0").symlink_to(tiny_run)
    with pytest.raises(OptionError, match="maxsep-small, seed 0, was judged on other images"):
        study._save(place, 2, ())


def test_the_worst_at_two_is_of_every_attack_there() -> None:
    answers = {"clean": "111", "fgsm-2": "110", "pgd10-2": "100", "pgd10-8": "000"}
    found = study._told_apart({"images": [1, 2, 3], "autoattack_images": [], "right": {"full": answers}})
    assert found["right"]["full"][study.WORST_WEAK] == "100"


def test_another_dataset_has_a_folder_files_and_marks_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns CUB gets its pages beside those of the birds, by one command, and none of theirs is lost."""
    out, sheet = tmp_path / "study", tmp_path / "my photos.csv"
    sheet.write_text("path,label\n")
    for data, backbone, folder, mark in (
        (None, "small", "small", "small"),
        (tmp_path / "CUB_200_2011", "vgg16", "cub-200-2011-vgg16", "cub-200-2011 vgg16"),
        (tmp_path / "Cars", "vgg16-96", "cars-vgg16-96", "cars vgg16-96"),
        (sheet, "resnet34", "my-photos-resnet34", "my-photos resnet34"),
    ):
        place = Place.under(out, backbone, data)
        assert (place.folder, place.backbone, place.mark) == (out / folder, backbone, mark)
        assert Place.of(place.folder) == place  # who has the folder alone calls its figures the same
        assert place.name("sr5") == f"sr5_{mark.replace(' ', '_')}"
    with pytest.raises(OptionError, match="not named as a study names its folder"):
        Place.of(out / "runs")
    (out / "vgg16").mkdir(parents=True)
    (out / "vgg16" / "options.json").write_text(json.dumps({"data": str(tmp_path / "CUB_200_2011")}))  # begun before
    place = Place.under(out, "vgg16", tmp_path / "CUB_200_2011")
    assert (place.folder, place.mark) == (out / "vgg16", "cub-200-2011 vgg16")
    assert Place.under(out, "vgg16", tmp_path / "Cars").folder == out / "cars-vgg16"
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    for mark, accuracy in (("small", 0.5), ("cars small", 0.25)):
        tables.write_page(write_result(tmp_path / "tables.json", accuracy), mark)
    text = page.PAGE.read_text()
    assert "<!-- begin: small -->" in text
    assert "<!-- begin: cars small -->" in text
    assert "50.0 (40 to 60)" in text
    assert "25.0 (15 to 35)" in text


def test_results_name_the_weights_and_no_place_of_this_machine(tiny_run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vgg16.pth"
    weights.write_bytes(b"weights")
    record = Run(tiny_run).read_record()
    config = replace(record.config, weights=str(weights), start=str(tmp_path / "earlier"))
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.write_record(replace(record, config=config))
    told = study._run_facts(run.path)
    assert str(tmp_path) not in json.dumps(told)
    assert told["config"]["weights"] == "vgg16.pth"
    assert told["config"]["weights_file_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert told["config"]["start"] == "earlier"
    assert published_config(replace(config, weights="imagenet", start=None))["weights"] == "imagenet"
    assert published_config(record.config) == json.loads(json.dumps(to_plain(record.config)))


def test_a_study_without_the_other_systems_comes_to_its_end(
    tiny_run: Path, tiny_birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SR@5 is of what was trained; --other-seeds 0 leaves four rows out."""
    asked: list[Any] = []
    monkeypatch.setattr(study, "jobs", lambda *_: [])
    monkeypatch.setattr(study, "_save", lambda *_: tmp_path)
    for name in ("_rehearse", "write_page"):
        monkeypatch.setattr(study, name, lambda *_: None)
    monkeypatch.setattr(study, "_sources", lambda *_: {})
    monkeypatch.setattr(study.detection, "measure", lambda *given: asked.append(given))
    monkeypatch.setattr(study.sr5, "measure", lambda *given: asked.append(given))
    folder = tmp_path / "study" / f"{tiny_birds.name}-small"
    folder.mkdir(parents=True)
    for name in ("ap-small-0", "maxsep-small-fast-0"):
        (folder / name).symlink_to(tiny_run)
    given = {**_defaults(), "data": tiny_birds, "image_size": 32, "out": tmp_path / "study", "pictures": False}
    study.bench(**given)
    (place, *_), (runs, _, effort, out, name, mark) = asked
    assert [run.name for run in runs] == ["ap-small-0", "maxsep-small-fast-0"]
    assert (effort, out) == (study.sr5.Effort(), folder / "sr5")
    assert (name, mark) == (f"sr5_{tiny_birds.name}_small", f"sr5 {place.mark}")


def test_the_pictures_of_the_paper_are_drawn_once(tiny_run: Path, tiny_birds: Path, tmp_path: Path) -> None:
    (tmp_path / "maxsep-small-0").symlink_to(tiny_run)
    out = pictures.draw_pictures(Place(folder=tmp_path, backbone="small"), tiny_birds)
    drawn = sorted(path.name for path in out.iterdir())
    run = "maxsep-small-0"
    names = [
        "accuracy-against-eps.png",
        *(f"{kind}-{run}.png" for kind in ("attention", "prototype-space", "prototypes")),
    ]
    assert drawn == sorted([*names, f"{run}.json"])
    for name in names:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    curves = json.loads((out / f"{run}.json").read_text())
    assert set(curves) == {"full", "attention"}
    assert [round(255 * point["eps"]) for point in curves["full"]] == [0, 1, 2, 4, 8, 16, 64]
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    pictures.draw_pictures(Place(folder=tmp_path, backbone="small"), tiny_birds)
    again = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert [name for name in times if times[name] != again[name]] == ["accuracy-against-eps.png"]


def test_rows_that_are_not_measured_yet_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    result = write_result(tmp_path / "tables.json", 0.5)
    facts = json.loads(result.read_text())
    facts["rows"] = facts["rows"][:1]
    result.write_text(json.dumps(facts))
    tables.write_page(result, "small")
    text = page.PAGE.read_text()
    assert "| AP |" in text
    assert "ProtoPNet" not in text
    assert [line for line in text.splitlines() if line.startswith("###")] == [f"### {tables.BLOCKS['']}"]


def test_apgd_is_asked_where_it_is_wanted_and_can_be_had() -> None:
    """It needs four classes, in Table 3 as in Table 1."""
    whole, part = Row(name="a", preset="small"), next(ablation("small"))
    for row, strong in ((whole, {"apgd-2", "apgd-8"}), (part, {"apgd-2"})):
        every = set(row.columns(4, ("bb-v",), apgd=True))
        assert strong <= every
        assert every - strong == set(row.columns(3, ("bb-v",), apgd=True)) == set(row.columns(4, ("bb-v",), apgd=False))
    assert "pgd10-8@bb-v" in whole.columns(3, ("bb-v",), apgd=True)
