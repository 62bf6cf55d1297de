"""What runs in a worker of a cluster: one bundle, one session, one chunk at a time."""

import functools
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.errors import ScoringError
from bundle.files import scratch
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
LEAVE_AGAIN = "Run the same command again, which leaves the bundle there anew."


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
    """All files of a bundle."""
    return (*bundle.manifest.files, *([SIGNATURE] if bundle.signed else []), MANIFEST)


def leave(bundle: Bundle, place: Place) -> None:
    """Leave a bundle's files beside the table, where every worker finds them, whenever and wherever it starts.

    Over older ones too: they may be damaged, and a bundle that is signed later, or anew, keeps its id.
    """
    for name in names_of(bundle):
        place.write(f"{BUNDLES}/{bundle.bundle_id}/{name}", (bundle.path / name).read_bytes())


def fetch(parcel: Parcel) -> LocalInference:
    """One session of the bundle that was left; it is verified in a folder that is not needed afterwards.

    Raises ScoringError where a file of it is missing, or it is another bundle.
    """
    left = f"{BUNDLES}/{parcel.begun.bundle_id}"
    with scratch("worker") as folder:
        path = folder / "bundle"
        for name in parcel.files:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(parcel.place.read(f"{left}/{name}"))
            except FileNotFoundError:
                raise ScoringError(f"{parcel.place.url}/{left} has no {name}", hint=LEAVE_AGAIN) from None
        bundle = Bundle.open(path)
        if bundle.bundle_id != parcel.begun.bundle_id:
            raise ScoringError(f"{parcel.place.url}/{left} is bundle {bundle.bundle_id[:12]}", hint=LEAVE_AGAIN)
        inference = LocalInference(bundle, threads=parcel.threads)
        spec = inference.manifest.image
        inference.infer(np.zeros((1, spec.height, spec.width, 3), np.uint8), parcel.asking.network)
    return inference


class Worker:
    """An actor of Ray. Nothing that can fail is done when it is made: Ray would take that for its death."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel

    @functools.cached_property
    def _scorer(self) -> ChunkScorer:
        parcel, inference = self.parcel, fetch(self.parcel)
        folder = None if parcel.folder is None else Source.open(parcel.folder)
        return ChunkScorer(
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
