"""Attacks that take hours: stopped anywhere, they go on and find what an undisturbed run finds."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import sr5
from benchmarks.study.pictures import draw_pictures
from benchmarks.study.place import Place
from bundle.errors import OptionError
from robustness import journal as journals
from robustness.adaptive import AdaptiveAttack
from robustness.cli import app
from robustness.defended import Defended
from robustness.fitting import DetectorSettings, Parts, fit_and_calibrate
from robustness.journal import BATCH, Journal, success
from robustness.metrics import share
from training.attacks.attacker import Attackers
from training.data.loading import images_array
from training.networks import Network
from training.run import Run, image_spec

ATTACK = AdaptiveAttack(name="selective PGD", method="selective", eps=8 / 255, steps=2, alpha=0.05)


@pytest.fixture(scope="module")
def defended(tiny_run, tiny_birds):
    record, network = Run(tiny_run).load_network()
    parts = Parts.of(record.dataset.unchanged_at(tiny_birds), image_spec(record.config))
    detector, _ = fit_and_calibrate(network, "full", parts, DetectorSettings(attacks=()), record.labels)
    return Defended(network, "full", detector).eval()


@pytest.fixture(scope="module")
def part(tiny_run, tiny_birds):
    """Two batches and a half."""
    record, _ = Run(tiny_run).load_network()
    images, labels = images_array(record.dataset.unchanged_at(tiny_birds).parts["train"], image_spec(record.config))
    count = 2 * BATCH + BATCH // 2
    return images[:count], labels[:count]


class Killed(Exception):
    """What a kill is to the process that goes on."""


def killed_after(monkeypatch, batches):
    """Let so many batches be attacked; returns how many were."""
    made, attack_both = [], journals.attack_both

    def counted(*arguments):
        if len(made) == batches:
            raise Killed
        made.append(1)
        return attack_both(*arguments)

    monkeypatch.setattr(journals, "attack_both", counted)
    return made


def test_a_run_that_was_stopped_goes_on_with_the_batch_it_was_at(defended, part, tmp_path, monkeypatch):
    expected = success(ATTACK, defended, part, 0, Journal())
    path = tmp_path / "progress.json"
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(Killed):
            success(ATTACK, defended, part, 0, Journal(path))
    with monkeypatch.context() as patch:
        made = killed_after(patch, 99)
        again = Journal(path)
        np.testing.assert_array_equal(success(ATTACK, defended, part, 0, again), expected)
        assert len(made) == 1  # of three batches
        np.testing.assert_array_equal(success(ATTACK, defended, part, 0, Journal(path)), expected)
        assert len(made) == 1
    again.close()
    assert not path.exists()


def test_nothing_else_is_taken_for_the_same(defended, part, tmp_path, monkeypatch):
    """Another attack, seed, image, label, weight or calibration is attacked anew."""
    path = tmp_path / "progress.json"
    images, labels = part[0][:BATCH], part[1][:BATCH]
    success(ATTACK, defended, (images, labels), 0, Journal(path))
    made = killed_after(monkeypatch, 99)
    for attack in (replace(ATTACK, steps=3), replace(ATTACK, alpha=0.1), replace(ATTACK, own=True)):
        success(attack, defended, (images, labels), 0, Journal(path))
    success(ATTACK, defended, (images, labels), 1, Journal(path))
    success(ATTACK, defended, (images[::-1].copy(), labels), 0, Journal(path))
    success(ATTACK, defended, (images, (labels + 1) % 3), 0, Journal(path))
    calibration = defended.detector.calibration + np.float32(0.5)
    other = Defended(defended.network, "full", replace(defended.detector, calibration=calibration)).eval()
    success(ATTACK, other, (images, labels), 0, Journal(path))
    with torch.no_grad():
        weight = next(defended.network.parameters())
        weight += 1e-3
        success(ATTACK, defended, (images, labels), 0, Journal(path))
        weight -= 1e-3
    assert len(made) == 8
    assert len(json.loads(path.read_text())) == 9


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "012"}', "\x00", "3"])
def test_damaged_progress_is_one_sentence(text, tmp_path):
    path = tmp_path / "progress.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"the progress in .* cannot be read .*Remove it"):
        Journal(path)


def test_evaluate_keeps_its_progress_beside_the_report_and_removes_it(tiny_run, tiny_birds, tmp_path, monkeypatch):
    words = ["evaluate", str(tiny_run), "--suite", "adaptive", "--quick", "--data", str(tiny_birds), "--count", "6"]
    words += ["--attacks", "fgsm-8", "--adaptive-steps", "2", "--out", str(tmp_path / "report"), "--json"]
    progress = tmp_path / "report.progress.json"
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        assert isinstance(CliRunner().invoke(app, words).exception, Killed)
        assert len(json.loads(progress.read_text())) == 3
    made = killed_after(monkeypatch, 99)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert not progress.exists()
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["suite"]["adaptive_steps"] == 2
    attacks = [name for head in document["heads"].values() for name in head["adaptive"]["success"]]
    assert len(made) == len([name for name in attacks if name not in ("any", "attacks above")]) - 3
    wrong = CliRunner().invoke(app, ["evaluate", str(tiny_run), "--adaptive-steps", "5"])
    assert "--adaptive-steps goes with a report" in str(wrong.exception)


@pytest.mark.parametrize("only", ["clean", "noise"])
def test_who_knows_the_detector_is_measured_without_any_other_attack(tiny_run, tiny_birds, tmp_path, only):
    """A hint says 'or clean alone'."""
    words = ["evaluate", str(tiny_run), "--suite", "full", "--quick", "--data", str(tiny_birds), "--count", "6"]
    words += ["--attacks", only, "--adaptive-steps", "2", "--out", str(tmp_path / "report"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for head in json.loads((tmp_path / "report" / "report.json").read_text())["heads"].values():
        assert head["adaptive"]["success"]["attacks above"]["count"] == 0


def test_a_gpu_is_asked_for_before_anything_is_computed(tiny_run, tiny_birds, tmp_path, monkeypatch):
    """There is none here: what stands in for it is that the network is brought to it first."""
    order = []
    monkeypatch.setattr(Attackers, "to_device", lambda self: order.append("device") or torch.device("cpu"))
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, *given: order.append("forward") or forward(self, *given))
    sr5.forecast([tiny_run], tiny_birds, sr5.Effort(steps=1, count=4))
    sr5.measure_run(tiny_run, tiny_birds, sr5.Effort(steps=1, count=4), Journal())
    words = ["evaluate", str(tiny_run), "--suite", "full", "--quick", "--data", str(tiny_birds), "--minutes", "0.1"]
    first = len(order)
    CliRunner().invoke(app, [*words, "--out", str(tmp_path / "report")])
    (tmp_path / "maxsep-small-0").symlink_to(tiny_run)
    second = len(order)
    draw_pictures(Place(folder=tmp_path, backbone="small"), tiny_birds)
    assert order[0] == order[first] == order[second] == "device"
    assert order.index("device", 1) < first


def test_sr5_is_of_every_head_and_says_its_time_first(tiny_run, tiny_birds, tmp_path, monkeypatch, capsys):
    saved = {}
    monkeypatch.setattr(sr5, "save", saved.__setitem__)
    monkeypatch.setattr(sr5, "put", lambda mark, block: saved.__setitem__(f"page {mark}", block))
    given = {"data": tiny_birds, "steps": 2, "count": 6, "name": "sr5_x", "write": True, "out": tmp_path / "kept"}
    sr5.bench([tiny_run], **given, attacks="orth", estimate=True)
    assert not saved
    assert re.search(r"together at most .* on a machine that does nothing else; ", capsys.readouterr().out)
    sr5.bench([tiny_run], **given, attacks="orthogonal,selective", estimate=False)
    rows = saved["sr5_x"]["rows"]
    assert [row["head"] for row in rows] == ["full", "attention"]
    assert list(rows[0]["success"]) == ["selective PGD", "orthogonal PGD", "selective PGD, own head", "any"]
    assert list(rows[1]["success"]) == ["selective PGD", "orthogonal PGD", "any"]
    for row in rows:
        counts = {name: found["count"] for name, found in row["success"].items()}
        assert max(counts.values()) == counts["any"] <= sum(counts.values()) - counts["any"]
        assert row["success"]["any"]["of"] == 6
    assert "| tiny, seed 3 | full | 6 | 2 |" in saved["page sr5 x"]
    assert str(tmp_path) not in json.dumps(saved)
    with pytest.raises(OptionError, match=r"no attack is named nonsense\. There are: joint, weight 0.03"):
        sr5.bench([tiny_run], **given, attacks="nonsense", estimate=True)
    with pytest.raises(OptionError, match=r"no attack is named jiont\."):  # beside one that there is
        sr5.bench([tiny_run], **given, attacks="orthogonal,jiont", estimate=True)


def test_sr5_one_after_another_asks_only_for_what_still_stands(tiny_run, tiny_birds, tmp_path, monkeypatch, capsys):
    saved, made = {}, []
    monkeypatch.setattr(sr5, "save", saved.__setitem__)

    def past_the_first(attack, defended, part, seed, journal, work):
        made.append((attack.name, {image.tobytes() for image in part[0]}))
        work.advance(len(part[1]))
        return np.arange(len(part[1])) == 0

    monkeypatch.setattr(sr5, "success", past_the_first)
    effort = sr5.Effort(steps=2, count=4, attacks=("selective", "orthogonal", "joint"), standing=True)
    sr5.measure([tiny_run], tiny_birds, effort, tmp_path / "kept", "x")
    assert [name for name, _ in made[:3]] == ["selective PGD", "joint, weight 0.03", "joint, weight 0.1"]
    assert [len(images) for _, images in made] == [4, 3, 2, 1] * 2  # and nobody is left for more
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(made[:4]))
    for row in saved["x"]["rows"]:
        assert row["success"] == {"any": share(4, 4)}
    assert "left standing" in sr5.page(saved["x"])
    assert "not asked" in capsys.readouterr().out
    sr5.measure([tiny_run], tiny_birds, replace(effort, attacks=("joint",), standing=False), tmp_path / "kept", "x")
    assert len(saved["x"]["rows"]) == 4  # another effort, which asks every attack


def test_what_sr5_has_of_a_run_is_kept_and_another_effort_measures_it_anew(tiny_run, tiny_birds, tmp_path, monkeypatch):
    """A table of ten runs that take half an hour each is made over days, and one more run asks for itself alone."""
    saved = {}
    monkeypatch.setattr(sr5, "save", saved.__setitem__)
    other, out, effort = tmp_path / "ap-tiny-1", tmp_path / "kept", sr5.Effort(steps=1, count=4, attacks=("joint",))
    shutil.copytree(tiny_run, other)
    made = killed_after(monkeypatch, 99)
    sr5.measure([tiny_run], tiny_birds, effort, out, "x")
    one = len(made)
    assert one > 0
    (kept,) = out.iterdir()  # progress is gone where all is told
    assert kept.name.startswith("tiny-")
    sr5.measure([tiny_run, other], tiny_birds, effort, out, "x")
    assert len(made) == 2 * one
    told = [(row["row"], row["head"], row["steps"]) for row in saved["x"]["rows"]]
    assert told[0] == ("ap-tiny", "attention", 1)  # as the paper's tables have it
    assert len(told) == 4
    sr5.measure([tiny_run], tiny_birds, replace(effort, steps=2), out, "x")
    assert len(made) == 3 * one
    steps = [(row["row"], row["steps"]) for row in saved["x"]["rows"] if row["head"] == "full"]
    assert sorted(steps) == [("ap-tiny", 1), ("tiny", 1), ("tiny", 2)]  # one effort costs another nothing
    assert "| tiny, seed 3 | full | 4 | 2 |" in sr5.page(saved["x"])
    (out / "notes.json").write_text("5")  # somebody else's
    (out / f"{kept.stem}.progress.json").write_text("{")  # of a killed writer; the journal says so when it is its turn
    sr5.measure([tiny_run], tiny_birds, effort, out, "x")
    assert len(made) == 3 * one
    again = tmp_path / "again" / tiny_run.name
    shutil.copytree(tiny_run, again)
    state = Run(again).read_state("model.pt")
    Run(again).write_state("model.pt", {name: values * 1.5 for name, values in state.items()})
    with pytest.raises(OptionError, match="is of another run of the same name"):
        sr5.measure([again], tiny_birds, effort, out, "x")
    with pytest.raises(OptionError, match="is no folder"):
        sr5.measure([tiny_run], tiny_birds, effort, out / "notes.json", "x")
    (strange,) = [path for path in out.iterdir() if path.name.startswith("ap-tiny-1")]
    strange.write_text(strange.read_text().replace('"dataset": "tiny"', '"dataset": "cars"'))
    with pytest.raises(OptionError, match="one table cannot be of cars and tiny"):
        sr5.measure([tiny_run], tiny_birds, effort, out, "x")
    with pytest.raises(OptionError, match=r"no finished run\. Name runs"):
        sr5.measure([tmp_path], tiny_birds, effort, out, "x")
    with pytest.raises(OptionError, match="two of the runs have the same name"):
        sr5.measure([tiny_run, tiny_run], tiny_birds, effort, out, "x")
    strange.write_text('{"of": ')
    with pytest.raises(OptionError, match=r"ap-tiny-1-\w+\.json cannot be read"):
        sr5.measure([tiny_run], tiny_birds, effort, out, "x")


def test_a_journal_takes_with_it_what_killed_writers_left(tmp_path):
    for name in (".a.progress.json.31219765629514.tmp", ".b.progress.json.31219765629514.tmp"):
        (tmp_path / name).touch()
    journal = Journal(tmp_path / "a.progress.json")
    journal.note("key", np.array([True]))
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == [".b.progress.json.31219765629514.tmp"]


def test_a_row_is_called_by_its_longest_system():
    assert sr5._label("ap-small-fast", "attention") == "AP"
    assert sr5._label("ap-pcl-small", "attention") == "AP + PCL"
    assert sr5._label("maxsep-small", "full") == "**Ours-FR**"
    assert sr5._label("tiny", "full") == "full"
