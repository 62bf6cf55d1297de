"""manifest.sig: the same 64 bytes that OpenSSL makes and believes, and a bundle that is otherwise untouched."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from bundle import Bundle, write_bundle
from bundle.errors import BundleUntrusted, OptionError
from bundle.folder import sign_bundle
from bundle.signing import PUBLIC_KEY
from tests.bundle import golden
from tests.keys import write_keys

# The golden manifest under the Ed25519 key whose seed is 00 01 .. 1f. It changes with that manifest, and only with it.
GOLDEN_SIGNATURE = (
    "f8f484c140be771726e2e3d7e02a82e532a8468bc0f075c1ad08d27d0493d5ce"
    "705d52dac1a7d6b11cff13c717b312cc4916a2b505fb340dc9f3418bd88eb50d"
)
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The golden bundle, to be signed."""
    return Path(shutil.copytree(golden.GOLDEN, tmp_path / "bundle"))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_golden_signature(copy: Path, keys: tuple[Path, Path]) -> None:
    """Ed25519 has one signature for a key and a text, so every implementation makes these bytes."""
    sign_bundle(copy, keys[0])
    assert (copy / "manifest.sig").read_bytes().hex() == GOLDEN_SIGNATURE
    assert Bundle.open(copy, key=keys[1]).bundle_id == golden.BUNDLE_ID


@openssl
def test_openssl_believes_our_signature_and_we_believe_its(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign_bundle(copy, keys[0])
    words = ["openssl", "pkeyutl", "-rawin", "-in", copy / "manifest.json"]
    verify = [*words, "-verify", "-pubin", "-inkey", keys[1], "-sigfile", copy / "manifest.sig"]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    sign = [*words, "-sign", "-inkey", keys[0], "-out", tmp_path / "theirs.sig"]
    subprocess.run(sign, capture_output=True, check=True)
    assert (tmp_path / "theirs.sig").read_bytes() == (copy / "manifest.sig").read_bytes()
    (copy / "manifest.json").write_bytes(
        (copy / "manifest.json").read_bytes().replace(b"golden birds", b"golden BIRDS")
    )
    assert subprocess.run(verify, capture_output=True, check=False).returncode != 0
    with pytest.raises(BundleUntrusted, match="was not made by the key"):
        Bundle.open(copy, key=keys[1])


@openssl
def test_keys_that_openssl_makes(copy: Path, tmp_path: Path) -> None:
    """As docs/bundle.md says."""
    commands = (
        ("genpkey", "-algorithm", "ed25519", "-out", "private.pem"),
        ("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"),
    )
    for words in commands:
        subprocess.run(["openssl", *words], capture_output=True, check=True, cwd=tmp_path)
    sign_bundle(copy, tmp_path / "private.pem")
    assert Bundle.open(copy, key=tmp_path / "public.pem").signed


def test_signing_adds_one_file_and_touches_nothing_else(copy: Path, keys: tuple[Path, Path]) -> None:
    before = contents(copy)
    signed = sign_bundle(copy, keys[0])
    after = contents(copy)
    assert len(after.pop("manifest.sig")[0]) == 64
    assert after == before
    assert (signed.bundle_id, signed.signed) == (golden.BUNDLE_ID, True)
    found = Bundle.open(copy)
    assert (found.bundle_id, found.signed, found.key) == (golden.BUNDLE_ID, True, None)


def test_a_signature_is_replaced_only_when_that_is_said(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign_bundle(copy, keys[0])
    first = (copy / "manifest.sig").read_bytes()
    others = write_keys(tmp_path, b"\1" * 32, "other-")
    with pytest.raises(OptionError, match=r"is signed already\. Pass --force"):
        sign_bundle(copy, others[0])
    assert (copy / "manifest.sig").read_bytes() == first
    sign_bundle(copy, others[0], replace=True)
    assert Bundle.open(copy, key=others[1]).signed
    with pytest.raises(BundleUntrusted):
        Bundle.open(copy, key=keys[1])


def test_signing_is_whole_or_not_at_all(copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sign_bundle(copy, keys[0])
    before = contents(copy)

    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        sign_bundle(copy, keys[0], replace=True)
    assert contents(copy) == before, "the old signature, and no temporary file that the bundle would be refused for"


def test_a_copy_keeps_the_signature(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    sign_bundle(copy, keys[0])
    shutil.copytree(copy, tmp_path / "second")
    (tmp_path / "current").symlink_to("second")
    assert Bundle.open(tmp_path / "current", key=keys[1]).bundle_id == golden.BUNDLE_ID


def test_a_new_bundle_in_the_place_of_a_signed_one_is_not_signed(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever writes one may do so where every reader insists on a signature."""
    sign_bundle(copy, keys[0])
    monkeypatch.setenv(PUBLIC_KEY, str(keys[1]))
    write_bundle(copy, golden.stage(tmp_path / "staged"), golden.fields() | {"name": "second"}, replace=True)
    assert not (copy / "manifest.sig").exists()
    with pytest.raises(BundleUntrusted, match="is not signed"):
        Bundle.open(copy)
    sign_bundle(copy, keys[0])
    assert Bundle.open(copy).manifest.name == "second"


def test_the_environment_names_the_key_and_the_option_goes_before_it(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(copy, keys[0])
    others = write_keys(tmp_path, b"\1" * 32, "other-")
    monkeypatch.setenv(PUBLIC_KEY, "")
    assert Bundle.open(copy).key is None
    monkeypatch.setenv(PUBLIC_KEY, str(keys[1]))
    assert Bundle.open(copy).key == keys[1]
    monkeypatch.setenv(PUBLIC_KEY, str(others[1]))
    with pytest.raises(BundleUntrusted):
        Bundle.open(copy)
    assert Bundle.open(copy, key=keys[1]).key == keys[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PUBLIC_KEY, "public.pem")
    assert Bundle.open(copy).key == Path("public.pem")


def test_a_key_may_be_reached_through_a_link(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """So are the secrets of a cluster mounted."""
    for path in keys:
        (tmp_path / f"linked-{path.name}").symlink_to(path)
    sign_bundle(copy, tmp_path / "linked-private.pem")
    assert Bundle.open(copy, key=tmp_path / "linked-public.pem").signed


def test_what_the_verbs_say(
    copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")

    def said(*words: Any) -> str:
        with pytest.raises(SystemExit) as ended:
            fieldmark.main(["bundle", *map(str, words)])
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    whole = f"{copy}: 6 files, 0.0 MB, all match;"
    assert said("verify", copy) == f"{whole} not signed. id {golden.BUNDLE_ID}\n"
    assert "\nnot signed\n" in said("show", copy)
    assert '"signed": false' in said("show", copy, "--json")
    assert said("sign", copy, "--key", keys[0]) == f"{copy}: signed. id {golden.BUNDLE_ID}\n"
    unchecked = "signed (not checked: no key was given)"
    assert said("verify", copy) == f"{whole} {unchecked}. id {golden.BUNDLE_ID}\n"
    assert f"\n{unchecked}\n" in said("show", copy)
    assert '"signed": true' in said("show", copy, "--json")
    assert said("verify", copy, "--key", keys[1]) == f"{whole} signed by the key {keys[1]}. id {golden.BUNDLE_ID}\n"
    facts = json.loads(said("verify", copy, "--key", keys[1], "--json"))
    assert facts == {
        "bundle": str(copy),
        "bundle_id": golden.BUNDLE_ID,
        "files": 6,
        "bytes": sum(path.stat().st_size for path in copy.rglob("*") if path.is_file() and "manifest" not in path.name),
        "signed": True,
        "signed_by": str(keys[1]),
    }
    monkeypatch.setenv(PUBLIC_KEY, os.fspath(keys[1]))
    assert f"\nsigned by the key {keys[1]}\n" in said("show", copy)
    said("sign", copy, "--key", keys[0], "--force")
