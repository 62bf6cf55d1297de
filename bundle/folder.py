"""A bundle on disk: opened only when it holds exactly the files that its manifest names, byte for byte."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bundle.errors import BundleCorrupt, BundleMissing, ExportError
from bundle.files import atomic_folder, flush, open_regular, sha256_of, write_text
from bundle.manifest import AGAIN, MANIFEST, FileEntry, Manifest, parse_manifest

MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class Bundle:
    """A verified bundle. Use `Bundle.open`; attributes are read-only by convention."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.bundle_id = manifest.bundle_id

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Read the manifest, verify size and SHA-256 of every file, refuse every other file; raises BundleError."""
        try:
            if not path.is_dir():
                raise BundleMissing(f"there is no bundle at {path}", hint="Make one: fieldmark export RUN --out BUNDLE")
            manifest = parse_manifest(_read_manifest(path / MANIFEST), str(path / MANIFEST))
            waiting = set(manifest.files)
            for name in _walk(path):
                if name == MANIFEST:
                    continue
                if name not in waiting:
                    raise BundleCorrupt(
                        f"{path / name} is not listed in the manifest",
                        hint="A bundle holds nothing else: move it elsewhere, or fetch the bundle again.",
                    )
                _verify(path / name, manifest.files[name])
                waiting.remove(name)
            if waiting:
                raise BundleMissing(f"{path / min(waiting)} is missing", hint=AGAIN)
        except OSError as problem:
            raise BundleMissing(f"{problem.filename or path} cannot be read ({problem.strerror})", hint=AGAIN) from None
        return cls(path, manifest)

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


def write_bundle(path: Path, staged: Path, manifest_fields: Mapping[str, object], *, replace: bool = False) -> Bundle:
    """Copy what lies in `staged` into a new bundle at `path`, whole or not at all.

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
        Bundle.open(folder)
    return Bundle(path, manifest)


def describe(bundle: Bundle) -> str:
    """The manifest as indented JSON with the bundle id on top, for machines (`fieldmark bundle show --json`)."""
    document = {"bundle_id": bundle.bundle_id, **json.loads(bundle.manifest.to_json())}
    return json.dumps(document, indent=2, ensure_ascii=False)


def _read_manifest(path: Path) -> str:
    try:
        with open_regular(path, follow=False) as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as problem:
        raise BundleMissing(
            f"{path.parent} has no readable {MANIFEST} ({problem.strerror})",
            hint="Give the folder that 'fieldmark export' wrote.",
        ) from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleCorrupt(f"{path} is larger than {MAX_MANIFEST_BYTES:,} bytes", hint=AGAIN)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise BundleCorrupt(f"{path} is not UTF-8 ({problem.reason} at byte {problem.start})", hint=AGAIN) from None


def _walk(root: Path) -> Iterator[str]:
    """Names of all files below `root`, relative and with slashes; a link or anything that is no file is refused."""
    folders = [""]
    while folders:
        folder = folders.pop()
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
    if (size := path.stat(follow_symlinks=False).st_size) != entry.bytes:
        raise BundleCorrupt(f"{path} has {size:,} bytes, and the manifest says {entry.bytes:,}", hint=AGAIN)
    if sha256_of(path) != entry.sha256:
        raise BundleCorrupt(f"{path} does not match its SHA-256 in the manifest", hint=AGAIN)
