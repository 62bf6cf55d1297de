"""`fieldmark calibrate`: p-values hold for another camera, the rest stays, and what cannot work is said."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fieldmark
from benchmarks import calibrate
from bundle import Bundle, tensors
from bundle.errors import BundleUnsupported, DatasetError, DetectorError, DiskFull, OptionError
from bundle.false_alarms import false_alarms, resolution
from bundle.folder import sign_bundle
from calibration.recalibration import CALIBRATION, recalibrate
from detector.conformal import check_calibration_size, p_values
from detector.model import Detector
from robustness.metrics import flagged_interval
from serving.client.local import LocalInference

from .conftest import ALPHA, CALIBRATED


@pytest.fixture(scope="module")
def made(bundle: Bundle, other_camera: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("made") / "bundle"
    return recalibrate(bundle, iter(other_camera["calibrate"]), out, source="camera").bundle


def answers(bundle: Bundle, paths: list[Path], network: str) -> dict[str, np.ndarray]:
    images = np.stack([bundle.manifest.image.read(path) for path in paths])
    return dict(LocalInference(bundle).infer(images, network))


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_another_camera_is_flagged_too_often_before_and_as_promised_after(bundle, made, other_camera, network):
    before, after = (answers(each, other_camera["test"], network) for each in (bundle, made))
    calibrated = bundle.manifest.networks[network].detector.calibration_n
    tested = len(other_camera["test"])
    assert before[tensors.IS_ADVERSARIAL].mean() > flagged_interval([(tested, calibrated)], ALPHA)[1]
    low, high = flagged_interval([(tested, CALIBRATED)], ALPHA)
    assert low <= after[tensors.IS_ADVERSARIAL].mean() <= high


@pytest.mark.parametrize("network", tensors.NETWORKS)
def test_other_outputs_are_the_same_bits_and_p_values_are_numpys(bundle, made, other_camera, network):
    before, after = (answers(each, other_camera["test"], network) for each in (bundle, made))
    for name in set(before) - {tensors.P_VALUE, tensors.IS_ADVERSARIAL}:
        np.testing.assert_array_equal(before[name], after[name])
    known = np.sort(answers(bundle, other_camera["calibrate"], network)[tensors.INSTANCE_SCORE])
    expected = p_values(after[tensors.INSTANCE_SCORE], known)
    # In other batches a graph may round otherwise, and a score then stands on the other side of a calibration score.
    assert np.abs(after[tensors.P_VALUE] - expected).max() <= 2 / (CALIBRATED + 1)
    detector = Detector.load(made.file(made.manifest.networks[network].detector.file))
    np.testing.assert_array_equal(
        after[tensors.P_VALUE], detector.p_values(after[tensors.INSTANCE_SCORE], after[tensors.PROBABILITIES].argmax(1))
    )
    assert len(detector.calibration) == CALIBRATED


def test_manifest_and_report_say_what_it_was_made_with(bundle, made):
    told = made.manifest.training[CALIBRATION]
    assert told == json.loads(made.file("report/calibration.json").read_text())
    assert (told["source"], told["images"], told["bundle_id"]) == ("camera", CALIBRATED, bundle.bundle_id)
    for name, network in made.manifest.networks.items():
        rate = false_alarms(CALIBRATED, ALPHA)
        assert network.detector.calibration_n == told["networks"][name]["n"] == CALIBRATED
        assert told["networks"][name]["smallest_p_value"] == pytest.approx(1 / (CALIBRATED + 1), abs=1e-8)
        assert told["networks"][name]["false_alarms_deviation"] == pytest.approx(rate.deviation, abs=1e-6)
        assert not {tensors.P_VALUE, tensors.IS_ADVERSARIAL} & set(network.parity.outputs)
        # An engine is known by the digest of its graph, and a scoring job by the bundle's id: neither is taken for new.
        assert made.manifest.files[network.model] != bundle.manifest.files[network.model]
    assert made.bundle_id != bundle.bundle_id
    assert made.manifest.training["weights_sha256"] == bundle.manifest.training["weights_sha256"]


def test_how_sure_a_false_alarm_rate_is():
    """800 images: 0.77 points; the rate of many drawn calibrations has that mean and deviation."""
    assert false_alarms(800, 0.05).deviation == pytest.approx(0.0077, abs=1e-4)
    random = np.random.default_rng(0)
    scores = np.sort(random.random((20_000, 49)), axis=1)
    rates = 1 - scores[:, 49 - 5]  # alpha 0.1: flagged is what lies above all but 4 of 49
    assert false_alarms(49, 0.1) == pytest.approx((rates.mean(), rates.std()), abs=1e-3)
    assert "no p-value below 0.0012" in resolution(800, 0.05)
    assert false_alarms(9, 0.05) == (0, 0)


def test_the_digest_knows_neither_order_nor_place(bundle, other_camera, tmp_path):
    paths = other_camera["calibrate"][:20]
    moved = [Path(shutil.copy(path, tmp_path / f"{index}.jpg")) for index, path in enumerate(reversed(paths))]
    digests = {
        recalibrate(bundle, each, tmp_path / str(index), source="x").provenance.sha256
        for index, each in enumerate((paths, moved, paths[1:]))
    }
    assert len(digests) == 2


def test_another_alpha_is_the_graphs_own(bundle, other_camera, tmp_path):
    out = recalibrate(bundle, other_camera["calibrate"], tmp_path / "bundle", source="x", alpha=0.25).bundle
    found = answers(out, other_camera["test"], tensors.FULL)
    np.testing.assert_array_equal(found[tensors.IS_ADVERSARIAL], found[tensors.P_VALUE] <= np.float32(0.25))
    assert out.manifest.networks[tensors.FULL].detector.alpha == 0.25


def test_the_benchmark_shows_it_before_and_after(bundle, other_camera):
    """As whoever owns photographs of another source will measure it."""
    folder = other_camera["test"][0].parent
    found = calibrate.measure_flags(bundle, folder, count=120, seed=0)
    assert found["images"]["source"] == "test"
    for network in found["networks"].values():
        assert network["before"]["flagged"]["share"] > network["before"]["bounds"][1]
        low, high = network["after"]["bounds"]
        assert low <= network["after"]["flagged"]["share"] <= high
        assert network["divisions"]["mean"] == pytest.approx(false_alarms(120, ALPHA).mean, abs=0.02)
    with pytest.raises(OptionError, match="240 of them cannot calibrate while others are judged"):
        calibrate.measure_flags(bundle, folder, count=240, seed=0)
    lines = calibrate.page({"calibrate_x": found}).splitlines()
    assert len(lines) == 2 + len(found["networks"])
    for line, (network, each) in zip(lines[2:], found["networks"].items(), strict=True):
        shares = [f"{100 * each[when]['flagged']['share']:.1f} %" for when in ("before", "after")]
        assert re.search(rf"\| 120, 120 \| {network} \| {shares[0]} .*\| {shares[1]} ", line)


# What cannot work


def test_too_few_images_are_told_before_anything_is_decoded(bundle, tmp_path):
    with pytest.raises(DetectorError, match=r"8 calibration images cannot support alpha = 0\.1\. At least 9"):
        recalibrate(bundle, [tmp_path / "none.jpg"] * 8, tmp_path / "out", source="x")


def test_damaged_images_and_copies_are_all_named_or_left_out(bundle, other_camera, tmp_path):
    paths = other_camera["calibrate"][:20]
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no picture")
    with Image.open(paths[3]) as picture:  # other bytes, the same picture
        picture.save(tmp_path / "again.png")
    bad = [*paths[:5], *(tmp_path / name for name in ("broken.jpg", "text.jpg", "again.png", "gone.jpg")), *paths[5:]]
    with pytest.raises(DatasetError) as caught:
        recalibrate(bundle, bad, tmp_path / "out", source="x")
    for words in (
        "4 of 24 images",
        "broken.jpg: ",
        "text.jpg: not an image",
        f"same picture as {paths[3]}",
        "gone.jpg",
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    made = recalibrate(bundle, bad, tmp_path / "out", source="x", skip_bad=True)
    assert (made.provenance.images, made.provenance.left_out) == (20, 4)
    assert len(made.left_out) == 4


def test_too_few_are_left(bundle, other_camera, tmp_path):
    paths = [*other_camera["calibrate"][:8], other_camera["calibrate"][0]]
    with pytest.raises(DetectorError, match="8 calibration images cannot support"):
        recalibrate(bundle, paths, tmp_path / "out", source="x", skip_bad=True)


def test_who_is_left_out_is_told_where_too_few_are_left(bundle, tmp_path):
    paths = [tmp_path / f"{place}.jpg" for place in range(12)]
    for path in paths:
        path.write_text("no picture")
    with pytest.raises(DetectorError) as caught:
        recalibrate(bundle, paths, tmp_path / "out", source="x", skip_bad=True)
    assert "0 calibration images cannot support alpha = 0.1; 12 others are left out, the first: " in str(caught.value)
    assert "0.jpg: not an image" in str(caught.value)
    assert "choose an alpha" not in str(caught.value)  # there is none


@pytest.mark.parametrize("n", [3, 49, 132, 1999])
def test_the_alpha_that_is_proposed_is_accepted(n):
    with pytest.raises(DetectorError) as caught:
        check_calibration_size(n, 1e-6)
    check_calibration_size(n, float(re.search(r"alpha of at least (\S+)\.$", str(caught.value))[1]))


def test_a_full_temporary_disk_is_called_that(bundle, other_camera, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "detector/full.npz")

    monkeypatch.setattr("calibration.recalibration.shutil.copyfile", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DiskFull, match=f"while writing {tmp_path}/fieldmark-calibrate-"):
        recalibrate(bundle, other_camera["calibrate"], tmp_path / "out", source="x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_any_name_calibrates(bundle, other_camera, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fold\xff"))
    shutil.copytree(other_camera["calibrate"][0].parent, folder)
    code, _, err = run(capsys, bundle.path, "--with", folder, "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    assert Bundle.open(tmp_path / "new").manifest.training[CALIBRATION]["source"] == "fold\\udcff"


def test_a_bundle_is_not_written_into_itself(bundle, other_camera):
    for out in (bundle.path, bundle.path / "inside"):
        with pytest.raises(OptionError, match=r"a bundle is immutable|lies in the bundle|exists already"):
            recalibrate(bundle, other_camera["calibrate"], out, source="x", replace=True)
    assert Bundle.open(bundle.path).bundle_id == bundle.bundle_id


def test_a_toy_without_our_detector_is_refused(toy_bundle, other_camera, tmp_path):
    from bundle.errors import BundleCorrupt

    with pytest.raises(BundleCorrupt, match="is not a detector"):
        recalibrate(toy_bundle, other_camera["calibrate"], tmp_path / "out", source="x")


# The verb


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        fieldmark.main(["calibrate", *map(str, arguments)])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), " ".join(err.split())


def test_the_verb_says_what_changed(bundle, other_camera, tmp_path, capsys):
    copy = tmp_path / "signed"
    shutil.copytree(bundle.path, copy)
    key = tmp_path / "private.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    sign_bundle(copy, key)
    folder = tmp_path / "my camera"
    shutil.copytree(other_camera["calibrate"][0].parent, folder)
    (folder / "notes.txt").write_text("x")
    code, out, err = run(capsys, copy, "--with", folder, "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    for words in (
        "flagged before",
        "120 calibration images: no p-value below 0.0083",
        f"the signature of {copy} does not hold for it: fieldmark bundle sign",
        "1 .txt passed over",
        "engines and scores of the old bundle",
    ):
        assert words in out
    opened = Bundle.open(tmp_path / "new")
    assert not opened.signed
    assert opened.manifest.training[CALIBRATION]["source"] == "my camera"
    assert str(tmp_path) not in opened.manifest.to_json()
    code, _, err = run(capsys, copy, "--with", folder, "--out", tmp_path / "new")
    assert (code, "exists already" in err) == (2, True)
    few = tmp_path / "few"
    few.mkdir()
    for path in other_camera["calibrate"][:20]:
        shutil.copy(path, few)
    code, out, _ = run(capsys, tmp_path / "new", "--with", few, "--out", tmp_path / "coarser")
    assert (code, "take the place of" in out.partition("flagged before")[0]) == (0, True), "before the work"
    assert "20 images take the place of 120 calibration images" in out
    assert "the smallest will be 0.048 instead of 0.0083" in out
    code, out, _ = run(capsys, copy, "--with", folder, "--out", tmp_path / "new", "--force", "--json")
    assert (code, json.loads(out)["images"]) == (0, CALIBRATED)
    told, opened = json.loads(out), Bundle.open(tmp_path / "new")
    assert (told["bundle_id"], told["made_from"]) == (opened.bundle_id, bundle.bundle_id)


def test_bad_arguments_get_a_sentence(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        (("--with", tmp_path / "none"), 1, "there is no folder or list file"),
        (("--with", tmp_path / "empty"), 1, "holds no images"),
        (("--with", tmp_path / "empty", "--alpha", "2"), 2, "--alpha 2 is not between 0 and 1"),
        (("--with", tmp_path / "empty", "--alpha", "5e-324"), 2, "is not between 0 and 1"),  # 0 in float32
        (("--with", tmp_path / "empty", "--alpha", "0.9999999999"), 2, "is not between 0 and 1"),  # and 1
        (("--with", tmp_path), 2, f"lies in {tmp_path}, and its prototypes would be among"),
    ):
        found = run(capsys, bundle.path, *arguments, "--out", tmp_path / "out")
        assert found[0] == code
        assert words in found[2]


def test_prototypes_are_training_images_and_calibrate_nothing(bundle, other_camera, tmp_path, capsys):
    """Of any bundle that lies among the images, also where they come in a list; a manifest of others says nothing."""
    folder = tmp_path / "all"
    shutil.copytree(other_camera["calibrate"][0].parent, folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    assert run(capsys, bundle.path, "--with", folder, "--out", tmp_path / "one")[0] == 0
    (folder / "manifest.json").write_text('{"files": {"another.png": {}}}')
    assert run(capsys, bundle.path, "--with", folder, "--out", tmp_path / "two")[0] == 0
    shutil.copytree(bundle.path, folder / "sub" / "b")
    listed = tmp_path / "list.txt"
    pictures = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    listed.write_text("".join(f"{path}\n" for path in pictures))
    for source in (folder, listed):
        code, _, err = run(capsys, bundle.path, "--with", source, "--out", tmp_path / "three")
        assert code == 1
        assert f"is a prototype of the bundle in {folder / 'sub' / 'b'}" in err
    assert not (tmp_path / "three").exists()


def test_no_torch_and_no_onnx_is_loaded(bundle, other_camera, tmp_path):
    """By the whole verb, not by its imports alone."""
    code = (
        "import sys, fieldmark\n"
        "fieldmark.main(sys.argv[1:])\n"
        "sys.exit(bool({'torch', 'onnx', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    folder = other_camera["calibrate"][0].parent
    words = ["calibrate", bundle.path, "--with", folder, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_graph_of_another_maker_is_refused(bundle, other_camera, tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.graph.NODE", 99)
    with pytest.raises(BundleUnsupported, match="no node makes is_adversarial of two inputs"):
        recalibrate(bundle, other_camera["calibrate"], tmp_path / "out", source="x")
    assert not (tmp_path / "out").exists()
