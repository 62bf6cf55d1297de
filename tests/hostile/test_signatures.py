"""Forged bundles, wrong keys and what is no key at all: one sentence each, for every verb that opens a bundle."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import Bundle
from bundle.errors import BundleCorrupt, BundleUntrusted, OptionError
from bundle.folder import sign_bundle
from bundle.signing import PUBLIC_KEY
from serving.triton import container
from tests.bundle import golden
from tests.hostile.test_cli import COMMANDS, Run
from tests.keys import SEED, pem, write_keys

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("bundle", "detector", "training", "robustness", "export", "serving", "demo", "fieldmark.py")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path)


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """The golden bundle, signed; to be damaged."""
    copy = Path(shutil.copytree(golden.GOLDEN, tmp_path / "bundle"))
    sign_bundle(copy, keys[0])
    return copy


# manifest.sig


def link_to_the_same(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere.sig")
    path.symlink_to(path.parent.parent / "elsewhere.sig")


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def enormous(path: Path) -> None:
    os.truncate(path, 2**40)


SIGNATURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (link_to_the_same, r"manifest\.sig cannot be read \(not a regular file\)"),
    "a dangling link": (dangling_link, r"manifest\.sig cannot be read \(not a regular file\)"),
    "a pipe": (pipe, r"manifest\.sig cannot be read \(not a regular file\)"),
    "a folder": (folder, r"manifest\.sig cannot be read \(not a regular file\)"),
    "one terabyte": (enormous, r"manifest\.sig is no signature: it has not 64 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "it has not 64 bytes"),
    "63 bytes": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it has not 64 bytes"),
    "65 bytes": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "it has not 64 bytes"),
    "hexadecimal": (lambda path: path.write_text(path.read_bytes().hex()), "it has not 64 bytes"),
}


@pytest.mark.parametrize("way", SIGNATURES)
def test_signatures_that_are_none_are_refused_whoever_asks(signed: Path, keys: tuple[Path, Path], way: str) -> None:
    damage, sentence = SIGNATURES[way]
    damage(signed / "manifest.sig")
    for key in (None, keys[1]):
        with pytest.raises(BundleCorrupt, match=sentence):
            Bundle.open(signed, key=key)
    with pytest.raises(BundleCorrupt, match=sentence):
        sign_bundle(signed, keys[0], replace=True)


@pytest.mark.parametrize("path", ["manifest.sig", "manifest.sig/x"])
def test_the_manifest_cannot_list_its_signature(signed: Path, path: str) -> None:
    document = json.loads((signed / "manifest.json").read_text("utf-8"))
    document["files"][path] = {"bytes": 64, "sha256": "0" * 64}
    remake(signed, document)
    with pytest.raises(BundleCorrupt, match=r"unsafe path 'manifest\.sig"):
        Bundle.open(signed)


def test_a_signature_elsewhere_is_a_stray_file(signed: Path) -> None:
    shutil.copyfile(signed / "manifest.sig", signed / "full" / "manifest.sig")
    with pytest.raises(BundleCorrupt, match=r"full/manifest\.sig is not listed"):
        Bundle.open(signed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from(["manifest.json", "manifest.sig"]))
def test_every_flipped_bit_of_manifest_or_signature_is_seen(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, name: str
) -> None:
    home = tmp_path_factory.getbasetemp() / "flipped"
    if not home.exists():
        home.mkdir()
        sign_bundle(Path(shutil.copytree(golden.GOLDEN, home / "bundle")), write_keys(home)[0])
    path = home / "bundle" / name
    data = bytearray(whole := path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        with pytest.raises(BundleUntrusted, match="was not made by the key"):
            Bundle.open(home / "bundle", key=home / "public.pem")
    finally:
        path.write_bytes(whole)
    Bundle.open(home / "bundle", key=home / "public.pem")


def test_a_signature_of_one_bundle_is_none_of_another(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    document = json.loads((signed / "manifest.json").read_text("utf-8"))
    remake(signed, document | {"name": "another"})
    assert Bundle.open(signed).manifest.name == "another", "checksums alone cannot tell"
    with pytest.raises(BundleUntrusted, match=r"was not made by the key .*public\.pem for this manifest\. Do not use"):
        Bundle.open(signed, key=keys[1])


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "manifest.sig").unlink()
    (signed / "full/model.onnx").write_bytes(b"the full GRAPH\n")
    with pytest.raises(BundleCorrupt, match="does not match its SHA-256"):
        sign_bundle(signed, keys[0])
    assert not (signed / "manifest.sig").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_bundle_that_cannot_be_written_to(signed: Path, keys: tuple[Path, Path]) -> None:
    signed.chmod(0o555)
    with pytest.raises(OptionError, match="cannot be written to"):
        sign_bundle(signed, keys[0], replace=True)


# What is no key

PRIVATE = Ed25519PrivateKey.from_private_bytes(SEED)
ENCRYPTED = PRIVATE.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
)
OPENSSH = PRIVATE.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
)
DER = PRIVATE.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
NO_PRIVATE = {
    "encrypted": (ENCRYPTED, "is encrypted. Decrypt it first: openssl pkey"),
    "RSA": (pem(RSA), r"is a key of another kind \(RSA\), and bundles are signed with Ed25519"),
    "Ed448": (pem(ed448.Ed448PrivateKey.generate()), r"another kind \(Ed448\)"),
    "X25519": (pem(x25519.X25519PrivateKey.generate()), r"another kind \(X25519\)"),
    "P-256": (pem(ec.generate_private_key(ec.SECP256R1())), "another kind"),
    "public": (pem(PRIVATE.public_key()), "is a public key, and only its private key can sign"),
    "OpenSSH's format": (OPENSSH, "is no private key in PEM form"),
    "DER": (DER, "is no private key in PEM form"),
    "cut": (pem(PRIVATE)[:60], "is no private key in PEM form"),
    "empty": (b"", "is no private key in PEM form. Make one with: openssl genpkey"),
    "zeros": (bytes(1000), "is no private key in PEM form"),
}
NO_PUBLIC = {
    "private": (pem(PRIVATE), "is a private key, and its public key is asked for"),
    "RSA": (pem(RSA.public_key()), r"is a key of another kind \(RSA\)"),
    "Ed448": (pem(ed448.Ed448PrivateKey.generate().public_key()), r"another kind \(Ed448\)"),
    "cut": (pem(PRIVATE.public_key())[:60], "is no public key in PEM form"),
    "empty": (b"", "is no public key in PEM form"),
    "a certificate of nothing": (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no public key"),
}


@pytest.mark.parametrize("way", NO_PRIVATE)
def test_keys_that_cannot_sign(tmp_path: Path, way: str) -> None:
    data, sentence = NO_PRIVATE[way]
    (tmp_path / "key.pem").write_bytes(data)
    copy = Path(shutil.copytree(golden.GOLDEN, tmp_path / "bundle"))
    with pytest.raises(OptionError, match=rf"key\.pem {sentence}|key\.pem is a .*{sentence}"):
        sign_bundle(copy, tmp_path / "key.pem")
    assert not (copy / "manifest.sig").exists()


@pytest.mark.parametrize("way", NO_PUBLIC)
@pytest.mark.parametrize("named", ["option", "environment"])
def test_keys_that_cannot_verify(signed: Path, named: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that cannot be used is an error, and no reason to do without."""
    data, sentence = NO_PUBLIC[way]
    key = signed.parent / "key.pem"
    key.write_bytes(data)
    if named == "environment":
        monkeypatch.setenv(PUBLIC_KEY, str(key))
    with pytest.raises(OptionError, match=sentence):
        Bundle.open(signed, key=key if named == "option" else None)


def pipe_without_writer(path: Path) -> None:
    os.mkfifo(path)


def huge_key(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, r"there is no key at .*key\.pem\. "),
    "a folder": (Path.mkdir, r"the key .*key\.pem cannot be read \(not a regular file\)"),
    "a pipe": (pipe_without_writer, r"the key .*key\.pem cannot be read \(not a regular file\)"),
    "a link in a circle": (lambda path: path.symlink_to("key.pem"), r"the key .*key\.pem cannot be read \("),
    "one terabyte": (huge_key, r"key\.pem has more than 65,536 bytes, so it is no key"),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_that_hold_no_key(signed: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, sentence = PLACES[place]
    key = signed.parent / "key.pem"
    make(key)
    with pytest.raises(OptionError, match=sentence):
        sign_bundle(signed, key, replace=True)
    with pytest.raises(OptionError, match=sentence):
        Bundle.open(signed, key=key)
    monkeypatch.setenv(PUBLIC_KEY, str(key))
    with pytest.raises(OptionError, match=sentence):
        Bundle.open(signed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(place=st.integers(0, 300), new=st.binary(max_size=3), cut=st.integers(0, 3), private=st.booleans())
def test_any_damage_to_a_key_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, place: int, new: bytes, cut: int, private: bool
) -> None:
    home = tmp_path_factory.getbasetemp() / "damaged-keys"
    if not home.exists():
        home.mkdir()
        sign_bundle(Path(shutil.copytree(golden.GOLDEN, home / "bundle")), write_keys(home)[0])
    data = pem(PRIVATE if private else PRIVATE.public_key())
    (home / "key.pem").write_bytes(data[:place] + new + data[place + cut :])
    try:
        if private:
            sign_bundle(home / "bundle", home / "key.pem", replace=True)
        else:
            Bundle.open(home / "bundle", key=home / "key.pem")
    except (OptionError, BundleUntrusted):
        pass
    sign_bundle(home / "bundle", home / "private.pem", replace=True)


# Every verb


def remake(folder: Path, document: dict) -> None:
    """Write a manifest as a forger would: canonical, every checksum right."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, "utf-8")


@pytest.fixture
def forged(toy_bundle: Bundle, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed bundle whose labels were exchanged and whose manifest was made again, the old signature beside it."""
    path = Path(shutil.copytree(toy_bundle.path, tmp_path / "forged"))
    sign_bundle(path, keys[0])
    document = json.loads((path / "manifest.json").read_text("utf-8"))
    document["labels"] = document["labels"][::-1]
    remake(path, document)
    assert Bundle.open(path).manifest.labels == toy_bundle.manifest.labels[::-1], "without a key nobody can tell"
    return path


def takes_a_bundle(command) -> bool:
    return any("BUNDLE" in (each.metavar or "") for each in command.params)


OPENERS = {name: each for name, each in COMMANDS.items() if takes_a_bundle(each[1])}
OPENERS.pop("bundle sign")  # it makes the signature that the others ask for


CHOICES = {
    "--runtime": "tensorrt-rtx",
    "--target": "sm_86",
    "--profile": "1:1:1",
}  # what is looked at before any bundle


def filled(name: str, bundle: Path, tmp: Path, run: Path) -> list[str | Path]:
    """A command line of a verb that opens `bundle`; what else is required is a choice, or a place where nothing is."""
    words, command = OPENERS[name]
    line: list[str | Path] = list(words)
    for each in command.params:
        value = bundle if "BUNDLE" in (each.metavar or "") else tmp / "nothing"
        if each.param_type_name == "argument":
            line.append(value)
        elif each.required or value == bundle:
            line += [each.opts[0], CHOICES.get(each.opts[0], value)]
    one_of = {"evaluate": ("--run", run), "score": ("--out", tmp / "nothing"), "calibrate": ("--with", tmp / "clean")}
    return [*line, *one_of.get(name, ())]


def test_the_verbs_that_open_a_bundle_are_found() -> None:
    known = {"bundle show", "bundle verify", "serve", "classify", "score", "drift", "evaluate", "engine", "repository"}
    assert known <= set(OPENERS)


@pytest.mark.parametrize("name", OPENERS)
def test_no_verb_opens_a_forged_or_an_unsigned_bundle(
    name: str,
    forged: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = request.getfixturevalue("tiny_run") if name == "evaluate" else tmp_path
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv(PUBLIC_KEY, str(keys[1]))
    line = filled(name, forged, tmp_path, trained)
    run = Run(capsys, *line)
    assert run.code == 1
    assert run.err.startswith(f"error: the signature of {forged} was not made by the key {keys[1]} for this manifest. ")
    (forged / "manifest.sig").unlink()
    run = Run(capsys, *line)
    assert run.code == 1
    assert run.err.startswith(f"error: {forged} is not signed, and a signature by the key {keys[1]} is required. ")
    monkeypatch.setenv(PUBLIC_KEY, str(tmp_path / "gone.pem"))
    run = Run(capsys, *line)
    assert run.code == 2
    assert run.err.startswith(f"error: there is no key at {tmp_path}/gone.pem. ")
    assert run.err.count("\n") == 1


def test_the_container_starts_nothing(
    forged: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PUBLIC_KEY, str(keys[1]))
    with pytest.raises(SystemExit) as ended:
        container.main([str(forged)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: the signature of {forged} was not made by the key")


def test_nobody_goes_round_the_policy() -> None:
    """A bundle comes into being in bundle/folder.py alone, where the policy is; so no verb can forget it."""
    inside = ROOT / "bundle" / "folder.py"
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")) or [ROOT / room]]
    assert inside in files
    for file in set(files) - {inside}:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert not (isinstance(node.func, ast.Name) and node.func.id == "Bundle"), f"{file} makes a Bundle"
            if isinstance(node, ast.ImportFrom) and node.module == "bundle.folder":
                assert {each.name for each in node.names} <= {"Bundle", "describe", "sign_bundle", "write_bundle"}


WITHOUT = "import sys; sys.modules['cryptography'] = None; import fieldmark; fieldmark.main(sys.argv[1:])"


@pytest.mark.parametrize(
    ("words", "named", "need"),
    [
        (("sign", "{bundle}", "--key", "{private}"), "", "signing a bundle"),
        (("verify", "{bundle}", "--key", "{public}"), "", "checking a bundle's signature"),
        (("show", "{bundle}"), "{public}", "checking a bundle's signature"),
    ],
)
def test_without_cryptography(signed: Path, keys: tuple[Path, Path], words, named: str, need: str) -> None:
    places = {"bundle": signed, "private": keys[0], "public": keys[1]}
    filled = [word.format(**places) for word in words]
    environment = os.environ | {PUBLIC_KEY: named.format(**places)}
    command = [sys.executable, "-c", WITHOUT, "bundle", *filled]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (run.returncode, run.stdout) == (3, "")
    assert run.stderr.startswith(f"error: {need} needs the 'signing' extra (cryptography")
    assert run.stderr.endswith("is not installed). Install it with: pip install '.[signing]'\n")
    assert run.stderr.count("\n") == 1


def test_without_cryptography_and_without_a_key_nothing_is_missed(signed: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "bundle", "verify", str(signed)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
