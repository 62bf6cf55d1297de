"""A bundle on disk: opened only when every file is the one the manifest names."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bundle.errors import BundleCorrupt, BundleMissing
from bundle.files import atomic_folder, sha256_of, write_text
from bundle.manifest import AGAIN, FileEntry, Manifest, parse_manifest

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024


class Bundle:
    """A verified bundle. Use `Bundle.open`; attributes are read-only by convention."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.bundle_id = manifest.bundle_id

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Read the manifest and verify size and SHA-256 of every file; raises BundleError."""
        manifest_path = path / MANIFEST
        if not path.is_dir():
            raise BundleMissing(f"there is no bundle at {path}", hint="Make one: fieldmark export RUN --out BUNDLE")
        if not manifest_path.is_file():
            raise BundleMissing(f"{path} has no {MANIFEST}", hint="Give the folder that 'fieldmark export' wrote.")
        if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleCorrupt(f"{manifest_path} is larger than {MAX_MANIFEST_BYTES:,} bytes")
        try:
            text = manifest_path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as problem:
            raise BundleCorrupt(f"{manifest_path} is not UTF-8 ({problem.reason} at byte {problem.start})") from None
        manifest = parse_manifest(text, str(manifest_path))
        for name, entry in manifest.files.items():
            _verify(path, name, entry)
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
    """Move what lies in `staged` into a new bundle at `path`, whole or not at all.

    `manifest_fields` are Manifest's fields except `files`, which is computed here from what is staged.
    """
    files = {
        file.relative_to(staged).as_posix(): FileEntry(bytes=file.stat().st_size, sha256=sha256_of(file))
        for file in sorted(staged.rglob("*"))
        if file.is_file()
    }
    manifest = Manifest(**manifest_fields, files=files)  # type: ignore[arg-type]
    with atomic_folder(path, replace=replace) as folder:
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((staged / name).read_bytes())
        write_text(folder / MANIFEST, manifest.to_json())
        Bundle.open(folder)
    return Bundle(path, manifest)


def describe(bundle: Bundle) -> str:
    """The manifest as indented JSON with the bundle id on top, for machines (`fieldmark bundle show --json`)."""
    document = {"bundle_id": bundle.bundle_id, **json.loads(bundle.manifest.to_json())}
    return json.dumps(document, indent=2, ensure_ascii=False)


def _verify(root: Path, name: str, entry: FileEntry) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or name == MANIFEST:
        raise BundleCorrupt(f"{root}: the manifest names an unsafe path {name!r}", hint="Do not use this bundle.")
    path = root.joinpath(*parts)
    if any(part.is_symlink() for part in (path, *path.parents) if part != root and root in part.parents):
        raise BundleCorrupt(f"{path} is a link", hint="Do not use this bundle.")
    if not path.is_file():
        raise BundleMissing(f"{path} is missing", hint=AGAIN)
    if (size := path.stat().st_size) != entry.bytes:
        raise BundleCorrupt(f"{path} has {size:,} bytes, and the manifest says {entry.bytes:,}", hint=AGAIN)
    if sha256_of(path) != entry.sha256:
        raise BundleCorrupt(f"{path} does not match its SHA-256 in the manifest", hint=AGAIN)
