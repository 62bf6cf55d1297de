"""engines.json byte for byte, and a reader that takes nothing else."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.engines import BUILDER, ENGINES, EngineRecord, Engines, EngineSet, Evidence, Profile, engine_file
from bundle.errors import EngineError

DATA = {("attention", "sm_86"): b"first engine", ("full", "sm_120"): b"another", ("full", "sm_86"): b"the third"}
BUNDLE_ID = hashlib.sha256(b"bundle").hexdigest()
PINNED = (
    '{"bundle_id":"' + BUNDLE_ID + '","engines":[{"bytes":9,"evidence":{"layers":{"CONVOLUTION":{"HALF":36}},'
    '"source":"builder"},"file":"full/sm_86.1882236e7d471ec1.engine","graph_sha256":"' + 64 * "a" + '",'
    '"network":"full","precision":"fp16","profile":{"max":64,"min":1,"opt":8},"runtime":"tensorrt-rtx",'
    '"sha256":"' + hashlib.sha256(b"the third").hexdigest() + '","target":"sm_86","version":"1.7.1.116"}],"schema":1}\n'
)


def record(network: str, target: str) -> EngineRecord:
    data = DATA[network, target]
    sha256 = hashlib.sha256(data).hexdigest()
    return EngineRecord(
        network=network,
        file=engine_file(network, target, sha256),
        runtime="tensorrt-rtx",
        version="1.7.1.116",
        target=target,
        precision="fp16",
        profile=Profile(min=1, opt=8, max=64),
        graph_sha256=64 * "a",
        bytes=len(data),
        sha256=sha256,
        evidence=Evidence(source=BUILDER, layers={"CONVOLUTION": {"HALF": 36}}),
    )


def write(path: Path) -> Path:
    engines = Engines(schema=1, bundle_id=BUNDLE_ID, engines=tuple(record(*place) for place in DATA))
    for each in engines.engines:
        (path / each.network).mkdir(exist_ok=True, parents=True)
        (path / each.file).write_bytes(DATA[each.network, each.target])
    (path / ENGINES).write_text(engines.to_json())
    return path


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return write(tmp_path / "engines")


def test_the_document_is_pinned() -> None:
    document = Engines(schema=1, bundle_id=BUNDLE_ID, engines=(record("full", "sm_86"),))
    assert document.to_json() == PINNED


def test_a_set_is_read_as_it_was_written(engines: Path) -> None:
    opened = EngineSet.open(engines, BUNDLE_ID)
    assert opened.records == tuple(record(*place) for place in DATA)
    for (network, target), data in DATA.items():
        assert opened.file(opened.find(network, target)).read_bytes() == data
    with pytest.raises(
        EngineError, match=r"no engine of attention for sm_120.*attention for sm_86, full for sm_120, f"
    ):
        opened.find("attention", "sm_120")


def test_what_is_not_listed_is_no_part_of_the_set(engines: Path) -> None:
    (engines / "full/sm_75.0123456789abcdef.engine").write_bytes(b"left by a killed build")
    (engines / "timings").mkdir()
    assert len(EngineSet.open(engines).records) == 3


def test_engines_of_another_bundle(engines: Path) -> None:
    with pytest.raises(EngineError, match=f"built from the bundle {BUNDLE_ID}, not from {64 * '0'}"):
        EngineSet.open(engines, 64 * "0")


def forge(engines: Path, edit: Callable[[Any], None]) -> None:
    document = json.loads((engines / ENGINES).read_text())
    edit(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (engines / ENGINES).write_text(text + "\n")


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("schema", 2, "has schema 2, and this version reads schema 1. Upgrade"),
        ("schema", True, "no schema number"),
        ("schema", None, "no schema number"),
        ("bundle_id", "0" * 63, "bundle_id is not 64"),
        ("bundle_id", 7, "expected str"),
        ("extra", 1, "unknown key 'extra'"),
        ("engines", {}, "expected a list"),
        ("engines.0.network", "other", "unknown network 'other'"),
        ("engines.0.network", "full", "file is not"),
        ("engines.0.runtime", "onnx", "unknown runtime 'onnx'"),
        ("engines.0.version", "1\n2", "no version"),
        ("engines.0.version", "../..", "no version"),
        ("engines.0.target", "sm_86/..", "no target"),
        ("engines.0.target", "sm_089", "no target"),
        ("engines.0.precision", "fp8", "unknown precision"),
        ("engines.0.file", "../../etc/passwd", "file is not"),
        ("engines.0.file", "attention/sm_86.engine", "file is not"),
        ("engines.0.bytes", -1, "cannot have -1 bytes"),
        ("engines.0.bytes", 12.0, "expected int"),
        ("engines.0.bytes", 13, "has 12 bytes, and engines.json says 13"),
        ("engines.0.sha256", "A" * 64, "sha256 is not 64"),
        ("engines.0.graph_sha256", "", "graph_sha256 is not 64"),
        ("engines.0.profile.min", 0, "profile 0:8:64 is not"),
        ("engines.0.profile.opt", 65, "profile 1:65:64 is not"),
        ("engines.0.profile.max", 4097, "profile 1:8:4097 is not"),
        ("engines.0.evidence.source", "hearsay", "unknown source 'hearsay'"),
        ("engines.0.evidence.layers", {"CONVOLUTION": {"HALF": 0}}, "fewer than one"),
        ("engines.0.evidence.layers", {"CONVOLUTION": {}}, "fewer than one"),
        ("engines.0.evidence.layers", {"\x1b[31m": {"HALF": 1}}, "no name of a layer"),
        ("engines.0.evidence.layers", {"CONVOLUTION": {"HALF": "many"}}, "expected int"),
    ],
)
def test_forged_documents(engines: Path, place: str, value: Any, sentence: str) -> None:
    def edit(document: Any) -> None:
        *way, last = place.split(".")
        for step in way:
            document = document[int(step) if step.isdigit() else step]
        document[last] = value

    forge(engines, edit)
    with pytest.raises(EngineError) as problem:
        EngineSet.open(engines)
    assert sentence in str(problem.value)
    assert "\x1b" not in str(problem.value)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda document: document["engines"].reverse(), "not in the order of network and target"),
        (lambda document: document["engines"].append(document["engines"][2]), "each once"),
        (lambda document: document.pop("engines"), "missing key 'engines'"),
    ],
)
def test_forged_lists(engines: Path, edit: Callable[[Any], None], sentence: str) -> None:
    forge(engines, edit)
    with pytest.raises(EngineError, match=sentence):
        EngineSet.open(engines)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema":1,"schema":1}', b'{"schema":1e999}']
)
def test_documents_that_are_none(engines: Path, text: bytes) -> None:
    (engines / ENGINES).write_bytes(text)
    with pytest.raises(EngineError, match=r"engines\.json is damaged"):
        EngineSet.open(engines)


@pytest.mark.hostile
def test_other_spellings_of_the_same_document(engines: Path) -> None:
    plain = json.loads((engines / ENGINES).read_text())
    (engines / ENGINES).write_text(json.dumps(plain, indent=1))
    with pytest.raises(EngineError, match="not in canonical form"):
        EngineSet.open(engines)


@pytest.mark.hostile
def test_no_set_at_all(engines: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", engines / ENGINES, tmp_path):
        with pytest.raises(EngineError, match=r"no readable engines\.json"):
            EngineSet.open(path)
    (engines / ENGINES).write_bytes(b" " * (16 * 1024 * 1024 + 1))
    with pytest.raises(EngineError, match="is larger than"):
        EngineSet.open(engines)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "trick", ["missing", "damaged", "longer", "link", "linked folder", "pipe", "folder", "listing"]
)
def test_engines_that_are_not_what_was_listed(engines: Path, trick: str) -> None:
    file = engines / record("attention", "sm_86").file
    data = file.read_bytes()
    if trick in ("missing", "link", "pipe", "folder"):
        file.rename(engines / "aside")
    match trick:
        case "damaged":
            file.write_bytes(data[:-1] + b"!")
        case "longer":
            file.write_bytes(data + b"\0")
        case "link":
            file.symlink_to(engines / "aside")
        case "linked folder":
            file.parent.rename(engines / "elsewhere")
            file.parent.symlink_to("elsewhere")
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "listing":
            (engines / ENGINES).rename(engines / "aside")
            (engines / ENGINES).symlink_to("aside")
    with pytest.raises(EngineError) as problem:
        EngineSet.open(engines)
    assert str(engines) in str(problem.value)


@pytest.mark.hostile
@settings(derandomize=True, max_examples=150, deadline=None)
@given(choice=st.integers(0, 3), position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_no_changed_byte_passes_unseen(choice: int, position: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engines = write(Path(folder))
        names = [ENGINES, *(record(*place).file for place in DATA)]
        data = bytearray((engines / names[choice]).read_bytes())
        data[position % len(data)] ^= value
        (engines / names[choice]).write_bytes(data)
        try:
            opened = EngineSet.open(engines, BUNDLE_ID)
        except EngineError:
            return
        # What is left are words that nothing else pins: another version, precision, digest of a graph, count of layers.
        assert choice == 0
        for each in opened.records:
            own = record(each.network, each.target)
            assert (
                replace(
                    each,
                    version=own.version,
                    precision=own.precision,
                    graph_sha256=own.graph_sha256,
                    evidence=own.evidence,
                    profile=own.profile,
                )
                == own
            )
