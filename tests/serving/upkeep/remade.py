"""A bundle made another one: other facts in its manifest, or another file, with every checksum right."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.manifest import MANIFEST, FileEntry


def remade(bundle: Bundle, path: Path, *, files: dict[str, bytes] | None = None, **fields: Any) -> Path:
    """A copy of `bundle` at `path` with other `files` and other `fields` of its manifest."""
    shutil.copytree(bundle.path, path)
    entries = dict(bundle.manifest.files)
    for name, data in (files or {}).items():
        (path / name).write_bytes(data)
        entries[name] = FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = dataclasses.replace(bundle.manifest, files=entries, **fields)
    (path / MANIFEST).write_text(manifest.to_json())
    return path
