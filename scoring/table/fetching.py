"""An object's bytes, however unwilling its store is: a few tries, each after a longer pause, and then a sentence.

Many threads may wait for stores; as few decode at a time as there are cores for it.
"""

import os
import threading
import time
from dataclasses import dataclass, field

from bundle.errors import FieldmarkError, ImageError, MissingExtra
from bundle.image import ImageSpec
from bundle.places import scheme_of, store_url
from scoring.answers import Pixels, Unfetched, read_file
from scoring.sources import SourceFile
from scoring.table.place import filesystem, reached

PAUSES = (0.5, 2.0, 8.0, 20.0)  # seconds before an object is asked for again


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads files of this machine and objects of stores as images of one spec. `decoders` are the permits to decode at
    the same time: one a core, unless given."""

    spec: ImageSpec
    pauses: tuple[float, ...] = field(default=PAUSES)
    decoders: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(len(os.sched_getaffinity(0))))

    def __call__(self, file: SourceFile) -> "Pixels | str":
        """The image, or the sentence why there is none."""
        try:
            if file.problem:
                return file.problem
            if not scheme_of(file.location):
                with self.decoders:
                    return read_file(self.spec, file)
            if file.size is not None and file.size > self.spec.max_bytes:
                return f"{file.location}: the file has more than the limit of {self.spec.max_bytes:,} bytes"
            data = self._fetched(file)
            return data if isinstance(data, str) else self._decoded(file, data)
        except ImageError as problem:
            return str(problem)

    def _decoded(self, file: SourceFile, data: bytes) -> Pixels:
        try:
            with self.decoders:
                return self.spec.decode(data)
        except ImageError as problem:
            raise ImageError(f"{file.location}: {problem.what}", hint=problem.hint) from None

    def _fetched(self, file: SourceFile) -> bytes | str:
        """The whole object: one of another size than it was listed with is asked for once more, since a connection that
        breaks looks so."""
        said = ""
        try:
            store = filesystem(scheme_of(file.location))
        except MissingExtra:  # of which every object of the kind would tell
            raise
        except FieldmarkError as problem:
            return Unfetched(f"{file.location}: {problem.what}")
        for pause in (0.0, *self.pauses):
            time.sleep(pause)
            try:
                data: bytes = reached(file.location, lambda: store.cat_file(store_url(file.location)))
            except FieldmarkError as problem:
                said = problem.what
                continue
            if file.size in (None, len(data)):
                return data
            said = f"{file.location} came with {len(data):,} bytes, and was listed with {file.size:,}"
        return Unfetched(f"{said}, {len(self.pauses) + 1} times")
