"""A true bundle, changed by chance: whatever is done to it, a reader ends in a BundleError or with a bundle that works,
and touches no file inside or beside it.

A change is made with the manifest's checksums left as they were, which any change of a file must break, or made right
again, as a forger would: then the damage reaches whatever reads the manifest and the files behind it.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle import Bundle
from bundle.cli import show
from bundle.errors import BundleError, FieldmarkError
from bundle.folder import describe, sign_bundle
from detector.model import Detector
from scoring.drift.scored import read_calibration
from serving.client.classify import prototype_images
from serving.triton.config import Served, Settings, config_text
from tests.keys import write_keys

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]

few = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SPECIFICATION = Path(__file__).parent.parent.parent / "docs" / "bundle.md"
VERIFIER: dict[str, Any] = {"__name__": "specification"}
exec(re.findall(r"```python\n(.*?)```", SPECIFICATION.read_text("utf-8"), flags=re.DOTALL)[0], VERIFIER)
MANIFEST = "manifest.json"
NEIGHBOUR = "neighbour.txt"
OPEN, REFUSED = "open", "refused"


class Victim:
    """A copy of the toy bundle, signed, that is made whole again after each change; a file lies beside it."""

    def __init__(self, source: Path, home: Path) -> None:
        self.home, self.path = home, home / "bundle"
        shutil.copytree(source, self.path)
        self.private, self.public = write_keys(home)
        sign_bundle(self.path, self.private)
        (home / NEIGHBOUR).write_bytes(b"none of your business")
        self.whole = {
            path.relative_to(self.path).as_posix(): path.read_bytes() for path in self.path.rglob("*") if path.is_file()
        }
        self.names = sorted(set(self.whole) - {MANIFEST, "manifest.sig"})

    def document(self) -> dict[str, Any]:
        return json.loads(self.whole[MANIFEST])

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """Give back every byte afterwards, whatever was made of files, folders and names."""
        try:
            yield
        finally:
            shutil.rmtree(self.path)
            for name, data in self.whole.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(data)

    def snapshot(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Kind, size, time of the last change and content of everything inside and beside the bundle."""
        found = {}
        for folder, folders, files in os.walk(self.home):
            for name in (*folders, *files):
                path = Path(folder) / name
                status = path.lstat()
                found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, beginning(path))
        return found

    def read(self, key: Path | None = None) -> str:
        """Open the bundle and do with it what the verbs do: `open` or `refused`, and nothing is touched."""
        before = self.snapshot()
        try:
            bundle = Bundle.open(self.path, key=key)
        except BundleError:
            outcome = REFUSED
        else:
            use(bundle)
            outcome = OPEN
        assert self.snapshot() == before
        return outcome


def beginning(path: Path) -> bytes:
    """The content of a plain file; a sparse terabyte has no more to tell than its beginning."""
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(1_000_000)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def use(bundle: Bundle) -> None:
    """Everything of ours that reads on in an open bundle; each may refuse what it finds, and do nothing else."""
    with contextlib.redirect_stdout(io.StringIO()):
        show(bundle.path)
        print(describe(bundle))
    images = prototype_images(bundle, bundle.manifest)
    for index in range(min(3, len(bundle.manifest.prototypes))):
        images(index)
    for network, info in bundle.manifest.networks.items():
        for reader in (
            lambda network=network: bundle.model(network),
            lambda network=network: config_text(
                network, Settings(cores=2), Served(number=1, manifest=bundle.manifest), {1: bundle.bundle_id}
            ),
            lambda network=network: read_calibration(bundle, network),
            lambda info=info: Detector.load(bundle.file(info.detector.file)),
        ):
            with contextlib.suppress(FieldmarkError):
                reader()


def canonical(document: Any, escaped: bool = False) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=escaped)
    return text.encode("utf-8", "surrogatepass") + b"\n"


@pytest.fixture(scope="module")
def victim(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(toy_bundle.path, tmp_path_factory.mktemp("victim"))


def test_the_victim_is_whole_and_is_made_whole_again(victim: Victim) -> None:
    assert victim.read(victim.public) == OPEN
    before = {name: content for name, (*_, content) in victim.snapshot().items()}
    with victim.changed():
        shutil.rmtree(victim.path / "full")
        (victim.path / MANIFEST).unlink()
        (victim.path / "full").symlink_to(victim.home)
        os.mkfifo(victim.path / MANIFEST)
        (victim.path / "new" / "er").mkdir(parents=True)
        (victim.path / "new" / "er" / "file").touch()
    assert {name: content for name, (*_, content) in victim.snapshot().items()} == before
    assert victim.read(victim.public) == OPEN


def test_a_touched_file_would_be_seen(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hostile.test_mutations.use", lambda bundle: (victim.home / "new").touch())
    try:
        with pytest.raises(AssertionError):
            victim.read()
    finally:
        (victim.home / "new").unlink()


# Bytes


def damage(data: bytes, draw: st.DrawFn) -> bytes:
    """Flip, cut, add, zero or exchange some bytes."""
    place, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.sampled_from([0, 1, 2, 8, 64, 4096]))
    new = draw(st.binary(max_size=8) | st.just(bytes(length)) | st.just(b"\xff" * length))
    kind = draw(st.sampled_from(["flip", "exchange", "cut", "extend", "front"]))
    if kind == "flip" and data:
        return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
    return {
        "exchange": data[:place] + new + data[place + length :],
        "cut": data[:place],
        "extend": data + new,
        "front": new + data,
    }.get(kind, data)


@few
@given(st.data(), st.booleans())
def test_changed_bytes(victim: Victim, data: st.DataObject, mended: bool) -> None:
    name = data.draw(st.sampled_from([*victim.names, *victim.names, MANIFEST]))
    new = data.draw(st.composite(lambda draw: damage(victim.whole[name], draw))())
    document = victim.document()
    with victim.changed():
        (victim.path / name).write_bytes(new)
        if mended and name != MANIFEST:
            document["files"][name] = {"bytes": len(new), "sha256": hashlib.sha256(new).hexdigest()}
            (victim.path / MANIFEST).write_bytes(canonical(document))
        same = (victim.path / MANIFEST).read_bytes() == victim.whole[MANIFEST]
        if name == MANIFEST and not same:
            victim.read()  # another manifest, or none
        else:
            assert victim.read() == (OPEN if mended or new == victim.whole[name] else REFUSED)
        assert victim.read(victim.public) == (OPEN if new == victim.whole[name] else REFUSED)


# The manifest

INTEGERS = [0, -1, 1, 2, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**100]
FRACTIONS = [0.0, -0.5, 0.5, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
SHAPES = [None, True, False, [], {}, [[]], [{}], {"": None}, [0] * 50, ["a"] * 3, {"bytes": 0, "sha256": "0" * 64}]
TEXTS = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "\0",
    "../neighbour.txt",
    "a/../../neighbour.txt",
    "/etc/passwd",
    "full",
    "full/",
]
TEXTS += ["full/model.onnx", "full/../full/model.onnx", "C:\\x", "manifest.json", "manifest.sig", "\ud800", "\x1b[2J"]
TEXTS += ["[/]", "\u202e", "x" * 5000, "{}"]
HOSTILE: list[list[Any]] = [INTEGERS, FRACTIONS, SHAPES, TEXTS]
CHANGES = ["drop", "exchange", "exchange", "exchange", "rename", "double", "add", "elsewhere"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


def alter(document: Any, data: st.DataObject) -> None:
    """One change of structure: a value dropped, exchanged, renamed, doubled, added, or one of another place."""
    every = sorted(places(document), key=str)
    # Files and prototypes have most of the values, and would drown the rest.
    first = data.draw(st.sampled_from(sorted({path[0] for path in every})))
    path = data.draw(st.sampled_from([path for path in every if path[0] == first]))
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    kind = data.draw(st.sampled_from(CHANGES))
    if kind == "drop":
        del parent[path[-1]]
    elif kind == "exchange":
        parent[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(data.draw(st.sampled_from(HOSTILE)))))
    elif kind == "elsewhere":
        found: Any = document
        for step in data.draw(st.sampled_from(every)):
            found = found[step]
        parent[path[-1]] = copy.deepcopy(found)
    elif isinstance(parent, list):
        parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
    elif kind == "add":
        parent[data.draw(st.sampled_from(TEXTS))] = parent[path[-1]]
    else:
        name = data.draw(st.sampled_from(TEXTS))
        parent[name] = parent[path[-1]] if kind == "double" else parent.pop(path[-1])


@settings(few, max_examples=400)
@given(st.data())
def test_changed_structure(victim: Victim, data: st.DataObject) -> None:
    document = victim.document()
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3]))):  # the first that is seen hides the others
        alter(document, data)
    text = canonical(document, escaped=data.draw(st.booleans()))
    with victim.changed():
        (victim.path / MANIFEST).write_bytes(text)
        victim.read()
        assert victim.read(victim.public) == (OPEN if text == victim.whole[MANIFEST] else REFUSED)


@few
@given(st.data())
def test_the_same_content_in_other_bytes(victim: Victim, data: st.DataObject) -> None:
    """A key twice, other spaces, escapes, spellings of numbers, a mark at the start: another text is another bundle."""
    text = victim.whole[MANIFEST]
    colons = [place for place, byte in enumerate(text) if byte == ord(":") and text[place - 1] == ord('"')]
    colon = data.draw(st.sampled_from(colons))
    start = text.rindex(b'"', 0, colon - 1)
    key = text[start:colon]
    again = key + b":" + data.draw(st.sampled_from([b"0", b"null", b"{}", b'"x"'])) + b","
    other = data.draw(
        st.sampled_from(
            [
                text[:start] + again + text[start:],
                text[:colon] + b": " + text[colon + 1 :],
                text[:colon] + b":\t" + text[colon + 1 :],
                text[: start + 1] + b"\\u%04x" % text[start + 1] + text[start + 2 :],
                b"\xef\xbb\xbf" + text,
                text + b"\n",
                text[:-1],
                text.replace(b"0.05", b"5e-2"),
                text.decode().encode("utf-16"),
                json.dumps(victim.document(), indent=1).encode(),
            ]
        )
    )
    with victim.changed():
        (victim.path / MANIFEST).write_bytes(other)
        assert victim.read() == REFUSED


# The folder

ODD = [b"\xff\xfe", b"new", b"full/new", b"full/\xc3\x28", b"-rf", b"$(id)", b"x" * 255, b"new/deep"]
KINDS = ["pipe", "link in", "link out", "dangling", "loop", "folder", "file", "gone", "sparse"]


@few
@given(st.data(), st.booleans())
def test_changed_folders(victim: Victim, data: st.DataObject, listed: bool) -> None:
    """Something else where a file was, or something more; in the manifest, as far as one can list it, or not."""
    known = [os.fsencode(name) for name in [*victim.names, MANIFEST, "manifest.sig"]]
    raw = data.draw(st.sampled_from(known) | st.sampled_from(ODD))
    path = Path(os.fsdecode(os.fsencode(victim.path) + b"/" + raw))
    kind = data.draw(st.sampled_from(KINDS))
    document = victim.document()
    with victim.changed():
        remove(path)
        path.parent.mkdir(exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind in ("link in", "link out", "dangling", "loop"):
            targets = {"link in": victim.path / victim.names[0], "link out": victim.home / NEIGHBOUR, "loop": path}
            path.symlink_to(targets.get(kind, Path("nowhere")))
        elif kind == "folder":
            path.mkdir()
        elif kind == "file":
            path.write_bytes(b"new")
        elif kind == "sparse":
            path.touch()
            os.truncate(path, 2**40)
        if listed and raw not in (b"manifest.json", b"manifest.sig"):
            document["files"][os.fsdecode(raw)] = {"bytes": 3, "sha256": hashlib.sha256(b"new").hexdigest()}
            (victim.path / MANIFEST).write_bytes(canonical(document))
        assert victim.read() == (REFUSED if kind == "sparse" else specified(victim.path))


def specified(folder: Path) -> str:
    """What the verifier of docs/bundle.md says."""
    try:
        VERIFIER["verify"](folder)
    except (ValueError, OSError):
        return REFUSED
    return OPEN


@settings(few, max_examples=30)
@given(st.data())
def test_two_files_exchanged(victim: Victim, data: st.DataObject) -> None:
    """Two files under each other's names: only those of equal content may change places."""
    first, second = data.draw(st.sampled_from(victim.names)), data.draw(st.sampled_from(victim.names))
    with victim.changed():
        (victim.path / first).write_bytes(victim.whole[second])
        (victim.path / second).write_bytes(victim.whole[first])
        assert victim.read(victim.public) == (OPEN if victim.whole[first] == victim.whole[second] else REFUSED)
