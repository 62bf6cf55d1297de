"""A bundle on disk: opened only when it holds exactly the files that its manifest names, byte for byte, and is signed
by the key that is asked for, if one is.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bundle import signing
from bundle.errors import BundleCorrupt, BundleMissing, ExportError, OptionError
from bundle.files import (
    atomic_file,
    atomic_folder,
    check_place,
    flush,
    open_regular,
    sha256_of,
    sha256_of_stream,
    write_text,
)
from bundle.manifest import FETCH_AGAIN, MANIFEST, MAX_PARTS, SIGNATURE, FileEntry, Manifest, parse_manifest

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_FOLDERS = 10_000


class Bundle:
    """A verified bundle. Use `Bundle.open`; attributes are read-only by convention."""

    def __init__(self, path: Path, manifest: Manifest, *, signed: bool = False, key: Path | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.bundle_id = manifest.bundle_id
        self.signed = signed  # a signature is there
        self.key = key  # the public key that it was checked with, or None

    @classmethod
    def open(cls, path: Path, *, key: Path | None = None) -> "Bundle":
        """Read the manifest, verify size and SHA-256 of every file, refuse every other file; raises BundleError.

        The public key in the file `key`, or in the one that FIELDMARK_PUBLIC_KEY names, must have signed the manifest.
        """
        return _open(path, key or signing.required_key())

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleMissing(f"{self.path}: the manifest lists no file {name!r}")
        return self.path / name

    def model(self, network: str) -> Path:
        """Path of a network's ONNX graph; raises BundleMissing when the bundle does not carry it."""
        if network not in self.manifest.networks:
            have = ", ".join(self.manifest.networks)
            raise BundleMissing(f"{self.path} carries no network {network!r}", hint=f"It carries: {have}.")
        return self.file(self.manifest.networks[network].model)


def _open(path: Path, key: Path | None) -> Bundle:
    """Without a key, signed or not: for those who write a bundle or are about to sign it."""
    try:
        if not path.is_dir():
            raise BundleMissing(f"there is no bundle at {path}", hint="Make one: fieldmark export RUN --out BUNDLE")
        data, signature = _read_manifest(path / MANIFEST), _read_signature(path / SIGNATURE)
        if key is not None:  # before anything looks into what a stranger may have written
            signing.check_signature(data, signature, key, path)
        manifest = parse_manifest(_decode(data, path / MANIFEST), str(path / MANIFEST))
        waiting = set(manifest.files)
        for name in _walk(path):
            if name in (MANIFEST, SIGNATURE):
                continue
            if name not in waiting:
                raise BundleCorrupt(
                    f"{path / name} is not listed in the manifest",
                    hint="A bundle holds nothing else: move it elsewhere, or fetch the bundle again.",
                )
            _verify(path / name, manifest.files[name])
            waiting.remove(name)
        if waiting:
            raise BundleMissing(f"{path / min(waiting)} is missing", hint=FETCH_AGAIN)
    except OSError as problem:
        raise BundleMissing(
            f"{problem.filename or path} cannot be read ({problem.strerror})", hint=FETCH_AGAIN
        ) from None
    return Bundle(path, manifest, signed=signature is not None, key=key)


def sign_bundle(path: Path, key: Path, *, replace: bool = False) -> Bundle:
    """Verify a bundle and sign its manifest with the private key in the file `key`; the id stays what it is.

    Raises OptionError for a key that cannot sign, and where there is a signature already, unless `replace`.
    """
    private = signing.read_private_key(key)
    bundle = _open(path, None)
    if bundle.signed and not replace:
        raise OptionError(f"{path} is signed already", hint="Pass --force to replace its signature.")
    check_place(path / SIGNATURE)
    signature = private.sign(bundle.manifest.to_json().encode("utf-8"))
    with atomic_file(path / SIGNATURE) as temporary:
        temporary.write_bytes(signature)
    return Bundle(path, bundle.manifest, signed=True)


def write_bundle(path: Path, staged: Path, manifest_fields: Mapping[str, object], *, replace: bool = False) -> Bundle:
    """Copy what lies in `staged` into a new bundle at `path`, whole or not at all. It is not signed.

    `manifest_fields` are Manifest's fields except `files`, which is computed here from what is staged.
    """
    files = {
        name: FileEntry(bytes=(staged / name).stat().st_size, sha256=sha256_of(staged / name))
        for name in sorted(_walk(staged))
    }
    try:
        manifest = Manifest(**manifest_fields, files=files)  # type: ignore[arg-type]
        text = manifest.to_json()
    except ValueError as problem:
        raise ExportError(f"no bundle can be written at {path}: {problem}") from None
    with atomic_folder(path, replace=replace, marker=MANIFEST) as folder:
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(staged / name, target)
            flush(target)
        write_text(folder / MANIFEST, text)
        _open(folder, None)
    return Bundle(path, manifest)


def describe(bundle: Bundle) -> str:
    """The manifest as indented JSON with the bundle id on top, for machines (`fieldmark bundle show --json`)."""
    document = {"bundle_id": bundle.bundle_id, "signed": bundle.signed, **json.loads(bundle.manifest.to_json())}
    return json.dumps(document, indent=2, ensure_ascii=False)


def _read_manifest(path: Path) -> bytes:
    try:
        with open_regular(path, follow=False) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as problem:
        raise BundleMissing(
            f"{path.parent} has no readable {MANIFEST} ({problem.strerror})",
            hint="Give the folder that 'fieldmark export' wrote.",
        ) from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleCorrupt(f"{path} is larger than {MAX_MANIFEST_BYTES:,} bytes", hint=FETCH_AGAIN)
    return data


def _read_signature(path: Path) -> bytes | None:
    try:
        with open_regular(path, follow=False) as stream:
            data = stream.read(signing.SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise BundleCorrupt(f"{path} cannot be read ({problem.strerror})", hint="Do not use this bundle.") from None
    if len(data) != signing.SIGNATURE_BYTES:
        raise BundleCorrupt(
            f"{path} is no signature: it has not {signing.SIGNATURE_BYTES} bytes",
            hint="Fetch the bundle again, or remove the file and have the bundle signed again.",
        )
    return data


def _decode(data: bytes, where: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise BundleCorrupt(
            f"{where} is not UTF-8 ({problem.reason} at byte {problem.start})", hint=FETCH_AGAIN
        ) from None


def _walk(root: Path) -> Iterator[str]:
    """Names of all files below `root`, relative and with slashes; a link or anything that is no file is refused, and so
    is a tree of folders that no manifest could need.
    """
    folders, seen = [""], 0
    while folders:
        folder, seen = folders.pop(), seen + 1
        if seen > MAX_FOLDERS:
            raise BundleCorrupt(f"{root} holds more than {MAX_FOLDERS:,} folders", hint="Do not use this bundle.")
        if folder.count("/") >= MAX_PARTS:
            raise BundleCorrupt(
                f"{root} holds folders nested more than {MAX_PARTS - 1} deep", hint="Do not use this bundle."
            )
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield name
                else:
                    kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                    raise BundleCorrupt(f"{root / name} is {kind}", hint="Do not use this bundle.")


def _verify(path: Path, entry: FileEntry) -> None:
    with open_regular(path, follow=False) as stream:
        if (size := os.fstat(stream.fileno()).st_size) != entry.bytes:
            raise BundleCorrupt(f"{path} has {size:,} bytes, and the manifest says {entry.bytes:,}", hint=FETCH_AGAIN)
        if sha256_of_stream(stream, entry.bytes + 1) != entry.sha256:
            raise BundleCorrupt(f"{path} does not match its SHA-256 in the manifest", hint=FETCH_AGAIN)
