"""What runs in a worker of a cluster: one bundle, one session, one chunk at a time."""

import platform
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.folder import Bundle
from bundle.manifest import MANIFEST, SIGNATURE
from bundle.version import version
from scoring.answers import Asking
from scoring.sources import Source
from scoring.table.chunks import ChunkScorer
from scoring.table.fetching import Reader
from scoring.table.place import Place
from scoring.table.runs import Begun, Chunk, Inventory
from serving.client.local import LocalInference

BUNDLES = "_fieldmark/bundles"


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What a worker is given; `files` are the names of the bundle's, which it fetches from beside the table; `folder`
    is the source where it is a folder, which every node has at the same place."""

    place: Place
    begun: Begun
    inventory: Inventory
    asking: Asking
    threads: int
    files: tuple[str, ...]
    folder: Path | None


def names_of(bundle: Bundle) -> tuple[str, ...]:
    """All files of a bundle, its manifest last, which makes it whole."""
    return (*bundle.manifest.files, *([SIGNATURE] if bundle.signed else []), MANIFEST)


def leave(bundle: Bundle, place: Place) -> None:
    """Leave a bundle's files beside the table, where every worker finds them, whenever and wherever it starts."""
    folder = f"{BUNDLES}/{bundle.bundle_id}"
    if MANIFEST in place.names(folder):
        return
    for name in names_of(bundle):
        place.write(f"{folder}/{name}", (bundle.path / name).read_bytes())


def fetch(parcel: Parcel) -> LocalInference:
    """One session of the bundle that was left; it is verified in a folder that is not needed afterwards."""
    with tempfile.TemporaryDirectory(prefix="fieldmark-worker-") as folder:
        path = Path(folder) / "bundle"
        for name in parcel.files:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(parcel.place.read(f"{BUNDLES}/{parcel.begun.bundle_id}/{name}"))
        inference = LocalInference(Bundle.open(path), threads=parcel.threads)
        spec = inference.manifest.image
        inference.infer(np.zeros((1, spec.height, spec.width, 3), np.uint8), parcel.asking.network)
    return inference


class Worker:
    """An actor of Ray."""

    def __init__(self, parcel: Parcel) -> None:
        inference = fetch(parcel)
        folder = None if parcel.folder is None else Source.open(parcel.folder)
        self._scorer = ChunkScorer(
            place=parcel.place,
            begun=parcel.begun,
            inventory=parcel.inventory,
            inference=inference,
            asking=parcel.asking,
            reader=Reader(spec=inference.manifest.image, decoders=threading.Semaphore(parcel.threads)),
            on_failure=folder.check_present if folder is not None else lambda: None,
            cores=parcel.threads,  # and not all of its node, where others are at work
        )

    def versions(self) -> tuple[str, str]:
        """Fieldmark's and Python's."""
        return version(), platform.python_version()

    def score(self, number: int) -> Chunk:
        """Score one chunk and write it."""
        (chunk,) = self._scorer.score([number])
        return chunk
