"""The report: what it says is what the service would, it is whole on one page, and a bundle carries it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from bundle.errors import OptionError
from calibration.recalibration import recalibrate
from detector.combination import fit_combination
from export.bundling import export_run
from export.plan import ExportSettings
from robustness.cli import app, show_report
from robustness.defended import Defended
from robustness.families import family, strangers
from robustness.fitting import MIN_IMAGES, DetectorSettings, Parts, fit_and_calibrate, lessons_of
from robustness.journal import Journal
from robustness.limits import limits
from robustness.measure import _Bench, measure_heads
from robustness.metrics import auroc, flagged_interval, share
from robustness.report import headlines, make_report, render, summary_table
from robustness.suites import SUITES, Suite, suite_named
from training.attacks.attacker import Attackers
from training.data.choice import spread
from training.data.loading import images_array
from training.run import Run, image_spec

SMALL = Suite(
    name="quick",
    attacks=("fgsm-8", "pgd2-8", "pgd4-8"),
    count=12,
    curve_steps=2,
    adaptive_steps=3,
    adaptive_count=8,
)
SETTINGS = DetectorSettings(attacks=("fgsm-8", "pgd2-8"), alpha=0.1)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def parts(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    dataset = record.dataset.unchanged_at(tiny_birds)
    return record, network, dataset, Parts.of(dataset, image_spec(record.config))


@pytest.fixture(scope="module")
def report(tiny_run, parts):
    record, network, dataset, images = parts
    found = {head: fit_and_calibrate(network, head, images, SETTINGS, record.labels) for head in network.config.heads}
    return make_report(
        Run(tiny_run),
        Attackers(network=network),
        found,
        dataset,
        SMALL,
    )


@pytest.fixture(scope="module")
def bundle(tiny_run, tiny_birds, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    settings = ExportSettings(detector=SETTINGS, suite=SMALL)
    return export_run(tiny_run, out, settings, Console(quiet=True), data=tiny_birds)


def test_every_figure_follows_from_the_answers_beside_it(report):
    for head, measured in report.document["heads"].items():
        answers = measured["answers"]
        assert list(answers) == ["clean", "noise", *SMALL.attacks], head
        for name, each in answers.items():
            right, p_values = np.array([bit == "1" for bit in each["right"]]), np.array(each["p_value"])
            assert measured["accuracy"][name]["count"] == right.sum()
            for point in measured["system"][name]:
                assert point["missed"]["count"] == (~right & (p_values > point["alpha"])).sum()
                assert point["flagged"]["count"] == (p_values <= point["alpha"]).sum()
        worst = [
            all(bits)
            for bits in zip(*([b == "1" for b in answers[n]["right"]] for n in answers if n != "noise"), strict=True)
        ]
        assert measured["accuracy"]["worst"]["count"] == sum(worst)
        for name, each in measured["detection"].items():
            pairs = zip(answers["clean"]["right"], answers[name]["right"], strict=True)
            assert each["fooled"] == sum(before == "1" and after == "0" for before, after in pairs)
        assert measured["curve"][0]["right"]["count"] == measured["accuracy"]["clean"]["count"]


def test_left_out_attacks_are_judged_by_weights_that_never_saw_them(tiny_run, parts, report):
    """Against weights learnt by hand from what the validation part says of the other attack."""
    record, network, dataset, images = parts
    detector, lessons = fit_and_calibrate(network, "full", images, SETTINGS, record.labels)
    bench = _Bench(Defended(network, "full", detector).eval(), lessons, Attackers(network=network), SMALL, Journal())
    chosen, labels = images_array(spread(dataset.parts["test"], SMALL.count), image_spec(record.config))
    clean = bench.see(chosen, labels)
    attacked = bench.see(bench.attacked("fgsm-8", chosen, labels), labels)
    fooled = clean.right & ~attacked.right
    few = len(lessons.fooled["pgd2-8"]) < MIN_IMAGES
    weights = fit_combination(lessons.negatives, (lessons.every if few else lessons.fooled)["pgd2-8"])
    expected = auroc(weights.score(clean.evidence), weights.score(attacked.evidence[fooled]))
    found = report.document["heads"]["full"]["left_out"]["fgsm-8"]
    assert found["taught"] == ["pgd2-8"]
    assert found["fooled"] == fooled.sum()
    assert found["left_out"]["auroc"] == (None if np.isnan(expected) else pytest.approx(expected, abs=1e-4))
    assert report.document["heads"]["full"]["left_out"]["pgd4-8"]["taught"] == ["fgsm-8", "pgd2-8"]


def test_a_family_that_is_left_out_leaves_no_relative_among_the_lessons(report):
    for measured in report.document["heads"].values():
        found = measured["left_out"]
        assert (found["fgsm-8"]["family"], found["fgsm-8"]["taught_without_family"]) == ("single step", ["pgd2-8"])
        assert (found["pgd4-8"]["family"], found["pgd4-8"]["taught_without_family"]) == ("iterated", ["fgsm-8"])
        assert found["pgd4-8"]["taught"] == ["fgsm-8", "pgd2-8"]  # by name alone, a relative stays
        # PGD's own lessons are one attack, so leaving it out by name or by family is the same.
        assert found["pgd2-8"]["left_out"] == found["pgd2-8"]["family_left_out"]
    assert "<th>no relative</th>" in report.page


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fgsm-2", "single step"),
        ("rfgsm-8", "single step"),
        ("bim10-2", "iterated"),
        ("pgd100x10-8", "iterated"),
        ("mim10-8", "iterated"),
        ("pgd10-8:margin", "margin or target"),
        ("pgd100-8:least-likely", "margin or target"),
        ("pgd10-8@twin", "transfer"),
        ("fgsm-8:dlr@twin", "transfer"),
        ("autoattack-8", "AutoAttack"),
        ("apgd-8", "AutoAttack"),
        ("clean", None),
        ("noise", None),
    ],
)
def test_the_family_of_an_attack(name, expected):
    assert family(name) == expected
    assert strangers("fgsm-8", [name]) == (() if expected == "single step" else (name,))


def test_p_values_of_clean_images_are_held_against_what_chance_allows(report):
    """Shares at every alpha, of right and of wrong answers, from the p-values beside them."""
    for head, measured in report.document["heads"].items():
        clean, own = measured["clean"], report.document["detectors"][head]
        values = np.array(clean["p_values"], np.float32)
        assert [point["alpha"] for point in clean["coverage"]] == [0.01, 0.02, 0.05, 0.1, 0.2]
        for point in clean["coverage"]:
            assert point["flagged"]["count"] == (values <= np.float32(point["alpha"])).sum()
            low, high = flagged_interval([(len(values), own["calibration_n"])], point["alpha"], 0.95)
            assert point["expected"] == pytest.approx([low, high], abs=1e-4)
        right, wrong = clean["flagged_of_right"], clean["flagged_of_wrong"]
        assert right["count"] + wrong["count"] == clean["flagged"]["count"]
        assert (right["of"], wrong["of"]) == (clean["right"]["count"], clean["right"]["of"] - clean["right"]["count"])
        assert clean["median_p_value"] == pytest.approx(np.median(values), abs=1e-4)
        assert measured["adaptive"]["alpha"] == own["alpha"] == SETTINGS.alpha


def test_a_detector_of_mistakes_is_called_one(report):
    document = json.loads(json.dumps(report.document))
    assert not any("a detector of mistakes" in each for each in limits(document))
    document["heads"]["full"]["clean"]["flagged_of_right"] = share(1, 1000)
    document["heads"]["full"]["clean"]["flagged_of_wrong"] = share(98, 1000)
    words = "full: of clean images 0.1 % of those answered rightly are flagged and 9.8 % of those answered wrongly"
    assert any(each.startswith(words) for each in limits(document))


def test_it_says_which_calibration_and_how_fine_it_is(bundle, tiny_run, tiny_birds, report, tmp_path):
    """Of a run its own part; of a bundle that was calibrated elsewhere those images, and their own alpha and n."""
    own = report.document["detectors"]["full"]
    assert own["calibration"]["source"] == "the calibration part of tiny"
    assert own["calibration"]["smallest_p_value"] == pytest.approx(1 / (own["calibration_n"] + 1), abs=1e-6)
    words = f"full: with {own['calibration_n']} calibration images no p-value is below"
    assert any(each.startswith(words) for each in report.document["limits"])
    paths = [sample for sample in sorted(tiny_birds.rglob("*.*")) if sample.suffix in (".jpg", ".png")][:60]
    recalibrate(bundle, paths, tmp_path / "other", source="a garden", alpha=0.05)
    words = ["evaluate", str(tmp_path / "other"), "--run", str(tiny_run), "--data", str(tiny_birds), "--count", "4"]
    words += ["--suite", "adaptive", "--quick", "--attacks", "fgsm-8", "--out", str(tmp_path / "report"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    found = document["detectors"]["full"]
    assert (found["calibration"]["source"], found["calibration_n"], found["alpha"]) == ("a garden", 60, 0.05)
    assert found["calibration"]["sha256"] is not None
    assert document["heads"]["full"]["adaptive"]["alpha"] == 0.05
    assert "a garden" in (tmp_path / "report" / "report.html").read_text()


def test_the_bundle_carries_it_and_says_what_its_graph_says(bundle, parts):
    """The report is about the graph's own calibration: the same flags as ONNX Runtime gives, image by image."""
    from export.graph import GraphSession

    record, _, dataset, _ = parts
    document = json.loads((bundle.path / "report" / "report.json").read_text())
    assert {"report/report.json", "report/report.html"} <= set(bundle.manifest.files)
    images, labels = images_array(spread(dataset.parts["test"], SMALL.count), image_spec(record.config))
    import onnx

    for head, measured in document["heads"].items():
        session = GraphSession(onnx.load(bundle.model(head)))
        answer = session.run(images)
        right = "".join("01"[int(each)] for each in answer["probabilities"].argmax(1) == labels)
        assert measured["answers"]["clean"]["right"] == right
        np.testing.assert_allclose(measured["answers"]["clean"]["p_value"], answer["p_value"], atol=0.02)
        assert document["detectors"][head]["taught"] == list(SETTINGS.attacks)


def test_lessons_of_a_bundle_are_those_it_was_made_with(bundle, parts):
    record, network, _, images = parts
    detector, lessons = lessons_of(bundle.path, network, "full", images)
    np.testing.assert_allclose(
        lessons.combination(SETTINGS.attacks).weights, detector.combination.weights, rtol=1e-3, atol=1e-4
    )
    assert len(record.labels) == len(detector.gaussians[0].means)


class Links(HTMLParser):
    """Whatever a browser would fetch, and every tag."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


def test_one_page_that_needs_no_network_and_runs_nothing(report):
    page = Links()
    page.feed(report.page)
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("img") == 7
    assert not re.search(r"url\(|@import|https?://", report.page)


def test_names_from_a_dataset_cannot_write_into_the_page(report):
    document = json.loads(json.dumps(report.document))
    document["dataset"]["name"] = "<script>alert(1)</script>"
    document["labels"][0] = '"><img src=x onerror=alert(1)>'
    page = render(document, dict.fromkeys(("roc", "system", "reliability"), b""))
    assert "<script>" not in page
    assert "<img src=x" not in page


def test_limits_are_told_with_the_reports_own_figures(report):
    text = " ".join(report.document["limits"])
    for head, measured in report.document["heads"].items():
        won = measured["adaptive"]["success"]["any"]
        assert f"{head}: an attacker who knows the detector gets {won['count']} of {won['of']} images past" in text
        assert won["of"] == SMALL.adaptive_count
    assert "no AutoAttack" in text


def test_what_few_images_and_few_classes_mean_is_said_on_screen_and_page(report):
    """Three classes and twelve images: AutoAttack cannot run, and one image is eight points."""
    auto, few = "not measured: AutoAttack needs four classes", "of 12 images, fewer than 100: one image is 8.3 points"
    assert auto in report.document["limits"]
    assert any(few in each for each in report.document["limits"])
    assert auto in report.page
    assert "<b>12 images are few</b>: one more or less is 8.3 %" in report.page
    assert auto in headlines(report.document)
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    show_report(report.document, console)
    assert auto in console.export_text(styles=False)
    many = json.loads(json.dumps(report.document))
    many["labels"].append("a fourth")
    for measured in many["heads"].values():
        measured["accuracy"]["clean"]["of"] = 100
    assert not any("AutoAttack needs" in each or "fewer than" in each for each in limits(many))


def test_what_training_says_of_itself_reaches_the_gates(tiny_run, parts):
    record, network, dataset, images = parts
    told = replace(record, results=record.results | {"outcome": ["full ended below its warm-up."]})
    taught = fit_and_calibrate(network, "full", images, replace(SETTINGS, attacks=()), record.labels)
    suite = replace(SMALL, attacks=("fgsm-8",), curve_steps=0, adaptive=("selective PGD",), adaptive_steps=1)
    found = measure_heads(told, Attackers(network=network), {"full": taught}, dataset, suite)
    (gate,) = [each for each in found["full"]["gates"] if each["name"] == "training ended better than its warm-up"]
    assert (gate["state"], gate["evidence"]) == ("broken", "full ended below its warm-up.")
    assert list(found["full"]["adaptive"]["success"]) == ["attacks above", "selective PGD", "any"]


def test_a_head_without_adaptive_attacks_hides_nothing_of_the_other(report):
    """Where no image of a head was right and unflagged; and the page counts images, not what the suite would take."""
    document = json.loads(json.dumps(report.document))
    document["heads"]["full"]["adaptive"] |= {"images": 0, "success": {}}
    document["suite"]["count"] = 60
    pictures = dict.fromkeys(("roc", "system", "reliability"), b"")
    page = render(document, pictures)
    assert "<td>selective PGD</td><td>–</td><td>" in page
    assert "12 test images under every attack" in page
    assert "12 images, 3 adaptive steps, no AutoAttack" in " ".join(limits(document))
    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(document))
    said = console.export_text(styles=False)
    assert "any" in said
    console.print(summary_table(json.loads(json.dumps(document).replace("fgsm-8", "pgd10-8:margin"))))
    assert "pgd10-8:margin" in console.export_text(styles=False)
    document["heads"]["attention"]["adaptive"]["success"] = {}
    assert "nothing to attack" in render(document, pictures)


def test_gates_come_first_on_a_terminal_and_broken_ones_are_named(report):
    document = json.loads(json.dumps(report.document))
    document["heads"]["full"]["gates"][0]["state"] = "broken"
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    show_report(document, console)
    text = console.export_text(styles=False)
    assert text.index("accuracy falls as eps grows") < text.index("both: any")
    assert "broken" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it(report, tmp_path):
    report.write(tmp_path)
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,9000", f"--screenshot={shot}"]
    subprocess.run(
        [CHROMIUM, *options, (tmp_path / "report.html").as_uri()], check=True, capture_output=True, timeout=120
    )
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    rows = (pixels != pixels[0, 0]).any(axis=(1, 2))
    columns = (pixels != pixels[0, 0]).any(axis=(0, 2))
    assert rows.nonzero()[0].max() > 5000, "the page ends early"
    assert rows[:6000].mean() > 0.5
    assert columns[:20].sum() == 0, "something runs out of the page on the left"
    assert columns[-10:].sum() == 0, "something runs out of the page on the right"


def test_the_verb_writes_a_report_of_a_run_and_of_a_bundle(bundle, tiny_run, tiny_birds, tmp_path):
    common = ["--data", str(tiny_birds), "--suite", "adaptive", "--quick", "--count", "6"]
    for target, more in ((tiny_run, []), (bundle.path, ["--run", str(tiny_run)])):
        out = tmp_path / target.name
        told = CliRunner().invoke(
            app, ["evaluate", str(target), *common, "--out", str(out), *more], catch_exceptions=False
        )
        assert told.exit_code == 0, told.output
        assert sorted(each.name for each in out.iterdir()) == ["report.html", "report.json"]
        document = json.loads((out / "report.json").read_text())
        assert document["suite"]["count"] == document["suite"]["adaptive_count"] == 6
        again = CliRunner().invoke(app, ["evaluate", str(target), *common, "--out", str(out), *more])
        assert "--force" in str(again.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "hard"], "paper, full, adaptive"),
        (["--suite", "full"], "--out FOLDER"),
        (["--suite", "full", "--part", "train", "--out", "x"], "the test part"),
        (["--suite", "full", "--attacks", "pgd", "--out", "x"], "METHOD"),
        (["--run", "elsewhere"], "goes with a bundle"),
        (["--quick"], "--quick goes with a report"),
        (["--force"], "--force goes with a report"),
    ],
)
def test_options_that_do_not_fit(tiny_run, tiny_birds, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["evaluate", str(tiny_run), "--data", str(tiny_birds), *options])
    assert isinstance(found.exception, OptionError)
    assert message in str(found.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_needs_its_own_run(bundle, tiny_run, tiny_birds, tmp_path):
    alone = CliRunner().invoke(app, ["evaluate", str(bundle.path)])
    assert "--run RUN" in str(alone.exception)
    other = tmp_path / "run"
    shutil.copytree(tiny_run, other)
    state = torch.load(other / "model.pt", weights_only=True)
    first = next(iter(state))
    torch.save({**state, first: state[first] + 1e-3}, other / "model.pt")
    for suite in ("full", "paper"):
        options = ["--run", str(other), "--suite", suite, "--out", str(tmp_path / "o"), "--data", str(tiny_birds)]
        found = CliRunner().invoke(app, ["evaluate", str(bundle.path), *options])
        assert "was not made of the weights" in str(found.exception)
        assert not (tmp_path / "o").exists()


def test_a_quick_suite_tries_less_of_the_same():
    assert suite_named("full", quick=False) is SUITES["full"]
    assert suite_named("full", quick=True) is SUITES["quick"]
    short, long = suite_named("adaptive", quick=True), SUITES["adaptive"]
    assert replace(short, count=0, adaptive_count=0, adaptive_steps=0) == replace(
        long, count=0, adaptive_count=0, adaptive_steps=0
    )
    assert short.adaptive_steps < long.adaptive_steps


def test_the_golden_names_of_the_document(report):
    assert list(report.document) == [
        "schema",
        "suite",
        "seed",
        "run",
        "dataset",
        "labels",
        "measured_with",
        "detectors",
        "heads",
        "attention",
        "limits",
    ]
    for measured in report.document["heads"].values():
        assert list(measured) == [
            "accuracy",
            "curve",
            "detection",
            "left_out",
            "system",
            "adaptive",
            "clean",
            "zero_gradients",
            "answers",
            "gates",
        ]
    json.dumps(report.document, allow_nan=False)
