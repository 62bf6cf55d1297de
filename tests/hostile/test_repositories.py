"""Model repositories that cannot be changed so: one sentence each, and what was served before is served."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fieldmark
from bundle import Bundle, write_bundle
from bundle.errors import BundleUnsupported, DiskFull
from bundle.files import leftovers
from bundle.tensors import TensorSpec
from serving.client.local import LocalInference
from serving.triton.repository import Repository
from serving.triton.rollout import roll_out
from serving.triton.server import TritonServer
from tests.conftest import MakeToyBundle
from tests.serving.triton.engine_sets import write_engines

pytestmark = pytest.mark.hostile

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def pair(make_toy_bundle: MakeToyBundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two bundles that can follow each other."""
    folder = tmp_path_factory.mktemp("pair")
    return make_toy_bundle(folder / "old"), make_toy_bundle(folder / "new", alpha=0.5)


@pytest.fixture(scope="module")
def original(pair: tuple[Bundle, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with both, which serves the second."""
    out = tmp_path_factory.mktemp("original") / "models"
    for bundle in pair:
        roll_out(out, bundle, {"cores": 2})
    return out


@pytest.fixture
def models(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(original, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(words...)` runs `fieldmark repository`, which must refuse, and gives its one sentence."""

    def run(*words: str | Path, code: int = 1) -> str:
        with pytest.raises(SystemExit) as ended:
            fieldmark.main(["repository", *map(str, words)])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (code, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "bug in fieldmark" not in err
        return err.removeprefix("error: ").rstrip("\n")

    return run


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What is asked for


def test_nothing_to_do(refused: Refused, tmp_path: Path) -> None:
    expected = "there is nothing to do. Give a BUNDLE to add, or --version N to go back to one."
    assert refused("--out", tmp_path / "new", code=2) == expected
    assert refused("--out", tmp_path / "new", "--keep", "1", code=2) == expected


def test_a_version_that_is_not_there(pair: tuple[Bundle, Bundle], models: Path, refused: Refused) -> None:
    before = state(models)
    assert refused("--version", "7", "--out", models, code=2) == f"{models} has no version 7. It has: 1, 2."
    sentence = refused(pair[0].path, "--version", "2", "--out", models, code=2)
    ids = [bundle.bundle_id[:12] for bundle in pair]
    assert f"version 2 of {models} is bundle {ids[1]}, and {pair[0].path} is {ids[0]}" in sentence
    assert state(models) == before


def test_no_repository_at_all(toy_bundle: Bundle, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "absent"
    assert refused("--version", "1", "--out", out, code=2).startswith(f"{out} does not exist, so there is no")
    assert "there is no repository" in refused(toy_bundle.path, "--version", "2", "--out", out, code=2)
    assert not out.exists()


def test_a_place_that_is_none_of_ours(toy_bundle: Bundle, refused: Refused, tmp_path: Path) -> None:
    file, stranger, files = tmp_path / "file", tmp_path / "stranger", tmp_path / "files"
    file.write_text("kept")
    (stranger / "resnet" / "1").mkdir(parents=True)
    files.mkdir()
    (files / "notes.txt").write_text("kept")
    assert refused(toy_bundle.path, "--out", file, code=2).startswith(f"{file} is not a folder")
    assert refused(toy_bundle.path, "--out", file / "below", code=2).startswith(f"{file / 'below'} cannot be made")
    assert "holds 'resnet', so it is not a repository" in refused(toy_bundle.path, "--out", stranger, code=2)
    assert "is not a repository that 'fieldmark repository' wrote" in refused(toy_bundle.path, "--out", files, code=2)
    (stranger / "resnet").rename(stranger / "full")
    (stranger / "full/config.pbtxt").write_text('name: "full" backend: "python"')
    assert "was not written by 'fieldmark repository'" in refused(toy_bundle.path, "--out", stranger, code=2)
    assert (file.read_text(), (files / "notes.txt").read_text()) == ("kept", "kept")


def test_another_models_folder_beside_ours(toy_bundle: Bundle, models: Path, refused: Refused) -> None:
    (models / "resnet").mkdir()
    assert "holds 'resnet'" in refused(toy_bundle.path, "--out", models, code=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--backend", "torch"), "--backend 'torch' is none of"),
        (("--backend", "tensorrt"), "--backend tensorrt needs --engines"),
        (("--device", "gpu"), "--device gpu needs a native backend"),
        (("--queue-size", "8"), "stalls with any queue policy"),
        (("--accelerator", "tensorrt"), "is for --backend onnxruntime on a GPU"),
        (("--cores", "2", "--instances", "3"), "are more than the 2 cores"),
        (("--backend", "onnxruntime", "--engine-cache", "cache"), "is not an absolute path"),
    ],
)
def test_settings_that_cannot_be(
    options: tuple[str, ...], sentence: str, toy_bundle: Bundle, refused: Refused, tmp_path: Path
) -> None:
    assert sentence in refused(toy_bundle.path, "--out", tmp_path / "models", *options, code=2)
    assert not list(tmp_path.iterdir())


def test_another_backend(pair: tuple[Bundle, Bundle], models: Path, refused: Refused) -> None:
    before = state(models)
    for words in ((pair[0].path,), ("--version", "1")):
        sentence = refused(*words, "--out", models, "--backend", "onnxruntime", code=2)
        assert "was written for --backend python, and --backend onnxruntime is asked for" in sentence
    assert state(models) == before


# Bundles


def test_a_bundle_that_is_none(models: Path, toy_bundle: Bundle, refused: Refused, tmp_path: Path) -> None:
    before = state(models)
    assert refused(tmp_path / "absent", "--out", models).startswith("there is no bundle at")
    damaged = tmp_path / "damaged"
    shutil.copytree(toy_bundle.path, damaged)
    graph = damaged / "full/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x7f")
    assert "does not match its SHA-256" in refused(damaged, "--out", models)
    assert "does not match its SHA-256" in refused(damaged, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert state(models) == before


def rebuilt(bundle: Bundle, path: Path, **changes: object) -> Bundle:
    staged = path.with_name("staged")
    shutil.copytree(bundle.path, staged, ignore=shutil.ignore_patterns("manifest.json"))
    fields = {field.name: getattr(bundle.manifest, field.name) for field in dataclasses.fields(bundle.manifest)}
    return write_bundle(path, staged, {name: value for name, value in (fields | changes).items() if name != "files"})


def with_shape(bundle: Bundle, network: str, output: str, shape: tuple[int, ...]) -> dict[str, object]:
    info = bundle.manifest.networks[network]
    outputs = tuple(
        TensorSpec(name=each.name, dtype=each.dtype, shape=shape) if each.name == output else each
        for each in info.outputs
    )
    return {**bundle.manifest.networks, network: dataclasses.replace(info, outputs=outputs)}


MISFITS: dict[str, Callable[[Bundle], dict[str, object]]] = {
    "other labels": lambda bundle: {"labels": bundle.manifest.labels[::-1]},
    "another image spec": lambda bundle: {"image": dataclasses.replace(bundle.manifest.image, max_pixels=1000)},
    "the networks attention instead of full, attention": lambda bundle: {
        "networks": {"attention": bundle.manifest.networks["attention"]}
    },
    "full.attention of shape [8, 8] instead of [4, 4]": lambda bundle: {
        "networks": with_shape(bundle, "full", "attention", (8, 8))
    },
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_bundle_whose_answers_would_be_misread(
    what: str, models: Path, toy_bundle: Bundle, refused: Refused, tmp_path: Path
) -> None:
    before = state(models)
    other = rebuilt(toy_bundle, tmp_path / "other", **MISFITS[what](toy_bundle))
    sentence = refused(other.path, "--out", models)
    assert sentence == (
        f"{other.path} has {what}, so clients of {models} would misread its answers. Choose another --out."
    )
    assert state(models) == before


# Engines


def test_engines_that_cannot_be_served(
    pair: tuple[Bundle, Bundle], models: Path, refused: Refused, tmp_path: Path
) -> None:
    bundle, other = pair
    made = iter(range(10))

    def engines(**options: object) -> Path:
        return write_engines(tmp_path / f"engines{next(made)}", bundle, **options).path  # type: ignore[arg-type]

    good, out = engines(), tmp_path / "new"

    def ask(path: Path, *words: str | Path, code: int = 1) -> str:
        return refused(bundle.path, "--backend", "tensorrt", "--engines", path, "--out", out, *words, code=code)

    assert "has no readable engines.json" in ask(tmp_path)
    assert "is an engine of tensorrt-rtx, and Triton's backend loads those of tensorrt alone" in ask(
        engines(runtime="tensorrt-rtx")
    )
    assert "has no engine of the network 'attention'" in ask(engines(networks=("full",)))
    assert "take no batch below 4, and a request may hold one image" in ask(engines(profile=(4, 8, 32)))
    assert "--max-batch 64 is more than the 32 images" in ask(good, "--max-batch", "64")
    (next(good.glob("full/*.engine"))).write_bytes(b"x")
    assert "has 1 bytes, and engines.json says" in ask(good)
    assert not out.exists()

    before = state(models)
    fresh = engines()
    words = ("--engines", fresh, "--out", models)
    assert "--engines is for --backend tensorrt, and this is python" in refused(bundle.path, *words, code=2)
    assert "were built from the bundle" in refused(other.path, *words)
    assert "--engines belongs to a BUNDLE" in refused("--version", "1", *words, code=2)
    assert state(models) == before


# Damaged histories


def _edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def edit(models: Path) -> None:
        text = (models / name).read_text()
        assert re.search(old, text)
        (models / name).write_text(re.sub(old, new, text))

    return edit


def _replace_by_pipe(models: Path) -> None:
    (models / "full/config.pbtxt").unlink()
    os.mkfifo(models / "full/config.pbtxt")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda m: (m / "full/config.pbtxt").unlink(), "full/config.pbtxt cannot be read (No such"),
    "a pipe": (_replace_by_pipe, "full/config.pbtxt cannot be read (not a regular file)"),
    "half a configuration": (
        lambda m: (m / "full/config.pbtxt").write_bytes((m / "full/config.pbtxt").read_bytes()[:900]),
        "full/config.pbtxt is damaged (",
    ),
    "bytes": (lambda m: (m / "full/config.pbtxt").write_bytes(b"\xff\x00\x1b[2J"), "full/config.pbtxt is damaged ("),
    "no JSON": (_edit("full/config.pbtxt", r'"\{\\"1\\": ', '"{'), "full/config.pbtxt is damaged ("),
    "a version that is no number": (
        _edit("full/config.pbtxt", r'"\{\\"1\\": ', r'"{\\"01\\": '),
        "not version numbers",
    ),
    "a deep document": (
        _edit("full/config.pbtxt", r'"\{\\"1\\": [^\n]*', '"' + "[" * 100_000 + '"'),
        "full/config.pbtxt is damaged (",
    ),
    "unknown settings": (_edit("full/config.pbtxt", r'\\"cores\\"', r'\\"kernels\\"'), "unknown key 'kernels'"),
    "settings that cannot be": (_edit("full/config.pbtxt", r'\\"auto\\"', r'\\"gpu\\"'), "needs a native backend"),
    "two versions served": (_edit("full/config.pbtxt", r"versions: 2", "versions: 2 versions: 1"), "is damaged ("),
    "a version that the history does not know": (
        _edit("full/config.pbtxt", r"versions: 2\n", "versions: 9\n"),
        "version 9 is served, and is not the bundle that is named",
    ),
    "no served version": (lambda m: shutil.rmtree(m / "full/2"), "full/2 has no readable manifest.json"),
    "no old version": (lambda m: shutil.rmtree(m / "attention/1"), "attention/1 has no readable manifest.json"),
    "another manifest": (
        lambda m: shutil.copyfile(m / "full/2/manifest.json", m / "full/1/manifest.json"),
        "full/1 is bundle ",
    ),
    "a version of somebody else's": (lambda m: (m / "full/7").mkdir(), "full/7 has no readable manifest.json"),
    "a version that is a file": (lambda m: (m / "full/7").touch(), "full/7 has no readable manifest.json"),
    "no second network": (lambda m: shutil.rmtree(m / "attention"), "is damaged: attention is missing"),
    "another graph": (
        lambda m: (m / "attention/1/model.onnx").write_bytes(b"graph"),
        "attention/1/model.onnx is not the file that its version was given",
    ),
    "no graph": (lambda m: (m / "full/1/model.onnx").unlink(), "full/1/model.onnx cannot be read (No such"),
    "no adapter": (lambda m: (m / "full/1/model.py").unlink(), "full/1/model.py cannot be read (No such"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_history(name: str, models: Path, refused: Refused) -> None:
    damage, expected = DAMAGES[name]
    damage(models)
    before = state(models)
    assert expected in refused("--version", "1", "--out", models)
    assert state(models) == before


# Disks and neighbours


def test_two_writers(toy_bundle: Bundle, models: Path, refused: Refused) -> None:
    handle = os.open(models, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        expected = f"another process is changing {models}. Wait until it ends."
        assert refused(toy_bundle.path, "--out", models) == expected
    finally:
        os.close(handle)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk(options)` mounts a small disk."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def test_a_full_disk(pair: tuple[Bundle, Bundle], disk: Callable[[str], Path], refused: Refused) -> None:
    place = disk("size=400k")
    roll_out(place / "models", pair[0], {"cores": 2})
    before = state(place / "models")
    ballast = place / "ballast"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    ballast.write_bytes(bytes(free - 16 * 1024))
    assert "no space left on the disk while writing" in refused(pair[1].path, "--out", place / "models")
    assert state(place / "models") == before
    assert "no space left on the disk" in refused(pair[1].path, "--out", place / "more")
    assert sorted(path.name for path in place.iterdir()) == ["ballast", "models"]
    ballast.unlink()
    assert roll_out(place / "models", pair[1], {}).served == 2


def test_a_disk_that_fills_at_any_write(
    pair: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush to disk, one after the other, finds no space."""
    flushes = 0

    def full_at(fatal: int) -> Callable[[int], None]:
        def fsync(_: int) -> None:
            nonlocal flushes
            flushes += 1
            if flushes == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return fsync

    roll_out(tmp_path / "before", pair[0], {"cores": 2})
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    monkeypatch.setattr(os, "fsync", full_at(-1))
    roll_out(tmp_path / "whole", pair[1], {}, keep=1)
    needed = flushes
    assert needed > 10
    outcomes = set()
    for fatal in range(1, needed + 1):
        out, flushes = tmp_path / f"out-{fatal}", 0
        shutil.copytree(tmp_path / "before", out)
        monkeypatch.setattr(os, "fsync", full_at(fatal))
        with pytest.raises(DiskFull, match="no space left on the disk"):
            roll_out(out, pair[1], {}, keep=1)
        monkeypatch.setattr(os, "fsync", full_at(-1))
        assert not [*leftovers(out / "full"), *leftovers(out / "attention")]
        found = Repository.open(out)
        outcomes.add(found.served)
        if found.served == 1:
            assert state(out) == state(tmp_path / "before"), fatal
        roll_out(out, pair[1], {}, keep=1)
        assert sorted(state(out)) == sorted(state(tmp_path / "whole"))
    assert outcomes == {1, 2}  # the last flush comes after the exchange


def test_a_read_only_disk(pair: tuple[Bundle, Bundle], disk: Callable[[str], Path], refused: Refused) -> None:
    place = disk("size=400k")
    roll_out(place / "models", pair[0], {"cores": 2})
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    words = (pair[1].path, "--out")
    assert refused(*words, place / "models", code=2).startswith(f"{place / 'models'} cannot be written to")
    assert "cannot be written to" in refused(*words, place / "more", code=2)
    assert "cannot be written to" in refused("--version", "1", "--out", place / "models", code=2)


def test_an_empty_mount_point(toy_bundle: Bundle, disk: Callable[[str], Path], refused: Refused) -> None:
    place = disk("size=400k")
    sentence = refused(toy_bundle.path, "--out", place, code=2)
    assert sentence == f"{place} is a mount point. Choose a folder in it: --out {place}/models."


def test_bfloat16_is_refused_where_only_processors_are(toy_bundle: Bundle, tmp_path: Path) -> None:
    """By every way that would run it on one; a repository for a GPU is written."""
    path = Path(shutil.copytree(toy_bundle.path, tmp_path / "bundle"))
    document = json.loads((path / "manifest.json").read_text("utf-8"))
    quality = {"images": 9, "accuracy": 1.0, "flagged": 0.0, "auroc": {}}
    document["networks"]["full"] |= {"precision": "bf16", "quality": {"fp32": quality, "bf16": quality}}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (path / "manifest.json").write_text(text, "utf-8")
    bundle = Bundle.open(path)
    sentence = r"the network 'full' computes in bf16, which no processor runs here.*--precision fp32, fp16 or int8"
    with pytest.raises(BundleUnsupported, match=sentence):
        LocalInference(bundle, providers=["CPUExecutionProvider"]).infer(np.zeros((1, 32, 32, 3), np.uint8), "full")
    with pytest.raises(BundleUnsupported, match=sentence):
        TritonServer(bundle, grpc_port=0, http_port=0, metrics_port=0).start()
    for asked in ({}, {"backend": "onnxruntime", "device": "cpu"}):
        with pytest.raises(BundleUnsupported, match=sentence):
            roll_out(tmp_path / "models", bundle, asked)
        assert not (tmp_path / "models").exists()
    assert roll_out(tmp_path / "models", bundle, {"backend": "onnxruntime", "device": "gpu"}).served == 1
