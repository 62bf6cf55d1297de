"""Copies of the bundles that are served, in a private folder: what answers is what was verified, whatever becomes of
the place that it came from, and what was served before can be served again.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from bundle import Bundle
from bundle.errors import BundleCorrupt
from bundle.files import atomic_folder, full_disk, remove_folder
from bundle.manifest import FETCH_AGAIN, MANIFEST, SIGNATURE


class Store:
    """A folder with a bundle of each id. `key` is the public key that must have signed every bundle, if any."""

    def __init__(self, folder: Path, key: Path | None) -> None:
        self.folder, self._key = folder, key
        folder.mkdir(exist_ok=True)

    def take(self, path: Path) -> Bundle:
        """Verify the bundle at `path`, copy it, verify the copy, and return that; raises BundleError or DiskFull."""
        bundle = Bundle.open(path, key=self._key)
        place = self.folder / bundle.bundle_id
        if not place.exists():
            with full_disk(place), atomic_folder(place) as folder:
                _copy(bundle, folder)
        copy = Bundle.open(place, key=self._key)
        if copy.bundle_id != bundle.bundle_id:
            raise BundleCorrupt(f"{path} became another bundle while it was read", hint=FETCH_AGAIN)
        return copy

    def keep(self, ids: Iterable[str]) -> None:
        """Remove every copy but those of these ids."""
        kept = set(ids)
        for folder in self.folder.iterdir():
            if folder.name not in kept:
                remove_folder(folder)


def _copy(bundle: Bundle, folder: Path) -> None:
    for name in (MANIFEST, *bundle.manifest.files, *((SIGNATURE,) if bundle.signed else ())):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(bundle.path / name, target)
        except FileNotFoundError as problem:
            raise BundleCorrupt(f"{problem.filename} went away while it was read", hint=FETCH_AGAIN) from None
