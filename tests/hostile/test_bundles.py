"""Every way a bundle can be damaged or forged ends in one sentence, and in no other exception."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import bundle.folder
from bundle import Bundle, tensors, write_bundle
from bundle.errors import BundleCorrupt, BundleError, BundleMissing, ExportError, OptionError
from serving.client.classify import prototype_images
from tests.bundle import golden

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

NAMES = sorted(golden.FILES)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The golden bundle, to be damaged."""
    return Path(shutil.copytree(golden.GOLDEN, tmp_path / "bundle"))


def test_the_copy_is_whole(copy: Path) -> None:
    assert Bundle.open(copy).bundle_id == golden.BUNDLE_ID


@pytest.mark.parametrize("name", [name for name in NAMES if golden.FILES[name]])
def test_one_flipped_bit_in_any_file(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    for place in (0, len(data) - 1):
        (copy / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BundleCorrupt, match=f"{name} does not match its SHA-256"):
            Bundle.open(copy)


@pytest.mark.parametrize("name", NAMES)
def test_one_byte_more_or_less(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data + b"\0")
    with pytest.raises(BundleCorrupt, match=f"{name} has {len(data) + 1} bytes, and the manifest says {len(data)}"):
        Bundle.open(copy)
    if data:
        (copy / name).write_bytes(data[:-1])
        with pytest.raises(BundleCorrupt, match=f"{name} has {len(data) - 1} bytes"):
            Bundle.open(copy)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleMissing, match=f"{name} is missing. Fetch or export the bundle again."):
        Bundle.open(copy)


def test_every_flipped_bit_of_the_manifest_is_an_error_or_another_id(copy: Path) -> None:
    """A manifest signs the files; what signs the manifest is its id, which the deployer pins."""
    path = copy / "manifest.json"
    data = path.read_bytes()
    refused = 0
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert Bundle.open(copy).bundle_id != golden.BUNDLE_ID
        except BundleError:
            refused += 1
    assert refused > len(data) / 5 / 2


def test_the_manifest_cut_anywhere(copy: Path) -> None:
    data = (copy / "manifest.json").read_bytes()
    for length in range(0, len(data), 50):
        (copy / "manifest.json").write_bytes(data[:length])
        with pytest.raises(BundleCorrupt, match=r"manifest\.json is not valid JSON|is not UTF-8"):
            Bundle.open(copy)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_manifest(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-manifest"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(folder)


# What a manifest does not list


@pytest.mark.parametrize("name", ["extra.bin", "full/weights.bin", "new/deep/file", ".hidden", "full/MODEL.ONNX"])
def test_a_file_that_is_not_listed(copy: Path, name: str) -> None:
    """An ONNX graph can read its weights from a file beside it, which no checksum would cover."""
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"weights")
    with pytest.raises(BundleCorrupt, match=rf"{name} is not listed in the manifest\. A bundle holds nothing else"):
        Bundle.open(copy)


def test_a_file_whose_name_no_encoding_knows(copy: Path) -> None:
    Path(os.fsdecode(os.fsencode(copy) + b"/\xff\xfe.bin")).write_bytes(b"")
    with pytest.raises(BundleCorrupt, match="is not listed"):
        Bundle.open(copy)


def test_an_empty_folder_holds_nothing(copy: Path) -> None:
    (copy / "lost+found").mkdir()
    assert Bundle.open(copy).bundle_id == golden.BUNDLE_ID


# Links, pipes, and everything that is no file


def link_file(copy: Path) -> None:
    shutil.move(copy / "full/model.onnx", copy.parent / "model.onnx")
    (copy / "full/model.onnx").symlink_to(copy.parent / "model.onnx")


def link_folder(copy: Path) -> None:
    shutil.move(copy / "full", copy.parent / "full")
    (copy / "full").symlink_to(copy.parent / "full")


def link_out(copy: Path) -> None:
    (copy / "full/model.onnx").unlink()
    (copy / "full/model.onnx").symlink_to("/etc/hostname")


def link_to_itself(copy: Path) -> None:
    (copy / "loop").symlink_to(copy)


def pipe(copy: Path) -> None:
    (copy / "full/model.onnx").unlink()
    os.mkfifo(copy / "full/model.onnx")


def unix_socket(copy: Path) -> None:
    (copy / "report/Grünspecht.txt").unlink()
    home = os.getcwd()
    os.chdir(copy / "report")  # a socket's name has room for 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("Grünspecht.txt")
    finally:
        os.chdir(home)


def folder_for_file(copy: Path) -> None:
    (copy / "full/model.onnx").unlink()
    (copy / "full/model.onnx").mkdir()


FORGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a linked file": (link_file, r"model\.onnx is a link\. Do not use this bundle"),
    "a linked folder": (link_folder, "full is a link"),
    "a link out of the bundle": (link_out, r"model\.onnx is a link"),
    "a link in a circle": (link_to_itself, "loop is a link"),
    "a pipe": (pipe, r"model\.onnx is neither a file nor a folder"),
    "a socket": (unix_socket, r"txt is neither a file nor a folder"),
    "a folder for a file": (folder_for_file, r"model\.onnx is missing"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_only_plain_files_in_plain_folders(copy: Path, forgery: str) -> None:
    make, sentence = FORGED[forgery]
    make(copy)
    with pytest.raises(BundleError, match=sentence):
        Bundle.open(copy)


def manifest_link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere.json")
    path.symlink_to(path.parent.parent / "elsewhere.json")


def manifest_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def manifest_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def manifest_large(path: Path) -> None:
    with path.open("rb+") as stream:
        stream.truncate(2**40)


MANIFESTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gone": (Path.unlink, r"has no readable manifest\.json \(No such file"),
    "a link": (manifest_link, r"has no readable manifest\.json \(not a regular file\)"),
    "a pipe": (manifest_pipe, r"has no readable manifest\.json \(not a regular file\)"),
    "a folder": (manifest_folder, r"has no readable manifest\.json \(not a regular file\)"),
    "one terabyte": (manifest_large, "is larger than 16,777,216 bytes"),
    "Latin-1": (lambda path: path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc")), "is not UTF-8"),
    "empty": (lambda path: path.write_bytes(b""), "is not valid JSON"),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), "is not valid JSON"),
}


@pytest.mark.parametrize("way", MANIFESTS)
def test_manifests_that_are_none(copy: Path, way: str) -> None:
    damage, sentence = MANIFESTS[way]
    damage(copy / "manifest.json")
    with pytest.raises(BundleError, match=sentence):
        Bundle.open(copy)


@pytest.mark.parametrize("path", ["nowhere", "bundle/manifest.json", "x" * 300, "a\0b", "\ud800", "loop"])
def test_paths_that_lead_to_no_bundle(copy: Path, path: str) -> None:
    (copy.parent / "loop").symlink_to("loop")
    with pytest.raises(BundleMissing, match=r"there is no bundle at|cannot be read"):
        Bundle.open(copy.parent / path)


def test_the_bundle_itself_may_be_reached_through_a_link(copy: Path) -> None:
    """`current -> 2024-06-01` is how deployments switch; what lies inside is still checked."""
    (copy.parent / "current").symlink_to("bundle")
    assert Bundle.open(copy.parent / "current").bundle_id == golden.BUNDLE_ID
    link_file(copy)
    with pytest.raises(BundleCorrupt, match="link"):
        Bundle.open(copy.parent / "current")


def test_a_relative_path_is_checked_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert Bundle.open(Path(".")).bundle_id == golden.BUNDLE_ID
    link_folder(copy)
    with pytest.raises(BundleCorrupt, match="full is a link"):
        Bundle.open(Path("."))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(copy: Path) -> None:
    (copy / "full/model.onnx").chmod(0)
    with pytest.raises(BundleMissing, match=r"model\.onnx cannot be read \(Permission denied\)"):
        Bundle.open(copy)


# Sizes that nobody needs, and files that change under the reader's eyes


def described(copy: Path, **entries: dict[str, object]) -> None:
    """Write into the manifest, in canonical form, what `files` says of more paths; `/` is spelt `__`."""
    document = json.loads((copy / "manifest.json").read_text("utf-8"))
    document["files"] |= {name.replace("__", "/"): entry for name, entry in entries.items()}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (copy / "manifest.json").write_text(text, "utf-8")


def never(*_: object) -> str:
    raise AssertionError("a file was hashed that should have been refused before")


def test_a_file_of_one_terabyte_is_refused_before_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        os.truncate(copy / name, 2**40)
    monkeypatch.setattr("bundle.folder.sha256_of_stream", never)
    with pytest.raises(BundleCorrupt, match="has 1,099,511,627,776 bytes, and the manifest says"):
        Bundle.open(copy)


@pytest.mark.parametrize("size", [2**36, 2**40, 2**63 - 1])
def test_a_terabyte_that_the_manifest_owns_up_to(copy: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files cost an attacker nothing, and whoever checks their sums an hour."""
    (copy / "big").touch()
    os.truncate(copy / "big", min(size, 2**40))
    described(copy, big={"bytes": size, "sha256": "0" * 64})
    monkeypatch.setattr("bundle.folder.sha256_of_stream", never)
    with pytest.raises(BundleCorrupt, match=r"files: [0-9,]+ bytes are more than the limit of 68,719,476,736"):
        Bundle.open(copy)


def test_more_files_than_any_bundle_needs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.manifest.MAX_FILES", 100)
    entry = {"bytes": 0, "sha256": "0" * 64}
    described(copy, **{f"f{index}": entry for index in range(95)})
    with pytest.raises(BundleCorrupt, match="files: 101 of them are more than the limit of 100"):
        Bundle.open(copy)


def test_paths_as_deep_as_the_limit_and_deeper(copy: Path) -> None:
    for depth in (16, 17):
        path = "/".join("d" * (depth - 1)) + "/file"
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(b"")
        described(copy, **{path.replace("/", "__"): {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}})
        if depth == 16:
            Bundle.open(copy)
    with pytest.raises(BundleCorrupt, match="unsafe path 'd/d/d"):
        Bundle.open(copy)


def test_folders_nested_deeper_than_any_path_may_be(copy: Path) -> None:
    """Three thousand levels: longer than any path that could be opened, and empty."""
    home = os.getcwd()
    os.chdir(copy)
    try:
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(home)
    try:
        with pytest.raises(BundleCorrupt, match=r"holds folders nested more than 15 deep\. Do not use"):
            Bundle.open(copy)
    finally:
        subprocess.run(["rm", "-rf", copy], check=True)  # deeper than Python's own recursion


def test_more_folders_than_any_bundle_needs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.folder.MAX_FOLDERS", 100)
    for index in range(100):
        (copy / f"empty{index}").mkdir()
    with pytest.raises(BundleCorrupt, match="holds more than 100 folders"):
        Bundle.open(copy)


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_link(path: Path) -> None:
    """To the same bytes, which are no longer the bundle's own."""
    shutil.move(path, path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("swap", [swap_for_pipe, swap_for_link, swap_for_folder, Path.unlink])
def test_a_file_exchanged_between_the_look_and_the_reading(
    copy: Path, swap: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_walk = bundle.folder._walk

    def walk(root: Path) -> Iterator[str]:
        names = list(real_walk(root))
        swap(root / "full/model.onnx")
        yield from names

    monkeypatch.setattr("bundle.folder._walk", walk)
    with pytest.raises(BundleMissing, match=r"full/model\.onnx cannot be read \((not a regular file|No such file)"):
        Bundle.open(copy)


def test_a_file_that_grows_while_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who appends as fast as we read would otherwise keep us for ever."""
    digest = bundle.folder.sha256_of_stream

    def grow(stream: BinaryIO, most: int) -> str:
        if most == len(golden.FILES["full/model.onnx"]) + 1:
            os.truncate(copy / "full/model.onnx", 2**40)
        return digest(stream, most)

    monkeypatch.setattr("bundle.folder.sha256_of_stream", grow)
    with pytest.raises(BundleCorrupt, match=r"model\.onnx does not match its SHA-256"):
        Bundle.open(copy)
    assert (copy / "full/model.onnx").stat().st_size == 2**40


# What a bundle hands out


def test_names_that_the_manifest_does_not_list(copy: Path) -> None:
    bundle = Bundle.open(copy)
    for name in ("../secret", "/etc/passwd", "manifest.json", "", "full"):
        with pytest.raises(BundleMissing, match="the manifest lists no file"):
            bundle.file(name)
    with pytest.raises(BundleMissing, match=r"carries no network 'third'\. It carries: attention, full\."):
        bundle.model("third")
    assert bundle.model(tensors.FULL).read_bytes() == golden.FILES["full/model.onnx"]


def test_a_prototype_larger_than_the_input_is_not_decoded(toy_bundle: Bundle, tmp_path: Path) -> None:
    """A bundle names its own limits of images, so its pictures could be as large as it likes."""
    path = Path(shutil.copytree(toy_bundle.path, tmp_path / "toy"))
    name = toy_bundle.manifest.prototypes[0].image
    Image.new("RGB", (5000, 5000)).save(path / name)
    data = (path / name).read_bytes()
    described(path, **{name.replace("/", "__"): {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    opened = Bundle.open(path)
    assert opened.manifest.image.max_pixels > 5000 * 5000
    images = prototype_images(opened, opened.manifest)
    assert images(0) is None
    assert images(1) is not None


# Writing


def test_staged_links_are_not_followed(tmp_path: Path) -> None:
    staged = golden.stage(tmp_path / "staged")
    (staged / "report" / "secret").symlink_to("/etc/hostname")
    with pytest.raises(BundleCorrupt, match="is a link"):
        write_bundle(tmp_path / "bundle", staged, golden.fields())
    assert not (tmp_path / "bundle").exists()


def test_a_file_named_like_the_manifest_cannot_be_staged(tmp_path: Path) -> None:
    staged = golden.stage(tmp_path / "staged")
    (staged / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match=r"unsafe path 'manifest\.json'"):
        write_bundle(tmp_path / "bundle", staged, golden.fields())


def test_replacing(copy: Path, tmp_path: Path) -> None:
    staged = golden.stage(tmp_path / "staged")
    with pytest.raises(OptionError, match="exists already"):
        write_bundle(copy, staged, golden.fields() | {"name": "second"})
    assert write_bundle(copy, staged, golden.fields() | {"name": "second"}, replace=True).manifest.name == "second"
    assert Bundle.open(copy).manifest.name == "second"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="is not replaced"):
        write_bundle(tmp_path / "home", staged, golden.fields(), replace=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_file_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = golden.stage(tmp_path / "staged")

    def changed(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes().replace(b"graph", b"GRAPH"))

    monkeypatch.setattr(shutil, "copyfile", changed)
    with pytest.raises(BundleCorrupt, match="does not match its SHA-256"):
        write_bundle(tmp_path / "bundle", staged, golden.fields())
    assert [path.name for path in tmp_path.iterdir()] == ["staged"]


# The command


def fieldmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fieldmark", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_verify_and_show(copy: Path) -> None:
    verify = fieldmark("bundle", "verify", copy)
    assert (verify.returncode, verify.stderr) == (0, "")
    assert verify.stdout == f"{copy}: 6 files, 0.0 MB, all match; not signed. id {golden.BUNDLE_ID}\n"
    show = fieldmark("bundle", "show", copy)
    assert (show.returncode, show.stderr) == (0, "")
    for text in ("golden birds", golden.BUNDLE_ID, "224", "layer3", "layer4", "0.05", "1.2e-07", "not measured"):
        assert text in show.stdout
    document = json.loads(fieldmark("bundle", "show", "--json", copy).stdout)
    assert (document.pop("bundle_id"), document.pop("signed")) == (golden.BUNDLE_ID, False)
    assert document == json.loads((copy / "manifest.json").read_text("utf-8"))


def test_a_damaged_bundle_is_one_line_and_exit_code_1(copy: Path) -> None:
    (copy / "full/model.onnx").write_bytes(b"the full GRAPH\n")
    for verb in ("verify", "show"):
        run = fieldmark("bundle", verb, copy)
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr == (
            f"error: {copy}/full/model.onnx does not match its SHA-256 in the manifest. "
            "Fetch or export the bundle again.\n"
        )


def test_what_a_bundle_says_of_itself_is_only_text(tmp_path: Path) -> None:
    """Markup, control characters and links of the terminal arrive as they are spelt."""
    layers = ("[/]", "\x1b[31mred\x1b[0m")
    fields = golden.fields()
    network = fields["networks"]["full"]
    object.__setattr__(network, "detector", golden.detector("full", layers))
    fields |= {"name": "[bold]x[/y]", "training": {"[red]k\x07": "v\x9b2J\u2028\n[/]"}, "networks": {"full": network}}
    path = write_bundle(tmp_path / "bundle", golden.stage(tmp_path / "staged"), fields).path
    show = fieldmark("bundle", "show", path)
    assert (show.returncode, show.stderr) == (0, "")
    assert not set(show.stdout) & set("\x1b\x07\x9b\u2028")
    for text in ("[bold]x[/y]", r"[red]k\x07", r"v\x9b2J\u2028\n[/]", r" [/] ", r"\x1b[31mred"):
        assert text in show.stdout


def test_an_unprintable_path_in_a_message(tmp_path: Path) -> None:
    run = fieldmark("bundle", "verify", f"{tmp_path}/\x1b[2J\n\udcff")
    assert run.returncode == 1
    assert run.stderr.startswith(rf"error: there is no bundle at {tmp_path}/\x1b[2J\n\udcff. Make one")
    assert run.stderr.count("\n") == 1
