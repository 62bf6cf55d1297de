"""The production image's two commands, as far as a machine without that image can prove them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as protobuf

from bundle import Bundle, tensors
from bundle.errors import BundleUnsupported
from serving.client.prediction import check_runtime
from serving.client.remote import TritonInference
from serving.triton import container, probe
from serving.triton.config import AUTO, CPU, ONNXRUNTIME, TENSORRT, Settings
from serving.triton.environment import find_environment
from serving.triton.repository import read_config, write_repository
from serving.triton.server import TritonServer
from tests.serving.narrowed import narrowed
from tests.serving.triton.engine_sets import write_engines

ROOT = Path(__file__).parents[3]


def write_linked(bundle: Bundle, folder: Path) -> Path:
    """The repository that the image's entry point writes."""
    return write_repository(bundle, folder, Settings(backend=ONNXRUNTIME, cores=6), link=True)


def test_the_graphs_are_linked_not_copied_into_the_containers_memory(toy_bundle: Bundle, tmp_path: Path) -> None:
    models = write_linked(toy_bundle, tmp_path / "models")
    assert sorted(path.name for path in models.iterdir()) == ["attention", "full"]
    for network in tensors.NETWORKS:
        graph = models / network / "1" / "model.onnx"
        assert graph.is_symlink()
        assert graph.resolve() == toy_bundle.model(network).resolve()
        assert not (graph.parent / "model.py").exists()
        config = read_config(models / network / "config.pbtxt")
        assert (config.name, config.backend) == (network, "onnxruntime")
        assert config.parameters["intra_op_thread_count"].string_value == "6"
        kinds = [(group.kind, group.count) for group in config.instance_group]
        assert kinds == [(protobuf.ModelInstanceGroup.KIND_AUTO, 1)]


def test_the_entry_point_becomes_tritonserver(toy_bundle: Bundle, tmp_path: Path) -> None:
    """A stand-in on the PATH shows what it is called with, and that it is this very process."""
    stand_in = tmp_path / "tritonserver"
    stand_in.write_text('#!/bin/sh\necho "pid $$"\nfor word in "$@"; do echo "$word"; done\n')
    stand_in.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-m", "serving.triton.container", str(toy_bundle.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    assert process.returncode == 0
    assert lines[0] == f"bundle {toy_bundle.bundle_id}: attention, full"
    assert lines[1] == f"pid {process.pid}"
    (models,) = (tmp_path / "tmp").iterdir()
    assert f"--model-repository={models}" in lines
    assert "--model-control-mode=none" in lines
    assert {"--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--allow-http=false"} <= set(lines)
    assert any(re.fullmatch(r"--grpc-restricted-protocol=[a-z,-]+:Fieldmark-Key=\S{32}", line) for line in lines)


def test_the_processor_is_shared_out_where_no_gpu_was_given(tmp_path: Path) -> None:
    assert container.device(tmp_path) == CPU
    (tmp_path / "nvidiactl").touch()
    assert container.device(tmp_path) == AUTO


@pytest.mark.parametrize("release", ["24.10", "25.07"])
def test_int8_in_an_image_that_would_give_other_labels(release: str, toy_bundle: Bundle) -> None:
    narrow = narrowed(toy_bundle, "int8")
    with pytest.raises(BundleUnsupported, match=r"'full' needs ONNX Runtime 1\.23 or newer"):
        container.check_image(narrow, {container.RELEASE: release})
    container.check_image(toy_bundle, {container.RELEASE: release})
    container.check_image(narrow, {container.RELEASE: "25.08"})
    container.check_image(narrow, {})


@pytest.mark.parametrize("version", ["1.19.2", "1.22.0rc1", "1.9"])
def test_int8_on_an_old_onnx_runtime(version: str, toy_bundle: Bundle) -> None:
    with pytest.raises(BundleUnsupported, match=f"and here is {re.escape(version)}"):
        check_runtime(narrowed(toy_bundle, "int8").manifest, version)
    check_runtime(toy_bundle.manifest, version)
    check_runtime(narrowed(toy_bundle, "int8").manifest, "1.23.0")
    check_runtime(narrowed(toy_bundle, "int8").manifest, "2.0")


def test_a_damaged_bundle_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        container.main([str(tmp_path / "nowhere")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: there is no bundle at {tmp_path}/nowhere. ")


def test_no_tritonserver(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        container.main([str(toy_bundle.path)])
    assert ended.value.code == 1
    assert "tritonserver cannot be started (No such file or directory)" in capsys.readouterr().err


FLAVOURS = {
    "onnxruntime": Settings(backend=ONNXRUNTIME, cores=2),
    "onnxruntime-tensorrt": Settings(backend=ONNXRUNTIME, cores=2, accelerator=TENSORRT, queue_size=64),
    "tensorrt": Settings(backend=TENSORRT, cores=2),
}


@pytest.mark.triton
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_real_tritonserver_knows_every_flag_and_every_field(flavour: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    """The wheel's tritonserver has no native backend: it must come as far as missing that, and no less far."""
    settings = FLAVOURS[flavour]
    environment = find_environment()
    engines = write_engines(tmp_path / "engines", toy_bundle) if settings.backend == TENSORRT else None
    models = write_repository(toy_bundle, tmp_path / "models", settings, engines=engines, link=True)
    command = container.command(models)
    command[0] = str(environment.binary)
    # It loads its models before it opens a port, so none is ever taken here.
    command += ["--grpc-port=39001", "--metrics-port=39002", f"--backend-directory={tmp_path}"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment.variables(), check=False, cwd=tmp_path
    )
    log = run.stdout + run.stderr
    assert run.returncode != 0
    assert log.count(f"unable to find backend library for backend '{settings.backend}'") >= len(tensors.NETWORKS)
    assert "Usage:" not in log
    assert "nrecognized" not in log


# The health check


@pytest.mark.triton
def test_a_living_server_is_healthy(toy_server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--url", toy_server.grpc_url]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"healthy: attention \d+ ms, full \d+ ms\n", out)
    assert err == ""


@pytest.mark.triton
def test_the_probe_runs_as_docker_runs_it(toy_server: TritonServer) -> None:
    command = [sys.executable, "-m", "serving.triton.probe", "--url", toy_server.grpc_url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (run.returncode, run.stderr) == (0, "")


def test_no_server_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--url", "127.0.0.1:9", "--timeout", "2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unhealthy: no server answers at 127.0.0.1:9")
    assert err.count("\n") == 1


class Inference:
    """Stands for a server that answers, with one output changed."""

    def __init__(self, bundle: Bundle, name: str, value: float) -> None:
        self.manifest, self.name, self.value = bundle.manifest, name, value
        self.url, self.asked = "localhost:8001", list[str]()

    def __enter__(self) -> "Inference":
        return self

    def __exit__(self, *_: object) -> None: ...

    def infer(self, images: np.ndarray, network: str) -> dict[str, np.ndarray]:
        assert images.shape == (1, 32, 32, 3)
        assert (images == 128).all()
        self.asked.append(network)
        outputs = {tensors.PROBABILITIES: np.full((1, 5), 0.2), tensors.P_VALUE: np.array([0.5])}
        if network == tensors.FULL:
            outputs[self.name] = np.full_like(outputs[self.name], self.value)
        return outputs


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (tensors.P_VALUE, np.nan, "full.p_value is not finite"),
        (tensors.PROBABILITIES, np.inf, "full.probabilities is not finite"),
        (tensors.PROBABILITIES, 0.0, "probabilities of full sum to 0"),
        (tensors.PROBABILITIES, 0.3, "probabilities of full sum to 1.5"),
    ],
)
def test_nonsense_is_unhealthy(
    toy_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: float,
    sentence: str,
) -> None:
    inference = Inference(toy_bundle, name, value)
    monkeypatch.setattr(TritonInference, "connect", lambda *_, **__: inference)
    assert probe.main([]) == 1
    assert sentence in capsys.readouterr().err
    assert tensors.FULL in inference.asked


def test_every_network_is_asked(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = Inference(toy_bundle, tensors.P_VALUE, 0.1)
    monkeypatch.setattr(TritonInference, "connect", lambda *_, **__: inference)
    assert probe.main([]) == 0
    assert sorted(inference.asked) == sorted(tensors.NETWORKS)


@pytest.mark.parametrize(("verb", "room"), [("train", "training"), ("export", "export"), ("score", "scoring")])
def test_a_verb_that_the_images_leave_out(verb: str, room: str, tmp_path: Path) -> None:
    for name in ("bundle", "serving"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "fieldmark.py", tmp_path)
    # Without site, so that this folder's own installation is not found; the libraries are.
    path = [str(tmp_path), sysconfig.get_path("purelib")]
    words = ["-I", "-S", "-c", f"import sys; sys.path[:0] = {path}; import fieldmark; fieldmark.main()", verb, "x"]
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    sentence = f"'fieldmark {verb}' is not installed here. A whole installation has it, in {room}/."
    assert run.stderr == f"error: {sentence}\n"


# The folder that Triton's workers run from


def test_a_folder_where_nothing_may_run_is_named(tmp_path: Path) -> None:
    """As Docker's own --tmpfs makes one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root mounts a file system here")
    script = f"mount -t tmpfs -o noexec,size=64m tmp {tmp_path} && exec {sys.executable} -c '{_COPY}' {tmp_path}"
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    if "permission denied" in run.stderr.lower():
        pytest.skip("nothing may be mounted here")
    assert run.stdout.startswith(f"nothing may be run in {tmp_path}, and Triton runs its workers from there (noexec)")
    assert "--tmpfs /tmp:exec" in run.stdout


_COPY = """
import sys
import sysconfig
from pathlib import Path
from bundle.errors import ServerError
from serving.triton.environment import find_environment
from serving.triton.command import copy_backend
try: copy_backend(Path(sys.argv[1]) / "server" / "backends", find_environment())
except ServerError as problem: print(problem)
"""
