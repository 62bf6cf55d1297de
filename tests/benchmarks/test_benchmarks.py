"""What the benchmarks compare is comparable, and what they work out by hand is right."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    attacks,
    calibrate,
    detection,
    mahalanobis,
    pointing,
    record,
    regulariser,
    review,
    runtime,
    scoring,
    sr5,
    training,
)
from benchmarks.gpu import command as gpu
from benchmarks.rivals import comparison as rivals
from benchmarks.rivals import preprocessing
from bundle.errors import OptionError, TrainingError
from demo.stages import fieldmark
from training.data import open_dataset
from training.data.loading import images_array
from training.losses import Objective, nearest_prototypes
from training.run import Run, image_spec


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing by threads, and lose much where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The regulariser


def gradients(terms: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both terms and their gradients, in float64."""
    inputs = tuple(each.detach().double().requires_grad_() for each in inputs)
    cluster, separation = terms(*inputs)
    return (
        cluster,
        separation,
        *torch.autograd.grad(cluster, inputs, retain_graph=True),
        *torch.autograd.grad(separation, inputs),
    )


def test_every_form_of_the_regulariser_is_the_same_function() -> None:
    distances, attention, labels = regulariser.made_up(3, 4, 2, 3)
    forms = (regulariser.regulariser, regulariser.term_in_full, regulariser.term_in_a_loop)
    product, *twins = (
        gradients(lambda d, a, form=form: form(d, a, labels, 4), distances, attention)  # type: ignore[misc]
        for form in forms
    )
    for twin in twins:
        torch.testing.assert_close(twin, product)

    def in_one(all_distances: torch.Tensor, maps: torch.Tensor) -> regulariser.Terms:
        return regulariser.pairs_in_one(*nearest_prototypes(all_distances, labels, 4), maps)

    torch.testing.assert_close(gradients(in_one, distances, attention), product)


def test_peak_memory_is_exact() -> None:
    ones = torch.ones(100_000)

    def two_at_a_time() -> torch.Tensor:
        kept = ones * 2
        for _ in range(3):
            kept = kept.neg()  # the old one lives until the new one is there
        return kept

    assert regulariser.peak(two_at_a_time) == 2 * ones.nbytes


@pytest.mark.usefixtures("one_thread")
def test_all_pairs_take_memory_by_the_square_of_the_batch_and_ours_does_not() -> None:
    result = regulariser.measure_regulariser((4, 32), classes=3, per_class=2, side=4)
    growth = result["growth"]["pairs"]
    assert growth["ours"]["memory_exponent"] < 1.1
    assert growth["all_pairs"]["memory_exponent"] > 1.8
    assert result["batch32"]["pairs"]["second_bytes"] >= 32 * 32 * 4 * 4 * 4
    assert result["loop"]["batch"] == 4
    json.dumps(result)


# The training step and the loader

TINY = training.Case(
    backbone="small",
    image_size=32,
    batch=4,
    classes=3,
    rounds=2,
    loader_images=8,
    loader_rounds=2,
    fed_steps=2,
    fed_rounds=1,
)


@pytest.mark.usefixtures("one_thread")
def test_a_rehearsal_of_the_training_benchmark() -> None:
    case = training.measure_training({"tiny": TINY})["tiny"]
    assert list(case["step"]) == ["protopnet", "ap"]
    assert {name for name, part in case["loader"].items() if isinstance(part, dict)} == {
        "memory",
        "decoding",
        "augmenting",
        "fed",
    }
    assert all(case["loader"][name]["images_per_s"] > 0 for name in ("memory", "decoding", "augmenting"))
    json.dumps(case)


@pytest.mark.usefixtures("one_thread")
def test_a_ratio_is_of_maxsep_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[str] = []
    step = training.optimisation_step

    def spy(trainer: Any, *batch: torch.Tensor) -> torch.Tensor:
        stepped.append(trainer.config.system)
        return step(trainer, *batch)

    def pair(first: Any, second: Any, *, rounds: int, warmup: int) -> dict[str, Any]:
        first(), second()
        return {"rounds": rounds, "first_ms": {"p50": 1.0}, "second_ms": {"p50": 1.0}, "ratio": 1.0, "ratio_5_95": []}

    monkeypatch.setattr(training, "optimisation_step", spy)
    monkeypatch.setattr(training, "paired", pair)
    training.measure_training({"tiny": TINY})
    ours = training.OURS
    # Each other system, then ours; ours beside memory, decoding and augmenting; fed_steps unfed, and as many fed.
    assert stepped == ["protopnet", ours, "ap", ours, *[ours] * 3, *[ours] * 2 * TINY.fed_steps]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("system", [training.OURS, *training.OTHERS])
def test_the_timed_step_is_the_whole_step(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joint: list[bool] = []
    forward = Objective.forward

    def spy(self: Objective, *inputs: Any, **options: Any) -> torch.Tensor:
        joint.append(options["joint"])
        return forward(self, *inputs, **options)

    monkeypatch.setattr(Objective, "forward", spy)
    trainer = training.make_trainer(tmp_path, training.draw(tmp_path / "birds", TINY), TINY, system)
    moving = [each for group in trainer.learner.optimizer.param_groups for each in group["params"]]
    before = [each.detach().clone() for each in moving]
    training.optimisation_step(trainer, *training.made_up_batch(TINY))
    assert joint == [True]
    assert all(not torch.equal(now, then) for now, then in zip(moving, before, strict=True))
    assert trainer.config.system == system
    assert len(trainer.dataset.labels) == trainer.learner.network.config.classes == 3


def test_systems_are_compared_on_the_same_backbone(tmp_path: Path) -> None:
    dataset = training.draw(tmp_path / "birds", TINY)
    ours, *others = (
        training.make_trainer(tmp_path, dataset, TINY, system).learner.network.backbone.state_dict()
        for system in (training.OURS, *training.OTHERS)
    )
    for other in others:
        torch.testing.assert_close(other, ours, rtol=0, atol=0)


def test_images_per_second_by_hand() -> None:
    timed = {
        "rounds": 3,
        "first_ms": {"p50": 100.0},  # for 50 images: 500 a second
        "second_ms": {"p50": 40.0},  # for 10 images: 250 a second
        "ratio": 0.4,
        "ratio_5_95": [0.3, 0.5],
    }
    assert training.images_per_second(timed, 50, 10) == {
        "rounds": 3,
        "images": 50,
        "images_per_s": 500.0,
        "step_images_per_s": 250.0,
        "ratio": 2.0,
        "ratio_5_95": [1.5, 2.5],
    }


# Attacks


@pytest.fixture(scope="module")
def attacked(tiny_run: Path, tiny_birds: Path) -> Any:
    """A trained network, and test images with their labels."""
    record, network = Run(tiny_run).load_network()
    samples = open_dataset(tiny_birds, seed=record.config.seed).parts["test"]
    pixels, labels = attacks.images_array(samples, image_spec(record.config))
    return network, attacks.from_bytes(torch.from_numpy(pixels)), torch.from_numpy(labels)


@pytest.mark.referee
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("head", ["attention", "full"])
def test_one_pass_fools_as_many_with_every_library(attacked: Any, head: str) -> None:
    batch, accuracy = attacks.answered_rightly(attacked[0], head, *attacked[1:], 8)
    assert 0 < accuracy <= 1
    result = attacks.compare_one_pass(attacked[0], head, "pgd3-8", batch, rounds=1)
    assert len(set(result["fooled"].values())) == 1
    assert result["fooled"]["ours"] > 0
    assert all(result[library]["pixels_that_differ"] < 0.01 for library in ("torchattacks", "foolbox"))


@pytest.mark.referee
@pytest.mark.usefixtures("one_thread")
def test_restarts_are_counted_and_survivors_alone_go_on(attacked: Any) -> None:
    """32/255 fools this network at once: who goes on with survivors needs one restart of three."""
    network, images, labels = attacked
    (images, labels), _ = attacks.answered_rightly(network, "attention", images, labels, 4)
    count = len(images)  # a processor of another kind trains a slightly different network
    assert count >= 2
    groups = [(images[:1], labels[:1]), (images[1:], labels[1:])]
    result = attacks.compare_restarts(network, "attention", "pgd10x3-32", groups)
    assert result["images"] == count
    assert {result[name]["fooled"] for name in result if name not in ("images", "groups")} == {1.0}
    assert result["torchattacks_repeated"]["images_forward"] == count * 3 * 11
    assert result["foolbox_repeat"]["images_forward"] >= count * 3 * 10
    assert result["ours"]["images_forward"] == count * 12
    assert result["torchattacks_multiattack"]["images_forward"] <= count * 12
    assert not network._forward_pre_hooks


def test_a_race_adds_up_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    now, took = [0.0], {"ours": iter([1.0, 2.0]), "theirs": iter([3.0, 4.0])}
    monkeypatch.setattr(attacks.time, "perf_counter", lambda: now[0])

    def contender(name: str, fooled: list[bool]) -> attacks.Contender:
        def run(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            now[0] += next(took[name])
            network(images)
            return torch.tensor(fooled)

        return run

    network: Any = torch.nn.Identity()
    group = (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))
    contenders = {"ours": contender("ours", [True, False]), "theirs": contender("theirs", [True, True])}
    assert attacks.race(contenders, network, [group, group]) == {
        "images": 4,
        "groups": 2,
        "ours": {"seconds": 3.0, "fooled": 0.5, "images_forward": 4},
        "theirs": {
            "seconds": 7.0,
            "fooled": 1.0,
            "images_forward": 4,
            "ratio": round(7 / 3, 4),
            "ratio_of_groups": [2.0, 3.0],
        },
    }


def test_an_image_fooled_in_any_restart_counts_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bright(torch.nn.Module):
        """Sees class 1 where an image is bright."""

        def forward(self, images: torch.Tensor, head: str) -> Any:
            light = images.mean(dim=(1, 2, 3))
            return SimpleNamespace(logits={head: torch.stack([0.5 - light, light - 0.5], 1)})

    def one_more_each_time(*_: Any, **__: Any) -> Any:
        calls = iter(range(2))

        def attack(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return images.index_fill(0, torch.tensor(next(calls)), 1.0)

        return attack

    monkeypatch.setattr(attacks, "_libraries", lambda: (SimpleNamespace(PGD=one_more_each_time), None))
    network: Any = Bright()
    repeated = attacks._contenders(network, "full", attacks.attack_named("pgd5x2-8"))["torchattacks_repeated"]
    assert repeated(torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.long)).tolist() == [True, True, False]


def test_images_that_are_wrong_before_any_attack_are_left_out(attacked: Any) -> None:
    network, images, labels = attacked
    (chosen, truth), accuracy = attacks.answered_rightly(network, "full", images, labels, 100)
    assert len(chosen) == round(accuracy * len(images))
    assert (network(chosen).logits["full"].argmax(1) == truth).all()
    wrong = (network(images).logits["full"].argmax(1) + 1) % 3
    with pytest.raises(TrainingError, match="no image right with its head 'full'"):
        attacks.answered_rightly(network, "full", images, wrong, 4)


@pytest.mark.usefixtures("one_thread")
def test_a_rehearsal_of_the_attack_benchmark() -> None:
    setup = attacks.Setup(
        species=2,
        image_size=32,
        images_train=20,
        images_test=8,
        epochs=2,
        one_pass="pgd2-8",
        one_pass_images=4,
        rounds=1,
        restarted=(("attention", "pgd2x2-8"), ("full", "pgd2x2-2")),
        groups=2,
        group_images=2,
    )
    result = attacks.measure_attacks(setup)
    assert set(result["attention"]) == {"accuracy", "pgd2-8", "pgd2x2-8"}
    assert set(result["full"]) == {"accuracy", "pgd2-8", "pgd2x2-2"}
    json.dumps(result)


# Pointing


def test_a_rehearsal_of_the_pointing_benchmark(
    tiny_run: Path,
    tiny_birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    (tmp_path / "copy-1").symlink_to(tiny_run)
    pointing.bench([tiny_run, tmp_path / "copy-1"], tiny_birds, "fgsm-8", 6, "rehearsal")
    rows = json.loads((tmp_path / "rehearsal.json").read_text())["rows"]
    assert [(row["row"], row["head"], row["attack"]) for row in rows] == [
        ("tiny", head, attack) for head in ("full", "attention") for attack in ("clean", "fgsm-8")
    ]
    assert all(row["seeds"] == [3, 3] for row in rows)
    assert "field marks" in capsys.readouterr().out
    monkeypatch.setattr(pointing, "STUDY", tmp_path / "none")
    with pytest.raises(OptionError, match="no finished runs in"):
        pointing.bench(None, tiny_birds, "fgsm-8", 6, "rehearsal")


def test_seeds_are_summed_up_without_losing_one() -> None:
    def result(seed: int, share: float, known: bool) -> dict[str, Any]:
        values = {"share": share, "interval": [0.0, 1.0], "images": 50}
        measures = dict.fromkeys(pointing.MEASURES, values) | {"prototypes": None}
        columns = {"right": values, "parts": measures, "field_marks": measures if known else None}
        return {"seed": seed, "heads": {"attention": {"clean": columns}}}

    (row,) = pointing.summed_up("ap", [result(0, 0.5, False), result(1, 0.9, False), result(2, 0.7, False)])
    assert row["field_marks"] is row["parts"]["prototypes"] is None
    mass = row["parts"]["attention_mass"]
    assert (row["seeds"], mass["mean"], mass["by_seed"]) == ([0, 1, 2], 0.7, [0.5, 0.9, 0.7])
    assert mass["interval"] == [0.5, 0.9], "wider than Wilson's for 35 of 50"
    (row,) = pointing.summed_up("ap", [result(0, 0.7, True)])
    assert row["field_marks"]["pointing"]["interval"] == [0.5625, 0.809]


# Detectors


def test_the_loop_over_classes_and_our_distances_agree() -> None:
    case = mahalanobis.measure_mahalanobis(((4, 16),), rounds=1)["K4 D16"]
    assert set(case["fit"]) >= {"ours", "loop"}
    assert max(case["largest_relative_difference"].values()) < 1e-3
    json.dumps(case)


@pytest.mark.usefixtures("one_thread")
def test_a_rehearsal_of_the_comparison_of_detectors(tiny_run: Path) -> None:
    setup = rivals.Setup(attacks=("fgsm-8", "pgd2-8"), validation=40, test=12, resamples=20)
    result = rivals.measure_run(tiny_run, None, setup)
    for head in ("full", "attention"):
        methods = result[head]["methods"]
        assert len(methods) == 12
        for areas in (kind["all"] for method in methods.values() for kind in method.values()):
            assert set(areas) == {"fgsm-8", "pgd2-8", "mean"}
            assert all(0 <= low <= high <= 1 for _, low, high in areas.values())
    json.dumps(result)
    shorter = rivals.measure_run(tiny_run, None, replace(setup, preprocessing=False))
    for head in ("full", "attention"):
        left = {name: found for name, found in result[head]["methods"].items() if name != rivals.PREPROCESSED}
        assert shorter[head]["methods"] == left


def test_a_run_without_a_head_is_summed_up_beside_those_that_have_it() -> None:
    def of(area: float) -> dict[str, Any]:
        return {"methods": {"ours": {"left_out_attack": {"fooled": {"mean": [area, 0.0, 1.0]}}}}}

    runs = {"ap-0": {"attention": of(0.9)}, "maxsep-0": {"attention": of(0.8), "full": of(0.7)}}
    assert rivals.summed_up(runs) == {
        "full": {"ours": {"maxsep-0": 0.7}},
        "attention": {"ours": {"ap-0": 0.9, "maxsep-0": 0.8}},
    }


def test_feature_squeezing_against_loops(tiny_run: Path, tiny_birds: Path) -> None:
    record, network = Run(tiny_run).load_network()
    samples = open_dataset(tiny_birds, seed=record.dataset.seed).parts["test"][:3]
    images, _ = images_array(samples, image_spec(record.config))

    def answer(pixels: Any) -> Any:
        with torch.no_grad():
            return network(pixels[None], "full").logits["full"].softmax(1)[0].numpy()

    for image, found in zip(images, preprocessing.squeeze(network, "full", images), strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
        median = torch.empty_like(pixels)
        for y in range(pixels.shape[1]):
            for x in range(pixels.shape[2]):
                rows, columns = [abs(y - 1), y], [abs(x - 1), x]  # the edge is mirrored
                four = pixels[:, rows][:, :, columns].flatten(1).sort(dim=1).values
                median[:, y, x] = (four[:, 1] + four[:, 2]) / 2
        coarse = (pixels * 31).round() / 31
        expected = max(abs(answer(each) - answer(pixels)).sum() for each in (coarse, median))
        assert found[0] == pytest.approx(expected, abs=1e-4)


# Detection of the study's systems


def report_of(seed: int, auroc: float | None, missed: int) -> dict[str, Any]:
    """What summing up reads of a report, with one attack."""

    def found(count: int) -> dict[str, Any]:
        return {"count": count, "of": 50}

    areas = {"auroc": auroc}
    head = {
        "clean": {
            "right": found(49),
            "flagged": found(2),
            "flagged_of_right": found(1),
            "flagged_of_wrong": {"count": 1, "of": 1},
            "mistakes": {"auroc": 0.6 + 0.1 * seed, "count": 1},
        },
        "detection": {"pgd10-8": areas, "noise": {"auroc": None}},
        "left_out": {"pgd10-8": {"left_out": areas, "family_left_out": areas, "attack_free": {"auroc": None}}},
        "system": {name: [{"alpha": 0.05, "missed": found(missed)}] for name in ("clean", "pgd10-8")},
        "adaptive": {"success": {"any": {"count": 30, "of": 40}}},
        "gates": [{"name": "a gate", "state": "broken" if seed else "holds"}],
    }
    device = {"device": "cpu"}
    return {"run": {"config": {"seed": seed}}, "measured_with": device, "heads": {"attention": head}}


def test_detection_is_summed_up_over_seeds_and_told_in_tables(tmp_path: Path) -> None:
    for seed, auroc, missed in ((0, 0.9, 5), (1, None, 10), (2, 0.7, 0)):
        (tmp_path / f"ap-small-{seed}").mkdir()
        (tmp_path / f"ap-small-{seed}" / "report.json").write_text(json.dumps(report_of(seed, auroc, missed)))
    result = detection.summed_up(tmp_path, "small", 3)
    (row,) = result["rows"]
    assert (row["label"], row["seeds"], row["broken_gates"]) == ("AP", [0, 1, 2], ["a gate"])
    assert row["auroc"]["pgd10-8"] == {"mean": 0.8, "by_seed": [0.9, 0.7]}
    assert row["attack_free"]["pgd10-8"] is None
    assert row["missed"]["pgd10-8"] == {"mean": pytest.approx(0.1), "by_seed": [0.1, 0.2, 0.0], "of": 50}
    assert row["adaptive"]["mean"] == 0.75
    text = "\n".join(detection.tables(result))
    assert "| AP | 0.800 (0.70 to 0.90) | 0.800 |" in text
    assert "| AP | – | – |" in text
    assert "75.0 (60 to 86)" in text
    assert "10.0 (0 to 21)" in text
    assert "each attack's family left out of the lessons, trained on clean images; 3 seeds, least to most" in text
    # Of right, of wrong, and these told apart.
    assert "| 2.0 (0 to 10) | 100.0 (21 to 100) | 0.700 (0.60 to 0.80) |" in text
    for seed in (1, 2):
        (tmp_path / f"ap-small-{seed}" / "report.json").unlink()
    alone = "\n".join(detection.tables(detection.summed_up(tmp_path, "small", 3)))
    assert "fool the network, trained on clean images; 1 seed\n" in alone
    assert "| AP | 0.900 | 0.900 |" in alone


def test_turns_are_taken_and_ratios_are_to_the_first() -> None:
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in "abc"}
    found = record.side_by_side(calls, rounds=4, warmup=1)
    assert order == [*"abc", *"abc", *"cab", *"bca", *"abc"]
    assert (found["rounds"], found["a"]["ratio"]) == (4, 1.0)
    slow = record.side_by_side({"slow": partial(time.sleep, 0.02), "fast": lambda: None}, rounds=3)
    assert slow["fast"]["ratio"] > 1
    assert slow["slow"]["ms"]["p50"] >= 20


def test_floating_point_operations_by_hand() -> None:
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False))
    images = np.zeros((3, 2, 2, 3), np.float32)
    assert runtime.flop_of(layer, images) == 2 * 3 * 12 * 5


def test_a_rehearsal_of_the_runtime_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "compile", lambda module, dynamic: module
    )  # a minute of a compiler, and not ours to test
    monkeypatch.setattr(runtime, "SIDE", 64)
    setup = runtime.Setup(backbones=(("small", 32),), batches=(2,), classes=(4,), seconds=0.05, rounds=2)
    result = runtime.measure_runtime(setup)
    names = ["torch eager", "torch eager, channels last", "torch.compile", "onnxruntime fp32", "onnxruntime int8"]
    found = result["small"]["batch2"]
    assert [name for name in found if name != "rounds"] == names
    for name in names:
        rate = result["small"]["gflop_an_image"] * 2 / found[name]["ms"]["p50"] * 1e3
        assert found[name]["gflops"] == pytest.approx(rate, rel=0.05)
    assert set(result["small"]["heads"]["batch2"]) == {"rounds", "full", "attention"}
    assert set(result["classes"]) == {"4"}


def test_the_scoring_table_stands_between_its_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = scoring.MANY
    rates = {"decode": 900.0, "inference": 300.0, "shards": 210.0, "table": 205.0, "one worker": 100.0, many: 190.0}
    result = {
        "cores": 2,
        "network": "full",
        "images_per_second": rates,
        "limit": 225.0,
        "share_of_limit": {"shards": 0.93, "table": 0.91, many: 0.84},
        "all_workers_against_one": 1.9,
        "rows": {"1000000": {"seconds": {"list": 20.0, "resume": 19.0, "nothing new": 18.0}, "peak_mb": 400.0}},
    }
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n\n<!-- begin: scoring -->\nold\n<!-- end: scoring -->\n\nafter\n")
    monkeypatch.setattr(scoring, "PAGE", page)
    kept = tmp_path / "scoring.json"
    kept.write_text(json.dumps(result))
    scoring.write_page(kept)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| `--out`, of the limit | 0.93 (210) | 0.90 |" in text
    assert "| 1.90x | 1.8x |" in text
    assert "20.0 s; 19.0 s; 18.0 s; 400 MB" in text


def test_rows_are_measured_in_a_process_of_their_own(toy_bundle: Any, tmp_path: Path) -> None:
    found = scoring._alone(toy_bundle.path, tmp_path / "rows", 70)
    assert set(found["seconds"]) == {"list", "score", "resume", "nothing new"}
    assert found["peak_mb"] >= found["before_mb"] > 0


def test_the_review_console_is_measured_beside_a_file_server(toy_bundle: Any) -> None:
    found = review.measure_review(toy_bundle.path, items=201)
    assert set(found["answers"]) == {
        "rounds", "file_server", "first_page", "later_rows", "groups", "figures", "one_image", "thumbnail",
    }  # fmt: skip
    assert found["first_page_bytes"] > 50_000
    assert set(found["decision_ms"]) == {"p50", "p90", "p95", "p99"}


# What needs a GPU


@pytest.mark.parametrize(
    "bench",
    [
        lambda given: calibrate.bench(given, given, name="calibrate/x"),
        lambda given: pointing.bench([given], name="a/x"),
        lambda given: rivals.bench([given], name="a/x"),
        lambda given: gpu.bench([given], name="a/x", rehearse=True),
        lambda given: sr5.bench([given], name="a/x"),
    ],
)
def test_a_wrong_name_of_a_result_is_told_before_anything_is_measured(
    bench: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="is no name"):
        bench(tmp_path)


def test_detectors_are_compared_on_finished_runs_that_names_tell_apart(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="two of the runs have the same name"):
        rivals.bench([tiny_run, tmp_path / tiny_run.name])
    with pytest.raises(OptionError, match="is no finished run"):
        rivals.bench([tiny_run, tmp_path])


def test_no_result_holds_what_is_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.save("x", {"area": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_share_over_seeds_has_the_interval_of_the_fewest_images() -> None:
    counted = detection._counted([{"count": 0, "of": 0}, {"count": 1, "of": 3}, {"count": 2, "of": 6}])
    assert (counted["mean"], counted["of"]) == (pytest.approx(1 / 3), 3)
    assert detection._share(counted) == "33.3 (6 to 79)"
    assert (
        detection._share(detection._counted([])) == detection._share(detection._counted([{"count": 0, "of": 0}])) == "–"
    )


def test_without_a_gpu_only_a_rehearsal_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"PyTorch sees no GPU here.*--rehearse"):
        gpu.bench([tmp_path], "none", 1.0, tmp_path / "out", "x", False, False)
    with pytest.raises(OptionError, match=r"there is no part 'engine'.*tables, adaptive, engines, runtimes"):
        gpu.bench([tmp_path], "none", 1.0, tmp_path / "out", "x", False, True, ["engine"])
    with pytest.raises(OptionError, match="unknown preset 'ap-vgg61'"):
        gpu.bench([tmp_path], "none", 1.0, tmp_path / "out", "x", False, True, None, None, "vgg61")
    assert not (tmp_path / "out").exists()


def test_everything_that_a_gpu_is_needed_for_is_rehearsed_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is had for minutes: whatever of this fails is found there, too late."""
    fieldmark("data", "make", tmp_path / "birds", "--species", "5", "--images-train", "30", "--images-test", "6")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "MAIN", ("maxsep",))
    monkeypatch.setattr(gpu, "put", lambda *given: pytest.fail("a rehearsal stands on a page"))
    gpu.bench([tmp_path / "birds"], "none", 10.0, tmp_path / "out", "rehearsed", True, True)
    assert not list(tmp_path.glob("*.json"))
    parts = json.loads((tmp_path / "out" / "rehearsed.json").read_text())["parts"]
    untrained = [f"SR@5 of birds-ap{fast}: it was not trained" for fast in ("-fast", "")]
    nothing: dict[str, list[str]] = {name: [] for name in gpu.PARTS}
    assert {name: part["stopped"] for name, part in parts.items()} == nothing | {"adaptive": untrained}
    assert [row["run"] for row in parts["tables"]["rows"]] == ["birds-maxsep"] * 2 + ["birds-maxsep-fast"] * 2
    assert {(row["row"], row["head"]) for row in parts["adaptive"]["rows"]} == {
        (f"birds-maxsep{fast}", head) for fast in ("", "-fast") for head in ("full", "attention")
    }
    assert parts["engines"]["precisions"]["fp32"]
    assert {"batch1", "batch4"} <= parts["runtimes"].keys()
    assert list(parts["runtimes"]["batch4"]) == ["rounds", "torch cpu", "torch cpu bf16", "onnxruntime CPU fp32"]

    # A part alone is measured beside what was found of the others.
    parts["runtimes"] = {}
    result = tmp_path / "out" / "rehearsed.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"parts": parts}))
    gpu.bench([tmp_path / "birds"], "none", 5.0, tmp_path / "out", "rehearsed", True, True, ["runtimes"])
    again = json.loads((tmp_path / "out" / "rehearsed.json").read_text())["parts"]
    assert {name: again[name] for name in ("tables", "adaptive", "engines")} == {
        name: parts[name] for name in ("tables", "adaptive", "engines")
    }
    assert (again["runtimes"]["minutes"], again["tables"]["minutes"]) == (5.0, 10.0)
    assert {"batch1", "batch4"} <= again["runtimes"].keys()
    with pytest.raises(OptionError, match="is of backbone 'small', not 'vgg16-96'"):
        gpu.bench(
            [tmp_path / "birds"], "none", 5.0, tmp_path / "out", "rehearsed", True, True, ["runtimes"], None, "vgg16-96"
        )

    # Whatever of it fails is said, and the others go on.
    (tmp_path / "out" / "bundle-fp32" / "full" / "model.onnx").write_bytes(b"x")
    (tmp_path / "out" / "birds-maxsep-fast" / "model.pt").unlink()
    gpu.bench([tmp_path / "birds"], "none", 5.0, tmp_path / "out", "b", True, True, ["runtimes", "adaptive"])
    broken = json.loads((tmp_path / "out" / "b.json").read_text())["parts"]
    assert broken["adaptive"]["stopped"] == ["SR@5 of birds-maxsep-fast: it was not trained", *untrained]
    assert [each.partition(":")[0] for each in broken["runtimes"]["stopped"]] == ["batch 1", "batch 4"]


def test_a_part_stops_what_takes_too_long_says_what_failed_and_goes_on() -> None:
    part = gpu.Part(end=time.monotonic() + 60)
    assert "Beautiful is better than ugly." in str(part.run("zen", "this"))
    assert part.run("nonsense", "fieldmark", "nonsense") is None
    part.end = time.monotonic() + 0.3
    assert part.run("a server", "http.server", "0") is None
    part.end = time.monotonic() - 1
    assert part.run("too late", "this") is None
    assert part.stopped == [
        "nonsense: ended with exit code 2",
        "a server: stopped, its part's time was over",
        "too late: no time left",
    ]


def test_whoever_stops_a_part_stops_all_that_runs_side_by_side_in_it() -> None:
    part = gpu.Part(end=time.monotonic() + 60, at_once=2)

    def stop() -> None:
        while not part.running:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.side_by_side([lambda: part.run("a server", "http.server", "0"), stop])
    assert not part.running
    assert part.stopped[0].startswith("a server: ended with exit code")


def test_what_is_measured_on_a_gpu_is_told_in_tables() -> None:
    told = {
        "right": {"full": {"clean": "1110", "pgd10-8": "0000"}, "attention": {"clean": "1100", "pgd10-8": "1000"}},
        "not_measured": [],
    }
    rows = gpu._rows("cub-maxsep", Path("CUB"), told)
    times = {"ms": {"p50": 2.0}, "ratio": 1.5}
    success = {"row": "cub-ap", "head": "attention", "images": 4, "success": {"any": {"share": 0.25}}}
    parts = {
        "tables": {"minutes": 12.0, "rows": rows, "stopped": ["cars-ap: no time left"]},
        "adaptive": {"minutes": 12.0, "steps": 1000, "rows": [success]},
        "runtimes": {"minutes": 2.0, "batch8": {"rounds": 5, "torch cuda": times}, "seconds": 3.0, "stopped": []},
    }
    text = gpu.page({"device": "a GPU", "backbone": "vgg16", "parts": parts})
    for line in (
        "a GPU, `vgg16`; minutes of the call that measured each: tables 12, adaptive 12, runtimes 2.",
        "| cub-maxsep | full | 4 | 75.0 | 0.0 |",
        "| cub-maxsep | attention | 4 | 50.0 | 25.0 |",
        "### SR@5 at 1,000 steps, in percent",
        "| cub-ap | attention | 4 | 25.0 |",
        "| 8 | 2.00 (1.50x) |",
        "- cars-ap: no time left",
    ):
        assert line in text


def test_the_shares_of_the_time_are_all_of_it() -> None:
    assert sum(gpu.SHARES.values()) == pytest.approx(1)
    assert list(gpu.SHARES) == list(gpu.PARTS)
