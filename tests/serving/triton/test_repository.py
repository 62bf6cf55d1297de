"""Model repositories: what lies in them, how a version comes and goes, and that a real Triton serves each state."""

import ast
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fieldmark
from bundle import Bundle, tensors
from bundle.errors import EndpointError
from bundle.manifest import parse_manifest
from serving.client.local import LocalInference
from serving.client.remote import TritonInference
from serving.triton import repository, rollout
from serving.triton.config import ONNXRUNTIME, TENSORRT, Settings
from serving.triton.repository import read_config, write_repository
from serving.triton.rollout import roll_out
from tests.conftest import MakeToyBundle, draw_toy
from tests.serving.triton.engine_sets import write_engines
from tests.serving.triton.process import triton_over

BATCHES = (1, 2, 7, 64)
ADAPTER = Path(repository.__file__).with_name("model.py")


@pytest.fixture(scope="module")
def bundles(make_toy_bundle: MakeToyBundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ...]:
    """Three bundles that can follow each other: they differ in alpha, and so in `is_adversarial`."""
    folder = tmp_path_factory.mktemp("bundles")
    return tuple(make_toy_bundle(folder / str(alpha), alpha=alpha) for alpha in (0.05, 0.5, 0.9))


def images(count: int) -> np.ndarray:
    """Clean birds and noise by turns, so that `is_adversarial` of the bundles differs : (count, 32, 32, 3) uint8."""
    noise = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    noise[::2] = [draw_toy(index % 5, 1000 + index) for index in range(0, count, 2)]
    return noise


def verb(*arguments: str | Path) -> None:
    """`fieldmark repository`, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        fieldmark.main(["repository", *map(str, arguments)])
    assert ended.value.code == 0


def tree(folder: Path) -> dict[str, str]:
    """Every file and its digest; a hidden file or a temporary one shows up like any other."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_servable(folder: Path) -> dict[str, str]:
    """What Triton needs of each model is there and whole; returns network -> id of the bundle that it serves."""
    served = {}
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        config = read_config(model / "config.pbtxt")
        (number,) = config.version_policy.specific.versions
        version = model / str(number)
        manifest = parse_manifest((version / "manifest.json").read_text(), "manifest")
        assert manifest.bundle_id == config.parameters["bundle_id"].string_value
        assert json.loads(config.parameters["versions"].string_value)[str(number)] == manifest.bundle_id
        graph = (version / "model.onnx").read_bytes()
        assert hashlib.sha256(graph).hexdigest() == manifest.files[manifest.networks[model.name].model].sha256
        assert (version / "model.py").read_bytes() == Path(repository.__file__).with_name("model.py").read_bytes()
        for warm_up in config.model_warmup:
            assert (model / "warmup" / warm_up.inputs["image"].input_data_file).stat().st_size == 32 * 32 * 3
        assert (model / "labels.txt").read_text().splitlines() == list(manifest.labels)
        served[model.name] = manifest.bundle_id
    assert sorted(served) == sorted(tensors.NETWORKS)
    return served


# What lies there


def test_files_of_a_network(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder = write_repository(toy_bundle, tmp_path / "models", Settings(cores=2))
    assert sorted(path.name for path in folder.iterdir()) == sorted(tensors.NETWORKS)
    assert (folder / "full/1/model.onnx").read_bytes() == toy_bundle.model("full").read_bytes()
    assert (folder / "attention/1/model.onnx").read_bytes() == toy_bundle.model("attention").read_bytes()
    assert (folder / "full/1/manifest.json").read_bytes() == (toy_bundle.path / "manifest.json").read_bytes()
    assert set(assert_servable(folder).values()) == {toy_bundle.bundle_id}


def test_the_warm_up_is_a_prototypes_image(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder = write_repository(toy_bundle, tmp_path / "models", Settings(cores=2))
    spec, prototype = toy_bundle.manifest.image, toy_bundle.manifest.prototypes[0]
    data = np.frombuffer((folder / "full/warmup/1.raw").read_bytes(), np.uint8).reshape(32, 32, 3)
    np.testing.assert_array_equal(data, spec.read(toy_bundle.file(prototype.image)))
    assert data.std() > 5  # a picture, no flat colour


def test_without_prototypes_the_warm_up_is_random(toy_bundle: Bundle, tmp_path: Path) -> None:
    networks = {"attention": toy_bundle.manifest.networks["attention"]}
    bare = dataclasses.replace(toy_bundle.manifest, networks=networks, prototypes=())
    folder = write_repository(Bundle(toy_bundle.path, bare), tmp_path / "models", Settings(cores=2))
    config = read_config(folder / "attention/config.pbtxt")
    assert [warm_up.inputs["image"].random_data for warm_up in config.model_warmup] == [True, True]
    assert not (folder / "attention/warmup").exists()


def test_odd_labels_survive(toy_bundle: Bundle, tmp_path: Path) -> None:
    labels = ('Grünspecht "der Große"', "a, b: c", "back\\slash", "${HOME} } {", "鳥")
    odd = Bundle(toy_bundle.path, dataclasses.replace(toy_bundle.manifest, labels=labels))
    folder = write_repository(odd, tmp_path / "models", Settings(cores=2))
    parameters = read_config(folder / "full/config.pbtxt").parameters
    manifest = parse_manifest(parameters["manifest"].string_value, "config.pbtxt")
    assert manifest.labels == labels
    assert manifest.bundle_id == odd.bundle_id
    assert (folder / "full/labels.txt").read_text(encoding="utf-8").splitlines() == list(labels)


def test_adapter_stands_alone() -> None:
    """It is copied into a model folder and runs in Triton's stub, where nothing of this project can be imported."""
    tree = ast.parse(ADAPTER.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"numpy", "onnxruntime", "triton_python_backend_utils"}


# Out and back


def test_versions_follow_each_other_and_come_back(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    first, second, third = bundles
    out = tmp_path / "models"
    for number, bundle in enumerate(bundles, 1):
        state = roll_out(out, bundle, {"cores": 2})
        assert (state.served, len(state.versions)) == (number, number)
        assert set(assert_servable(out).values()) == {bundle.bundle_id}
    assert state.versions == {1: first.bundle_id, 2: second.bundle_id, 3: third.bundle_id}
    files = tree(out)

    state = roll_out(out, None, {}, version=1)
    assert (state.served, state.manifest.bundle_id, len(state.versions)) == (1, first.bundle_id, 3)
    assert set(assert_servable(out).values()) == {first.bundle_id}
    changed = {name for name, digest in tree(out).items() if files.get(name) != digest}
    assert changed == {"attention/config.pbtxt", "full/config.pbtxt"}

    assert roll_out(out, second, {}).served == 2  # found by its id, not added
    assert roll_out(out, third, {}, version=3).served == 3
    assert tree(out) == files


def test_old_versions_go(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    out = tmp_path / "models"
    for bundle in bundles:
        roll_out(out, bundle, {"cores": 2})
    state = roll_out(out, None, {}, version=1, keep=1)
    assert sorted(state.versions) == [1, 3]  # the served one stays, however old
    assert sorted(path.name for path in (out / "full").iterdir()) == ["1", "3", "config.pbtxt", "labels.txt", "warmup"]
    assert sorted(path.name for path in (out / "full/warmup").iterdir()) == ["1.raw", "3.raw"]
    state = roll_out(out, bundles[1], {}, keep=2)
    assert sorted(state.versions) == [3, 4]  # a number is never given twice
    assert set(assert_servable(out).values()) == {bundles[1].bundle_id}


def test_settings_stay_with_the_repository(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    out = tmp_path / "models"
    asked = {"backend": ONNXRUNTIME, "device": "cpu", "cores": 6, "instances": 3, "queue_size": 9}
    roll_out(out, bundles[0], asked)
    roll_out(out, bundles[1], {})
    roll_out(out, None, {"instances": 2}, version=1)
    config = read_config(out / "full/config.pbtxt")
    assert (config.backend, config.instance_group[0].count) == (ONNXRUNTIME, 2)
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert not (out / "full/2/model.py").exists()


def test_engines_stay_with_their_version(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    out, (first, second, _) = tmp_path / "models", bundles
    small = write_engines(tmp_path / "small", first, profile=(1, 4, 16))
    large = write_engines(tmp_path / "large", first, profile=(1, 8, 64), targets=("sm_80", "sm_90"))
    other = write_engines(tmp_path / "other", second, precision="int8")
    roll_out(out, first, {"backend": TENSORRT, "cores": 2}, engines=small)
    roll_out(out, first, {}, engines=large)  # the same bundle in other engines is another version
    roll_out(out, second, {}, engines=other)
    for number, files, largest, precision in (
        (1, ["model.plan"], 16, "fp16"),
        (2, ["model_sm_80.plan", "model_sm_90.plan"], 64, "fp16"),
        (3, ["model.plan"], 32, "int8"),
    ):
        state = roll_out(out, None, {}, version=number)
        config = read_config(out / "full/config.pbtxt")
        assert config.max_batch_size == largest
        assert sorted(path.name for path in (out / "full" / str(number)).glob("*.plan")) == files
        assert config.default_model_filename == ("model.plan" if len(files) == 1 else "")
        assert state.precisions(number) == dict.fromkeys(("full", "attention"), precision)
    assert roll_out(out, first, {}, engines=small).served == 1
    assert roll_out(out, first, {}).served == 2  # the newest that is this bundle


def test_an_empty_folder_is_taken_and_a_link_followed(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    roll_out(tmp_path / "link", toy_bundle, {})
    assert_servable(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()


def test_what_the_verb_prints(
    bundles: tuple[Bundle, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = str(tmp_path / "models")
    for bundle in bundles[:2]:
        verb(bundle.path, "--out", out, "--cores", "8")
    printed = capsys.readouterr().out
    words = [" ".join(line.split()) for line in printed.splitlines()]
    assert "full 2 python cpu 2 x 4 8 16 32 64" in words
    assert "requests that may wait: any number; warm-up with an image of the bundle" in words
    assert f"2 {bundles[1].bundle_id[:12]} fp32 served" in words
    verb("--version", "1", "--out", out, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["version"], facts["bundle_id"]) == (1, bundles[0].bundle_id)
    assert [(entry["version"], entry["served"]) for entry in facts["history"]] == [(1, True), (2, False)]
    assert [(model["model"], model["threads"]) for model in facts["models"]] == [("full", 4), ("attention", 4)]


# Killed


def test_a_writer_killed_before_any_of_its_changes(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    """At each point each network serves a whole version, and the same command again ends as if nothing had been."""
    script = Path(__file__).with_name("repository_kill_points.py")
    command = [sys.executable, script, tmp_path, *(str(bundle.path) for bundle in bundles)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout.splitlines()[-1])
    changes = [change for _, change, _, _ in results]
    assert {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open"} == {change.split()[0] for change in changes}
    whole, seen = set(tree(tmp_path / "whole")), set()
    for fatal, change, killed, finished in results:
        assert (killed, finished) == (-9, 0), change
        served = assert_servable(tmp_path / f"killed-{fatal}")
        assert set(served.values()) <= {bundles[1].bundle_id, bundles[2].bundle_id}, change
        seen.add((served["full"], served["attention"]))
        assert set(assert_servable(tmp_path / f"finished-{fatal}").values()) == {bundles[2].bundle_id}, change
        assert set(tree(tmp_path / f"finished-{fatal}")) == whole, change
    assert len(seen) == 3, "before the exchange, between two configurations, and after it"


def test_a_writer_killed_between_two_configurations(
    bundles: tuple[Bundle, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment at which the networks serve different bundles: going on and going back both end it, and a second
    writer that dies there, too, takes no version away that is served."""
    first, second, third = bundles
    roll_out(tmp_path / "mixed", first, {"cores": 2})
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "mixed/attention", old)
    roll_out(tmp_path / "mixed", second, {}, keep=1)
    shutil.copyfile(old / "config.pbtxt", tmp_path / "mixed/attention/config.pbtxt")
    shutil.copytree(old / "1", tmp_path / "mixed/attention/1")
    shutil.copyfile(old / "warmup/1.raw", tmp_path / "mixed/attention/warmup/1.raw")
    assert assert_servable(tmp_path / "mixed") == {"full": second.bundle_id, "attention": first.bundle_id}

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name, words in {"on": (third, None), "again": (second, None), "back": (None, 2)}.items():
        out = tmp_path / name
        shutil.copytree(tmp_path / "mixed", out)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(rollout, "exchange_configs", die)
            roll_out(out, words[0], {}, version=words[1])
        assert assert_servable(out) == {"full": second.bundle_id, "attention": first.bundle_id}
        roll_out(out, words[0], {}, version=words[1])
        assert set(assert_servable(out).values()) == {(words[0] or second).bundle_id}
        names = [sorted(path.name for path in (out / network).iterdir()) for network in tensors.NETWORKS]
        assert names[0] == names[1]


# Served


def assert_answers_alike(url: str, bundle: Bundle) -> None:
    """Every output of both networks at every batch is what ONNX Runtime in this process gives, bit for bit."""
    local = LocalInference(bundle, threads=1)
    with TritonInference.connect(url, expect_bundle=bundle.bundle_id) as client:
        for network in tensors.NETWORKS:
            for count in BATCHES:
                answers, expected = client.infer(images(count), network), local.infer(images(count), network)
                assert set(answers) == set(tensors.OUTPUTS[network])
                for name, value in expected.items():
                    assert answers[name].dtype == value.dtype
                    np.testing.assert_array_equal(answers[name], value, err_msg=f"{network}.{name} at {count}")


def test_the_bundles_answer_differently(bundles: tuple[Bundle, ...]) -> None:
    flags = [LocalInference(bundle).infer(images(7), "full")[tensors.IS_ADVERSARIAL].sum() for bundle in bundles]
    assert len(set(flags)) > 1


@pytest.mark.triton
def test_a_real_triton_serves_each_state(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    first, second, _ = bundles
    out = tmp_path / "models"
    for arguments, bundle in (
        ((first.path, "--cores", "1"), first),
        ((second.path,), second),
        (("--version", "1"), first),
    ):
        verb(*arguments, "--out", out)
        with triton_over(out, "--disable-auto-complete-config", "--log-verbose=1") as triton:
            assert_answers_alike(triton.url, bundle)
            for network in tensors.NETWORKS:
                for size in (1, 8):
                    assert triton.said(f"instance {network}_0_0 is running warmup sample 'batch of {size}'")


@pytest.mark.triton
def test_a_running_triton_follows(bundles: tuple[Bundle, ...], tmp_path: Path) -> None:
    """In poll mode a server goes forward and back with the repository, and no request of a connected client fails."""
    first, second, _ = bundles
    out = tmp_path / "models"
    roll_out(out, first, {"cores": 1})

    def serves(bundle: Bundle) -> bool:
        try:  # for a moment it may serve one network of each, which a new client refuses
            TritonInference.connect(triton.url, expect_bundle=bundle.bundle_id).close()
        except EndpointError:
            return False
        return True

    def follows(change: Callable[[], object], bundle: Bundle) -> None:
        stop = threading.Event()
        with TritonInference.connect(triton.url) as connected, ThreadPoolExecutor() as pool:
            asking = pool.submit(lambda: [len(connected.infer(images(2), "full")) for _ in iter(stop.is_set, True)])
            try:
                change()
                triton.wait_for(lambda: serves(bundle))
            finally:
                stop.set()
            assert len(asking.result()) > 10
        # Only now: requests that share a batch with others may differ in their last bit.
        assert_answers_alike(triton.url, bundle)

    with triton_over(out, "--model-control-mode=poll", "--repository-poll-secs=1") as triton:
        assert_answers_alike(triton.url, first)
        follows(lambda: roll_out(out, second, {}, keep=2), second)
        follows(lambda: roll_out(out, None, {}, version=1), first)


@pytest.mark.triton
def test_triton_reads_the_warm_up_file(toy_bundle: Bundle, tmp_path: Path) -> None:
    """With a byte too few in it the model is not served, so its bytes are what Triton warms up with."""
    out = tmp_path / "models"
    roll_out(out, toy_bundle, {"cores": 1})
    file = out / "full/warmup/1.raw"
    file.write_bytes(file.read_bytes()[:-1])
    with triton_over(out, "--exit-on-error=false") as triton:
        assert triton.said("warmup setting expects 3072 bytes, but the data provided from 1.raw")
