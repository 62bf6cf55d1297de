"""`fieldmark evaluate --suite full` by a careless or hostile hand: one sentence, early, and nothing broken."""

import json
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from bundle.errors import BundleCorrupt, BundleUnsupported, CheckpointError, DetectorError, MissingExtra, OptionError
from bundle.files import check_free
from bundle.folder import Bundle
from export.bundling import export_run
from export.plan import ExportSettings
from robustness import figures
from robustness.cli import app
from robustness.fitting import DetectorSettings, lessons_of
from training.run import Run

pytestmark = pytest.mark.hostile
QUICK = ("--suite", "full", "--quick", "--count", "1", "--attacks", "fgsm-8")


@pytest.fixture(scope="module")
def bundle(tiny_run, tiny_birds, tmp_path_factory):
    settings = ExportSettings(detector=DetectorSettings(attacks=(), alpha=0.1))
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    return export_run(tiny_run, out, settings, Console(quiet=True), data=tiny_birds).path


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def evaluate(*words):
    app(args=["evaluate", *map(str, words)], standalone_mode=False)


def test_out_inside_a_bundle_would_break_its_checksums(tiny_run, bundle):
    with pytest.raises(OptionError, match="lies in the bundle"):
        evaluate(bundle, "--run", tiny_run, *QUICK, "--out", bundle / "report" / "new")
    Bundle.open(bundle)


def test_out_is_never_a_file_that_no_evaluation_made(run, bundle, tmp_path, monkeypatch):
    """A run and a bundle would be lost."""
    for target, words in ((run / "run.json", "no evaluation made it"), (bundle / "manifest.json", "no evaluation")):
        before = target.read_bytes()
        with pytest.raises(OptionError, match=words):
            evaluate(run, "--attacks", "clean", "--out", target)
        assert target.read_bytes() == before
    with pytest.raises(OptionError, match="lies in the bundle"):
        evaluate(run, "--attacks", "clean", "--out", bundle / "accuracy.json")
    with pytest.raises(OptionError, match="lies in the bundle"):  # however deep
        evaluate(run, "--attacks", "clean", "--out", bundle / "detector" / "accuracy.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="no evaluation made it"):  # and nobody waits for its writer
        evaluate(run, "--attacks", "clean", "--out", tmp_path / "pipe")
    for _ in range(2):  # its own it replaces
        evaluate(run, "--attacks", "clean", "--count", "4", "--out", run / "accuracy.json")
    monkeypatch.setattr(os, "access", lambda _, mode, **__: not mode & os.W_OK)  # tests may run as root
    with pytest.raises(OptionError, match="cannot be written to"):
        evaluate(run, "--attacks", "clean", "--count", "4", "--out", tmp_path / "accuracy.json")


def test_out_among_class_folders_would_become_a_class(run, tiny_birds, tmp_path):
    from training.data import open_dataset

    folder = tmp_path / "plain"
    for place in sorted((tiny_birds / "images").iterdir()):
        shutil.copytree(place, folder / place.name)
    record = run / "run.json"
    document = json.loads(record.read_text())
    document["dataset"]["digest"] = open_dataset(folder, seed=document["dataset"]["seed"]).digest
    record.write_text(json.dumps(document))
    with pytest.raises(OptionError, match="would be taken for a class"):
        evaluate(run, "--data", folder, *QUICK, "--out", folder / "report")
    assert not (folder / "report").exists()


def test_another_runs_weights_are_refused_whatever_the_suite(run, bundle, tmp_path):
    state = Run(run).read_state("model.pt")
    Run(run).write_state("model.pt", {name: values + 1 for name, values in state.items()})
    for options in (("--attacks", "fgsm-8"), (*QUICK, "--out", tmp_path / "report")):
        with pytest.raises(OptionError, match="was not made of the weights"):
            evaluate(bundle, "--run", run, *options)


def test_weights_that_are_no_numbers_are_refused_before_any_work(run):
    state = Run(run).read_state("model.pt")
    state["prototype_head.prototypes"][0] = float("nan")
    Run(run).write_state("model.pt", state)
    with pytest.raises(CheckpointError, match=r"not finite \(1 of \d+ tensors, as prototype_head.prototypes\)"):
        Run(run).load_network()


@pytest.mark.parametrize("damage", ["empty", "stranger", "text"])
def test_prototypes_of_another_run_are_refused(run, damage):
    _, network = Run(run).load_network()
    path = run / "prototypes.json"
    sources = json.loads(path.read_text())
    keys = {source["source"] for source in sources}
    assert len(Run(run).prototypes_of(network, keys)) == 6
    sources[0]["source"] = "nobody.jpg"
    path.write_text({"empty": "[]", "stranger": json.dumps(sources), "text": "7"}[damage])
    sentence = {"empty": "does not name", "stranger": "'nobody.jpg'", "text": "cannot be read"}[damage]
    with pytest.raises(CheckpointError, match=sentence):
        Run(run).prototypes_of(network, keys)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"detector": ["fgsm-8"]},
        {"detector": {"attacks": "fgsm-8", "seed": 0}},
        {"detector": {"attacks": ["fgsm-8"], "seed": "0"}},
        {"detector": {"attacks": ["fgsm-8"], "seed": 0, "images": 0}},
        {"detector": {"attacks": ["fgsm-8"], "seed": 0, "images": "all"}},
    ],
)
def test_a_bundle_that_does_not_tell_its_lessons(bundle, tiny_run, tmp_path, monkeypatch, told):
    opened = Bundle.open(bundle)
    silent = Bundle(bundle, replace(opened.manifest, training=told))
    monkeypatch.setattr("robustness.fitting.Bundle.open", lambda _: silent)
    with pytest.raises(BundleUnsupported, match="does not say how the detector"):
        lessons_of(bundle, Run(tiny_run).load_network()[1], "full", None)


def test_a_bundle_whose_detector_has_other_layers(tiny_run, bundle, monkeypatch):
    opened = Bundle.open(bundle)
    full = opened.manifest.networks["full"]
    other = replace(full, detector=replace(full.detector, columns=full.detector.columns[::-1]))
    told = Bundle(bundle, replace(opened.manifest, networks=opened.manifest.networks | {"full": other}))
    monkeypatch.setattr("robustness.fitting.Bundle.open", lambda _: told)
    with pytest.raises(BundleCorrupt, match=r"full\.npz is not the detector of 'full'"):
        lessons_of(bundle, Run(tiny_run).load_network()[1], "full", None)


@pytest.mark.parametrize("library", ["jinja2", "matplotlib", "sklearn.manifold", "pyautoattack"])
def test_a_missing_library_is_missed_before_the_work(tiny_run, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    suite = ("--suite", "full") if library == "pyautoattack" else QUICK
    # No dataset there: had it been looked for, the sentence would be about it.
    with pytest.raises(MissingExtra, match=f"{library} is not installed"):
        evaluate(tiny_run, "--data", tmp_path / "nowhere", *suite, "--out", tmp_path / "report")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--quick",), "--quick goes with a report"),
        (("--force",), "--force goes with a report"),
        (("--attacks", " , "), "--attacks names nothing"),
    ],
)
def test_options_that_would_do_nothing(tiny_run, options, sentence):
    with pytest.raises(OptionError, match=sentence):
        evaluate(tiny_run, *options)


def test_too_few_calibration_images_name_a_way_out(tiny_run, tiny_birds, tmp_path, monkeypatch):
    monkeypatch.setattr("robustness.cli.ALPHA", 0.0001)
    with pytest.raises(DetectorError, match=r"cannot support alpha = 0.0001") as caught:
        evaluate(tiny_run, "--data", tiny_birds, *QUICK, "--out", tmp_path / "report")
    assert "BUNDLE --run RUN" in caught.value.hint


def test_a_place_where_nothing_can_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match="is no folder"):
        check_free(tmp_path / "file" / "deep" / "report")
    check_free(tmp_path / "new" / "report")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match="cannot be written to"):
        check_free(tmp_path / "new" / "report")


def test_the_map_of_prototypes_is_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sklearn.manifold.TSNE.fit_transform", lambda self, points: (seen.append(points), points[:, :2])[1]
    )
    prototypes = np.repeat(np.arange(1000, dtype=np.float32), 10)[:, None] * np.ones((1, 8), np.float32)
    assert figures.prototype_space(prototypes, [f"class {n}" for n in range(1000)]).startswith(b"\x89PNG")
    assert seen[0].shape == (figures.MAPPED, 8)
    shown, each = np.unique(seen[0][:, 0], return_counts=True)
    assert (len(shown), shown[0], shown[-1], set(each)) == (200, 0, 999, {10})


@pytest.mark.filterwarnings("error")
def test_class_names_are_drawn_whatever_they_hold():
    names = ("$x_{$", "_hidden", r"\frac", "L" * 250, "鳥 🐦", "two\nlines")
    prototypes = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).numpy()
    assert figures.prototype_space(prototypes, names).startswith(b"\x89PNG")
    pixels, maps = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(), torch.ones(2, 2).numpy()
    looked = [figures.Looked(pixels=(pixels,) * 2, maps=(maps,) * 2, answers=(n, n), label=n) for n in names]
    sheet = [[figures.Prototype(pixels=pixels, box=(0, 0, 4, 4), label=n)] for n in names]
    for png in (figures.activations(looked), figures.prototype_sheet(sheet)):
        assert int.from_bytes(png[16:20], "big") < 1200, "a long name makes no wide picture"
