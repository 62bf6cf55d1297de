"""An export says what it will do before it does it, and keeps to its time; where all fits, no clock leaves a trace."""

import json
import re

import numpy as np
import pytest
from rich.console import Console

from bundle.errors import OptionError
from export.bundling import export_run
from export.plan import ExportSettings, Limits
from robustness.budget import ALONE, Costs
from robustness.fitting import MIN_IMAGES, DetectorSettings, Parts, fit_detector, lessons_of, some
from robustness.suites import Suite
from training.data.choice import spread
from training.run import Run, image_spec

SETTINGS = DetectorSettings(attacks=("fgsm-8",), alpha=0.1)
SUITE = Suite(
    name="quick", attacks=("fgsm-8", "bim2-8", "pgd10-8"), count=12, curve_steps=1, adaptive_steps=2, adaptive_count=4
)


def export(run, out, monkeypatch, seconds, limits, suite=None, precision="fp32"):
    """On a machine on which a pass takes so many seconds; and what was said on its way."""
    from export.staging import GraphSettings

    heads = ("full", "attention")
    told = Costs(seconds=dict.fromkeys(heads, seconds), losses={"full": 2, "attention": 1}, classes=3)
    monkeypatch.setattr(Costs, "measured", lambda *_: told)
    screen = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115
    graphs = GraphSettings(precision=precision, max_accuracy_loss=100)
    settings = ExportSettings(detector=SETTINGS, graphs=graphs, suite=suite, limits=limits)
    bundle = export_run(run, out, settings, screen)
    return bundle, screen.export_text().splitlines()


def test_a_fast_and_a_slow_machine_write_the_same_bundle_where_all_fits(tiny_run, tmp_path, monkeypatch):
    limits = Limits(lessons=5.0, report=10.0)
    one, said = export(tiny_run, tmp_path / "a", monkeypatch, 1e-4, limits, SUITE)
    other, slowly = export(tiny_run, tmp_path / "b", monkeypatch, 1e-2, Limits(report=10.0), SUITE)
    assert one.bundle_id == other.bundle_id
    assert one.manifest.training["left_out"] == []
    assert one.manifest.training["detector"]["images"] == 12, "what there were, not the most that would be taken"
    assert said[0].startswith("full and attention: detector and graph, about ")
    assert "lessons from 12 images under fgsm-8, at most " in said[0]
    assert "quick report of 12 images, at most " in said[0]
    assert said[0].endswith("; all on a machine that does nothing else")
    assert said[0] != slowly[0]
    proved = r"attention: equal to PyTorch at batch 1, 2, 7, 64 \(largest difference \S+, in the squared distances of "
    proved += r"layer_scores; \S+ in probabilities\); detector on .*"
    assert any(re.fullmatch(proved, line) for line in said)


def test_lessons_and_report_keep_to_their_time_and_say_what_they_left_out(tiny_run, tmp_path, monkeypatch, tiny_birds):
    monkeypatch.setattr("robustness.budget.MIN_IMAGES", 5)
    bundle, said = export(tiny_run, tmp_path / "b", monkeypatch, 1.0, Limits(lessons=0.6, report=2.0), SUITE)
    told = bundle.manifest.training
    assert told["detector"]["images"] == 6  # 36 seconds, and each image takes six
    lessons = f"the detector's lessons: 6 of 12 images, since all would take up to 72 s {ALONE} and 0.6 min are allowed"
    assert told["left_out"][0] == lessons
    assert told["left_out"][1].startswith("left out for want of time (all would take up to ")
    assert "accuracy against eps" in told["left_out"][1]
    for each in told["left_out"]:
        assert each in said
    document = json.loads((bundle.path / "report" / "report.json").read_text())
    assert document["suite"]["left_out"] == told["left_out"][1:]
    assert document["detectors"]["full"]["lessons"] == {"images": 6, "of": 12}
    page = (bundle.path / "report" / "report.html").read_text()
    for each in (*told["left_out"][1:], "full: its detector learnt from 6 of 12 validation images, for want of time"):
        assert each in document["limits"]
        assert each in page
    assert any(line.startswith("report, full: its detector learnt from 6 of 12") for line in said)
    record, network = Run(tiny_run).load_network()
    parts = Parts.of(record.dataset.unchanged_at(tiny_birds), image_spec(record.config))
    detector, again = lessons_of(bundle.path, network, "full", parts)
    assert (len(again.clean), again.available) == (6, 12)
    np.testing.assert_allclose(
        again.combination(("fgsm-8",)).weights, detector.combination.weights, rtol=1e-3, atol=1e-4
    )


def test_lessons_of_fewer_images_are_the_lessons_of_those_images(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    parts = Parts.of(record.dataset.unchanged_at(tiny_birds), image_spec(record.config))
    picked = np.array(spread(tuple(range(len(parts.validation[1]))), 7))
    few = some(parts.validation, 7)
    np.testing.assert_array_equal(few[0], parts.validation[0][picked])
    from dataclasses import replace

    _, mine = fit_detector(network, "full", parts, replace(SETTINGS, images=7))
    _, theirs = fit_detector(network, "full", replace(parts, validation=few), SETTINGS)
    np.testing.assert_array_equal(mine.clean, theirs.clean)
    np.testing.assert_array_equal(mine.every["fgsm-8"], theirs.every["fgsm-8"])
    assert (mine.available, theirs.available) == (12, 7)


def test_a_narrower_graph_is_tried_on_fewer_images_too(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("robustness.budget.MIN_IMAGES", 3)
    limits = Limits(lessons=0.4)
    bundle, said = export(tiny_run, tmp_path / "b", monkeypatch, 1.0, limits, precision="fp16")
    assert any(line.startswith("attacks on the narrower graph: 4 of 12 images") for line in said)
    assert bundle.manifest.training["left_out"][1].startswith("attacks on the narrower graph: 4 of 12 images")


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lessons", "report"])
def test_a_time_that_is_none(name, minutes):
    with pytest.raises(OptionError, match=f"--{name}-minutes .* is no time"):
        Limits(**{name: minutes})


def test_the_fewest_images_still_teach():
    assert MIN_IMAGES == 20
