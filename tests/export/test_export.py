"""From a run to a bundle: graphs that equal PyTorch and the numpy detector, and a bundle that is whole."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rich.console import Console

from bundle import Bundle, tensors
from bundle.errors import CheckpointError, DetectorError, ExportError, OptionError
from bundle.image import ImageSpec
from calibration.recalibration import recalibrate
from detector.model import Detector
from export.bundling import _prototype_files, better_head, export_run
from export.graph import GraphSession, to_onnx
from export.parity import prove_parity
from export.plan import ExportSettings
from export.served import ServedNetwork
from robustness.fitting import DetectorSettings, features_of
from training.data import open_dataset
from training.data.loading import images_array
from training.pixels import from_bytes
from training.run import PrototypeSource, Run

SPEC = ImageSpec(height=32, width=32)
SETTINGS = ExportSettings(detector=DetectorSettings(attacks=("fgsm-8",), alpha=0.1))


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return export_run(tiny_run, out, SETTINGS, Console(quiet=True))


@pytest.fixture(scope="module")
def parts(tiny_birds, tiny_config):
    dataset = open_dataset(tiny_birds, seed=tiny_config.seed)
    return {name: images_array(samples, SPEC) for name, samples in dataset.parts.items()}


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_the_graph_equals_the_network_and_the_numpy_detector(exported, tiny_run, parts, served):
    _, network = Run(tiny_run).load_network()
    detector = Detector.load(exported.file(f"detector/{served}.npz"))
    session = GraphSession(onnx.load(exported.model(served)))
    images = parts["test"][0]
    answers = session.run(images)
    features, predicted = features_of(network, served, images)
    np.testing.assert_array_equal(answers[tensors.PROBABILITIES].argmax(1), predicted)
    np.testing.assert_allclose(answers[tensors.PROBABILITIES].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        answers[tensors.LAYER_SCORES], detector.layer_scores(features, predicted), rtol=2e-3, atol=1e-2
    )
    np.testing.assert_allclose(
        answers[tensors.INSTANCE_SCORE], detector.score(features, predicted), rtol=2e-3, atol=5e-3
    )
    np.testing.assert_array_equal(
        answers[tensors.P_VALUE], detector.p_values(answers[tensors.INSTANCE_SCORE], predicted)
    )
    np.testing.assert_array_equal(answers[tensors.IS_ADVERSARIAL], answers[tensors.P_VALUE] <= np.float32(0.1))


@pytest.mark.parametrize("served", tensors.NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_an_image_gets_the_same_answer_in_any_batch(exported, parts, served, batch):
    session = GraphSession(onnx.load(exported.model(served)))
    images = np.resize(parts["test"][0], (batch, 32, 32, 3))
    alone = session.run(images[-1:])
    together = session.run(images)
    for name in tensors.OUTPUTS[served]:
        np.testing.assert_allclose(together[name][-1:], alone[name], rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_calibration_scores_are_the_graphs_own(exported, parts, served):
    """The calibration images' p-values are exactly uniform on {1, ..., n} + 1 over n + 1, ties aside."""
    session = GraphSession(onnx.load(exported.model(served)))
    images = parts["calibration"][0]
    values = np.sort(
        np.concatenate(
            [session.run(images[start : start + 64])[tensors.P_VALUE] for start in range(0, len(images), 64)]
        )
    )
    n = len(images)
    np.testing.assert_allclose(values, (np.arange(n) + 2) / (n + 1), atol=1e-6)


@pytest.fixture(scope="module")
def even_run(tiny_run, parts, tmp_path_factory):
    """A run whose heads answer every class about as often, so that each has calibration images of its own: the last
    layer of each reads in three directions away from the mean of what it sees.
    """
    run = Run(shutil.copytree(tiny_run, tmp_path_factory.mktemp("even") / "run"))
    _, network = run.load_network()
    pixels = from_bytes(torch.from_numpy(parts["calibration"][0]))
    angles = torch.arange(3) * 2 * torch.pi / 3
    corners = torch.stack([angles.cos(), angles.sin()], 1)
    with torch.no_grad():
        network.attention_head.specific.bias.zero_()
        for weight, seen in (
            (network.attention_head.specific.weight, lambda forward: forward.embedding),
            (network.prototype_head.classifier.weight, lambda forward: forward.similarities),
        ):
            found = seen(network(pixels))
            mean = found.mean(0) / found.mean(0).norm()
            away = found - found.mean(0)
            away -= (away @ mean)[:, None] * mean
            axes = torch.linalg.svd(away, full_matrices=False).Vh[:2]
            weight.copy_((corners @ (axes / (away @ axes.T).std(0)[:, None])).view_as(weight))
    run.write_state("model.pt", network.state_dict())
    return run.path


@pytest.fixture(scope="module")
def per_class(even_run, tmp_path_factory):
    """A run without attacks, and with p-values per predicted class."""
    out = tmp_path_factory.mktemp("per-class") / "tiny"
    settings = ExportSettings(detector=DetectorSettings(attacks=(), alpha=0.25, calibration="per-class"))
    return export_run(even_run, out, settings, Console(quiet=True))


@pytest.mark.parametrize("served", tensors.NETWORKS)
def test_p_values_per_class_compare_with_the_same_answer_alone(per_class, parts, served):
    session, (images, _) = GraphSession(onnx.load(per_class.model(served))), parts["calibration"]
    known = session.run(images)
    answers = session.run(parts["test"][0])
    own, asked = (found[tensors.PROBABILITIES].argmax(1) for found in (known, answers))
    for score, label, value in zip(answers[tensors.INSTANCE_SCORE], asked, answers[tensors.P_VALUE], strict=True):
        same = known[tensors.INSTANCE_SCORE][own == label]
        assert value == pytest.approx((1 + (same >= score).sum()) / (len(same) + 1), abs=1e-6)
    info = per_class.manifest.networks[served].detector
    assert (info.calibration, info.calibration_n) == ("per-class", np.bincount(own, minlength=3).min())
    detector = Detector.load(per_class.file(f"detector/{served}.npz"))
    np.testing.assert_array_equal(answers[tensors.P_VALUE], detector.p_values(answers[tensors.INSTANCE_SCORE], asked))
    assert per_class.manifest.training["detector"]["attacks"] == []


def test_recalibrated_p_values_per_class_compare_with_the_same_answer_alone(per_class, parts, tmp_path):
    """On the training part, of which each image is one that the graph has scored before."""
    images = parts["train"][0]
    paths = [tmp_path / f"{index:04d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    made = recalibrate(per_class, paths, tmp_path / "made", source="x").bundle
    for served, info in made.manifest.networks.items():
        session, detector = GraphSession(onnx.load(made.model(served))), Detector.load(made.file(info.detector.file))
        answers = session.run(parts["test"][0])
        asked = answers[tensors.PROBABILITIES].argmax(1)
        expected = detector.p_values(answers[tensors.INSTANCE_SCORE], asked)
        np.testing.assert_array_equal(answers[tensors.P_VALUE], expected)
        counts = np.bincount(detector.calibration_classes, minlength=3)
        assert info.detector.calibration_n == counts.min() < len(paths) == counts.sum()
    with pytest.raises(DetectorError, match="calibration images are classified as"):
        recalibrate(per_class, paths[:4], tmp_path / "few", source="x")


def test_a_marginal_graph_knows_nothing_of_classes(exported):
    for served in tensors.NETWORKS:
        names = {initializer.name for initializer in onnx.load(exported.model(served)).graph.initializer}
        assert "calibration" in names
        assert "calibration_classes" not in names
        info = exported.manifest.networks[served].detector
        assert (info.calibration, info.calibration_n) == ("marginal", info.calibration_n)


def test_parity_notices_another_rule_of_classes(per_class, even_run, parts):
    _, network = Run(even_run).load_network()
    detector = Detector.load(per_class.file("detector/full.npz"))
    session = GraphSession(onnx.load(per_class.model("full")))
    prove_parity(ServedNetwork(network, "full", detector), session, parts["test"][0], exact=True)
    other = replace(detector, calibration_classes=(detector.calibration_classes + 1) % 3)
    with pytest.raises(ExportError, match=r"full\.p_value at batch"):
        prove_parity(ServedNetwork(network, "full", other), session, parts["test"][0], exact=True)


@pytest.mark.parametrize(
    ("attacks", "error", "sentence"),
    [
        (("noise", "fgsm-8"), OptionError, r"'noise' is no attack .*--attacks none"),
        (("clean",), OptionError, r"'clean' is no attack .*--attacks none"),
        (("fgsm-0",), DetectorError, r"the attacks fgsm-0 change no image.*--attacks none"),
    ],
)
def test_attacks_that_teach_nothing_name_the_way_without(tiny_run, tmp_path, attacks, error, sentence):
    with pytest.raises(error, match=sentence):
        settings = ExportSettings(detector=DetectorSettings(attacks=attacks))
        export_run(tiny_run, tmp_path / "o", settings, Console(quiet=True))
    assert not (tmp_path / "o").exists()


def test_the_bundle_is_whole_and_tells_where_it_came_from(exported):
    manifest = Bundle.open(exported.path).manifest
    assert set(manifest.networks) == set(tensors.NETWORKS)
    assert manifest.networks["full"].detector.columns[-1] == "focus/overall"
    assert "focus/overall" not in manifest.networks["attention"].detector.columns
    assert set(manifest.networks["full"].parity.outputs) == set(tensors.OUTPUTS["full"])
    assert (manifest.networks["full"].precision, manifest.networks["full"].quality) == ("fp32", {})
    assert manifest.training["preset"] == "small"
    assert manifest.training["detector"]["attacks"] == ["fgsm-8"]
    assert len(manifest.prototypes) == 6
    for prototype in manifest.prototypes:
        assert exported.file(prototype.image).is_file()
        left, top, right, bottom = prototype.box
        assert 0 <= left < right <= 32
        assert 0 <= top < bottom <= 32
        assert prototype.box == box(prototype.row, prototype.column, width=32, height=32)
    for name in tensors.NETWORKS:
        graph = onnx.load(exported.model(name)).graph
        assert [output.name for output in graph.output] == list(tensors.OUTPUTS[name])
        assert [item.name for item in graph.input] == [tensors.IMAGE]
    weights = {initializer.name for initializer in onnx.load(exported.model("attention")).graph.initializer}
    assert not any(name.startswith("prototype_head") for name in weights)


def box(row, column, *, width, height, stride=8):
    """The cell and its eight neighbours in pixels, as far as they lie in the image: left, top, right, bottom."""
    left, top = column * stride - stride, row * stride - stride
    return max(left, 0), max(top, 0), min(left + 3 * stride, width), min(top + 3 * stride, height)


def test_prototype_boxes_reach_one_cell_around_the_cell_and_stay_in_the_image(tiny_run, tiny_birds, tmp_path):
    record, network = Run(tiny_run).load_network()
    samples = open_dataset(tiny_birds, seed=record.dataset.seed).parts["train"]
    expected = {  # (row, column) on a map of 8 by 12 cells: left, top, right, bottom
        (0, 0): (0, 0, 16, 16),
        (0, 11): (80, 0, 96, 16),
        (7, 0): (0, 48, 16, 64),
        (7, 11): (80, 48, 96, 64),
        (4, 2): (8, 24, 32, 48),
        (3, 9): (64, 16, 88, 40),
    }
    sources = [PrototypeSource(label=0, source=samples[0].key, row=row, column=column) for row, column in expected]
    spec = ImageSpec(height=64, width=96)
    infos = _prototype_files(sources, {samples[0].key: samples[0]}, spec, network, tmp_path)
    assert {(info.row, info.column): info.box for info in infos} == expected
    assert {info.image for info in infos} == {"prototypes/00000.jpg"}  # one image is stored once
    with Image.open(tmp_path / "prototypes" / "00000.jpg") as image:
        assert image.size == (96, 64)


def test_parity_notices_a_graph_that_computes_something_else(exported, tiny_run, parts):
    _, network = Run(tiny_run).load_network()
    detector = Detector.load(exported.file("detector/full.npz"))
    session = GraphSession(onnx.load(exported.model("full")))
    images = parts["validation"][0]
    found = prove_parity(ServedNetwork(network, "full", detector), session, images, exact=True)
    assert found.outputs["probabilities"].max_abs < 1e-4
    assert (found.images, found.argmax_agreement, found.flag_agreement) == (64, 1.0, 1.0)
    with torch.no_grad():
        network.attention_head.specific.bias.add_(0.5)
    with pytest.raises(ExportError, match=r"full\.\w+ at batch 1: the graph differs"):
        prove_parity(ServedNetwork(network, "full", detector), session, images, exact=True)


class Named:
    """The graph's own answers, but for the prototypes it names."""

    def __init__(self, session, change):
        self.session, self.change, self.runtime = session, change, session.runtime

    def run(self, images):
        answers = self.session.run(images)
        indices = answers[tensors.PROTOTYPE_INDICES].copy()
        indices[-1] = self.change(indices[-1])
        return {**answers, tensors.PROTOTYPE_INDICES: indices}


def test_prototypes_of_equal_similarity_may_stand_for_one_another_and_no_others(exported, tiny_run, parts):
    """Projection often makes prototypes equal; which of them is named, even in the last place shown, is rounding."""
    _, network = Run(tiny_run).load_network()
    detector, images = Detector.load(exported.file("detector/full.npz")), parts["validation"][0][:2]
    module = ServedNetwork(network, "full", detector)
    session = GraphSession(onnx.load(exported.model("full")))
    shown = session.run(images)[tensors.PROTOTYPE_INDICES][0]
    (hidden,) = set(range(6)) - set(shown.tolist())

    def says(change):
        return prove_parity(module, Named(session, change), images[:1], exact=True).outputs["prototype_indices"].max_abs

    assert says(lambda names: names) == 0
    with torch.no_grad():
        network.prototype_head.prototypes[hidden] = network.prototype_head.prototypes[int(shown[-1])]
    session = GraphSession(to_onnx(module, SPEC))
    twin = {hidden: int(shown[-1]), int(shown[-1]): hidden}
    assert says(lambda names: [twin.get(name, name) for name in names.tolist()]) < 1e-3
    for forged in (
        lambda names: np.roll(names, 1),  # all of them, in an order that is not theirs
        lambda names: [*names[:-1], names[0]],  # one of them twice
        lambda names: [*names[:-1], 6],  # one that does not exist
        lambda names: [*names[:-1], -1],
    ):
        with pytest.raises(ExportError, match=r"full\.prototype_indices at batch 1"):
            says(forged)


def test_too_few_calibration_images_for_alpha_say_how_many_are_needed(tiny_run, tmp_path):
    settings = ExportSettings(detector=DetectorSettings(attacks=("fgsm-8",), alpha=0.001))
    with pytest.raises(DetectorError, match="At least 999"):
        export_run(tiny_run, tmp_path / "out", settings, Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_unknown_attacks_and_other_data_are_refused_before_any_work(tiny_run, tmp_path):
    with pytest.raises(OptionError, match="unknown attack 'cw'"):
        settings = ExportSettings(detector=DetectorSettings(attacks=("cw",)))
        export_run(tiny_run, tmp_path / "o", settings, Console(quiet=True))
    (tmp_path / "a").mkdir()
    from training.data.cub_writer import BirdSet, write_birds

    write_birds(tmp_path / "other", BirdSet(species=3, size=32, images_train=12, images_test=4, seed=9), workers=1)
    with pytest.raises(CheckpointError, match="not the data this run was trained on"):
        export_run(tiny_run, tmp_path / "o", SETTINGS, Console(quiet=True), data=tmp_path / "other")


def test_the_verb_refuses_an_unfinished_run_and_an_existing_bundle(exported, tiny_run, tmp_path):
    def fieldmark(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fieldmark", *map(str, arguments)], capture_output=True, text=True, check=False
        )

    done = fieldmark("export", tmp_path, "--out", tmp_path / "bundle")
    assert done.returncode != 0
    assert "no training run" in done.stderr
    done = fieldmark("export", tiny_run, "--out", exported.path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    done = fieldmark("export", tiny_run, "--out", tmp_path / "bundle", "--attacks", " , ")
    assert done.returncode == 2
    assert "--attacks names nothing" in done.stderr
    done = fieldmark("export", tiny_run, "--out", tmp_path / "bundle", "--attacks", "fgsm-8,none")
    assert done.returncode == 2
    assert "--attacks names 'none' beside 'fgsm-8'" in done.stderr
    done = fieldmark("export", tiny_run, "--out", tmp_path / "bundle", "--calibration", "classwise")
    assert done.returncode == 2
    assert "unknown calibration 'classwise'. Choose from: marginal, per-class." in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    done = fieldmark("export", tiny_run, "--out", tmp_path / "mine", "--force")
    assert done.returncode == 2
    assert "holds other things" in done.stderr
    assert "equal to PyTorch" not in done.stdout  # said before the work, not after it
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    done = fieldmark("export", tiny_run, "--out", tmp_path / "bundle", "--alpha", "1.5")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    shown = fieldmark("bundle", "show", exported.path, "--json")
    assert json.loads(shown.stdout)["bundle_id"] == exported.bundle_id


def test_the_better_head_on_validation_answers_by_default():
    assert better_head({"full": 0.90, "attention": 0.90}, 100) is None
    assert better_head({"full": 0.90, "attention": 0.91}, 100) is None, "one image is nothing"
    assert better_head({"full": 0.90, "attention": 0.92}, 100) == "attention"
    assert better_head({"full": 0.92, "attention": 0.90}, 100) is None
    assert better_head({"attention": 0.5}, 100) is None


@pytest.mark.parametrize(("attention", "default"), [(1.0, "attention"), (0.0, "full")])
def test_a_bundle_says_which_head_was_better(tiny_run, tmp_path, attention, default):
    run = Run(shutil.copytree(tiny_run, tmp_path / "run"))
    record = run.read_record()
    results = record.results | {"validation": {"full": 0.5, "attention": attention}}
    run.write_record(replace(record, results=results))
    bundle = export_run(run.path, tmp_path / "bundle", SETTINGS, Console(quiet=True))
    assert bundle.manifest.main_network == default
    assert Bundle.open(bundle.path).manifest.main_network == default
    assert ("default_network" in bundle.manifest.training) == (default == "attention")
