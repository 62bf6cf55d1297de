"""Whatever `fieldmark engine` is given, it answers in one sentence and leaves no half-made folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from bundle import Bundle
from bundle.engines import ENGINES, EngineSet
from export.engines.compiler import local_target

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parent.parent.parent
RTX = ("--runtime", "tensorrt-rtx")


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wide lines, so that no sentence is broken; and the process's own signals stay as they were."""
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("FIELDMARK_DEBUG", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = 0
    try:
        fieldmark.main(["engine", *map(str, arguments)])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "bug in fieldmark" not in err
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code, out, err = run(capsys, *arguments)
    assert code > 0
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert out == ""
    return err


def test_engines_of_both_networks_and_a_second_run(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    code, text, _ = run(capsys, toy_bundle.path, "--out", out, *RTX, "--target", "sm_86, sm_89", "--profile", "1:2:4")
    assert code == 0
    lines = text.splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == [
        f"{network} {target} fp32" for network in ("full", "attention") for target in ("sm_86", "sm_89")
    ]
    assert all("built in" in line and "convolutions: none (by the builder)" in line for line in lines[:4])
    if local_target() is None:
        assert lines[4] == "outputs and speed: not run here: no GPU"
    assert lines[-1] == f"{out}: 4 engines of bundle {toy_bundle.bundle_id}"
    code, text, err = run(
        capsys, toy_bundle.path, "--out", out, *RTX, "--target", "sm_86", "--profile", "1:2:4", "--json"
    )
    assert code == 0
    assert "full sm_86 fp32: kept" in err
    document = json.loads(text)
    assert [asked["built"] for asked in document["asked"]] == [False, False]
    assert len(document["engines"]) == 4
    assert document["dropped"] == []
    assert document["bundle_id"] == EngineSet.open(out).document.bundle_id


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            "sm_87",
            "tensorrt-rtx 1.7.1.116 cannot build for sm_87 here. It builds here for: sm_75, sm_80, sm_86, sm_89, ",
        ),
        ("86", "--target '86' is no compute capability such as sm_86. It builds here for: "),
        ("SM_86", "--target 'SM_86' is no compute capability"),
        ("sm_86,", "--target '' is no compute capability"),
        ("", "--target '' is no compute capability"),
        ("sm_86,sm_89,sm_86", "--target names sm_86 twice. Name each once."),
        ("sm_\x1b[31m", "--target 'sm_\\x1b[31m' is no compute capability"),
        ("sm_٨٦", "is no compute capability"),
    ],
)
def test_targets(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, sentence: str
) -> None:
    err = refused(capsys, toy_bundle.path, "--out", tmp_path / "engines", *RTX, "--target", target)
    version = sentence.replace("1.7.1.116", _version())
    assert version in err
    assert not (tmp_path / "engines").exists()


def _version() -> str:
    import tensorrt_rtx_bindings

    return str(tensorrt_rtx_bindings.__version__)


@pytest.mark.skipif(local_target() is not None, reason="there is a GPU")
def test_no_gpu_that_local_could_mean(toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(capsys, toy_bundle.path, "--out", tmp_path / "engines", *RTX)
    assert "there is no GPU here that --target local could mean. It builds here for: sm_75" in err


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        ("1:8", "--profile '1:8' is not three batch sizes. Write MIN:OPT:MAX, such as 1:8:64."),
        ("1:8:64:128", "is not three batch sizes"),
        ("a:b:c", "is not three batch sizes"),
        ("-1:8:64", "is not three batch sizes"),
        ("1:8:6٤", "is not three batch sizes"),
        ("1:8:99999999999999999999", "is not three batch sizes"),
        ("0:8:64", "--profile 0:8:64 is not 1 <= min <= opt <= max <= 4096. Write"),
        ("8:1:64", "--profile 8:1:64 is not 1 <= min"),
        ("1:65:64", "--profile 1:65:64 is not 1 <= min"),
        ("1:8:4097", "--profile 1:8:4097 is not 1 <= min"),
    ],
)
def test_profiles(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str, sentence: str
) -> None:
    arguments = ("--out", tmp_path / "engines", *RTX, "--target", "sm_86", f"--profile={profile}")
    assert sentence in refused(capsys, toy_bundle.path, *arguments)
    assert not (tmp_path / "engines").exists()


def test_runtimes(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (toy_bundle.path, "--out", tmp_path / "engines", "--target", "sm_86", "--runtime")
    assert "unknown runtime 'onnx'. Choose from: tensorrt, tensorrt-rtx." in refused(capsys, *arguments, "onnx")
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    for runtime, extra in (("tensorrt", "gpu"), ("tensorrt-rtx", "tensorrt-rtx")):
        err = refused(capsys, *arguments, runtime)
        assert f"fieldmark engine --runtime {runtime} needs the '{extra}' extra" in err
        assert f"pip install '.[{extra}]'" in err


def test_a_runtime_whose_libraries_do_not_load(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    err = refused(capsys, toy_bundle.path, "--out", tmp_path / "engines", "--runtime", "tensorrt")
    assert "tensorrt is installed and cannot be loaded (libnvinfer.so.10: cannot open shared object file)" in err
    sys.modules.pop("tensorrt", None)


def test_bundles(toy_bundle: Bundle, make_toy_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ("--out", tmp_path / "engines", *RTX, "--target", "sm_86")
    assert "there is no bundle at" in refused(capsys, tmp_path / "none", *rest)
    small = make_toy_bundle(tmp_path / "small", networks=("attention",))
    assert "carries no network 'full'. It carries: attention." in refused(
        capsys, small.path, *rest, "--network", "full"
    )
    assert "unknown network 'other'. Choose from: full, attention." in refused(
        capsys, small.path, *rest, "--network", "other"
    )
    graph = small.path / "attention" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    assert "does not match its SHA-256 in the manifest" in refused(capsys, small.path, *rest)
    assert not (tmp_path / "engines").exists()


def test_places(toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def place(out: Path, *more: str) -> str:
        return refused(capsys, toy_bundle.path, "--out", out, *RTX, "--target", "sm_86", *more)

    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} is not a folder" in place(tmp_path / "file")
    assert f"{tmp_path / 'file'} is no folder" in place(tmp_path / "file" / "engines")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more in ((), ("--force",)):
        assert "holds other things and no engines.json" in place(tmp_path / "mine", *more)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is not a folder" in place(tmp_path / "dangling")
    assert "lies in the bundle, which nobody may change" in place(toy_bundle.path / "engines")
    assert "lies in the bundle" in place(toy_bundle.path)
    Bundle.open(toy_bundle.path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ENGINES).touch()
    (tmp_path / "linked" / "full").symlink_to(tmp_path / "mine")
    assert f"{tmp_path / 'linked' / 'full'} is a link" in place(tmp_path / "linked")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["notes.txt"]
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        assert "cannot be written to" in place(tmp_path / "shut" / "engines")


@pytest.mark.parametrize("text", ["", "{", '{"schema":2}\n', "é" * 10])
def test_a_listing_that_cannot_be_read_is_replaced_on_demand(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    out = tmp_path / "engines"
    out.mkdir()
    (out / ENGINES).write_bytes(text.encode("latin-1"))
    arguments = (toy_bundle.path, "--out", out, *RTX, "--target", "sm_86", "--network", "attention")
    assert str(out / ENGINES) in refused(capsys, *arguments)
    assert (out / ENGINES).read_bytes() == text.encode("latin-1")
    assert run(capsys, *arguments, "--force")[0] == 0
    assert len(EngineSet.open(out).records) == 1


def test_the_runtime_itself_prints_nothing(toy_bundle: Bundle, tmp_path: Path) -> None:
    """Its libraries write past Python to the descriptors, so this looks at a real process's."""
    command = [sys.executable, str(ROOT / "fieldmark.py"), "engine", str(toy_bundle.path), *RTX]
    for target, code in (("sm_75", 1), ("sm_86", 0)):
        ended = subprocess.run(
            [*command, "--out", str(tmp_path / "engines"), "--target", target, "--network", "attention"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        assert ended.stderr.count("\n") == code, ended.stderr
        assert ended.stderr.startswith("error: tensorrt-rtx " * code)
        assert ended.stdout.count("\n") == (0 if code else 3)
