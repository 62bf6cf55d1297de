"""Write the built-in birds in CUB-200-2011's own on-disk format: same files, 1-based ids, same number formats.

The folder exists whole or not at all, and its content depends on what is wanted alone, not on the number of workers.
"""

import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from bundle.errors import FieldmarkError, OptionError
from bundle.files import atomic_folder
from bundle.signals import signals_postponed
from training.data.birds import MAX_SIZE, MIN_SIZE, PARTS, draw_bird
from training.data.species import MARKS, MAX_SPECIES, MIN_SPECIES, Species, all_species

_CHUNK = 16  # images a task: small enough for a smooth progress bar, large enough to hide the cost of a task

Tick = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class BirdSet:
    """What to draw. `images_train` and `images_test` count images a species; `size` is a bird's side in pixels."""

    species: int = 20
    size: int = 64
    images_train: int = 210
    images_test: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("species", MIN_SPECIES, MAX_SPECIES),
            ("size", MIN_SIZE, MAX_SIZE),
            ("images_train", 4, 100_000),
            ("images_test", 1, 100_000),
            ("seed", 0, 2**32 - 1),
        ):
            value, option = getattr(self, name), "--" + name.replace("_", "-")
            if not low <= value <= high:
                raise OptionError(
                    f"{option} {value} is out of range", hint=f"Choose a whole number from {low} to {high}."
                )

    @property
    def images(self) -> int:
        """Images in the whole set."""
        return self.species * (self.images_train + self.images_test)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What the index files say of one image."""

    file: str
    is_train: bool
    box: tuple[int, int, int, int]
    parts: dict[str, tuple[int, int]]


def write_birds(
    folder: Path, wanted: BirdSet, *, workers: int = 1, force: bool = False, tick: Tick | None = None
) -> None:
    """Draw a whole set into `folder`; `tick` hears how many more images are done.

    With more than one worker the drawing runs in fresh processes, so a script that calls this needs the usual
    `if __name__ == "__main__":` guard.
    """
    if workers < 1:
        raise OptionError(f"--workers {workers} is out of range", hint="Choose 1 or more, or leave it out.")
    if force:
        _refuse_to_replace_strangers(folder)
    chosen = all_species()[: wanted.species]
    with atomic_folder(folder, replace=force) as temporary:
        for number, species in enumerate(chosen, start=1):
            (temporary / "images" / _class_folder(number, species)).mkdir(parents=True)
        drawn = _draw_all(temporary, wanted, workers, tick or (lambda _: None))
        _write_index(temporary, wanted, chosen, drawn)


def _refuse_to_replace_strangers(folder: Path) -> None:
    """`--force` replaces an earlier set, never a folder that holds something else."""
    if folder.exists() and not (folder.is_dir() and ((folder / "classes.txt").is_file() or not any(folder.iterdir()))):
        raise OptionError(
            f"{folder} is not a set of birds, so --force does not replace it", hint="Choose another folder."
        )


def _draw_all(folder: Path, wanted: BirdSet, workers: int, tick: Tick) -> list[_Drawn]:
    per_species = wanted.images_train + wanted.images_test
    tasks = [
        (number, range(first, min(first + _CHUNK, per_species + 1)))
        for number in range(1, wanted.species + 1)
        for first in range(1, per_species + 1, _CHUNK)
    ]
    if workers == 1:
        drawn = []
        for number, images in tasks:
            drawn += _draw_some(folder, wanted, number, images)
            tick(len(images))
        return drawn
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=get_context("spawn"), initializer=_die_with_the_parent
    ) as pool:
        try:
            with _signals_wait():
                futures: list[Future[list[_Drawn]]] = [pool.submit(_draw_some, folder, wanted, *task) for task in tasks]
            for future in as_completed(futures):
                tick(len(future.result()))
        except BrokenProcessPool:
            raise FieldmarkError("a drawing process died", hint="Free some memory, or pass --workers 1.") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [image for future in futures for image in future.result()]


def _draw_some(folder: Path, wanted: BirdSet, number: int, images: range) -> list[_Drawn]:
    """Draw some images of species `number` (from 1); runs in any process, in any order."""
    species = all_species()[number - 1]
    drawn = []
    for image in images:
        picture = draw_bird(species, size=wanted.size, rng=np.random.default_rng([wanted.seed, number, image]))
        file = f"{_class_folder(number, species)}/{species.name}_{image:04d}.jpg"
        jpeg = io.BytesIO()  # encoded in memory, so that a full disk is reported as a full disk
        picture.image.save(jpeg, format="JPEG", quality=95, subsampling=0)
        (folder / "images" / file).write_bytes(jpeg.getvalue())
        drawn.append(_Drawn(file=file, is_train=image <= wanted.images_train, box=picture.box, parts=picture.parts))
    return drawn


def _die_with_the_parent() -> None:
    """A worker waits for work for ever, also when its parent was killed; so it watches the parent, too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait while workers are born: a parent that goes away then leaves them half a letter to read.

    Workers are born with both blocked, and unblock only SIGTERM: Ctrl-C reaches the whole group of processes, and only
    the parent answers it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals_postponed():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what came in between is heard here


def _write_index(folder: Path, wanted: BirdSet, chosen: tuple[Species, ...], drawn: list[_Drawn]) -> None:
    per_species = wanted.images_train + wanted.images_test
    numbered = list(enumerate(drawn, start=1))
    (folder / "parts").mkdir()
    files = {
        "classes.txt": [f"{number} {_class_folder(number, species)}" for number, species in enumerate(chosen, start=1)],
        "images.txt": [f"{i} {image.file}" for i, image in numbered],
        "image_class_labels.txt": [f"{i} {(i - 1) // per_species + 1}" for i, _ in numbered],
        "train_test_split.txt": [f"{i} {int(image.is_train)}" for i, image in numbered],
        "bounding_boxes.txt": [f"{i} " + " ".join(f"{side:.1f}" for side in image.box) for i, image in numbered],
        "parts/parts.txt": [f"{part} {name}" for part, name in enumerate(PARTS, start=1)],
        "parts/part_locs.txt": [
            f"{i} {part} " + ("{:.1f} {:.1f} 1".format(*image.parts[name]) if name in image.parts else "0.0 0.0 0")
            for i, image in numbered
            for part, name in enumerate(PARTS, start=1)
        ],
        "README.txt": _readme(wanted, chosen),
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _readme(wanted: BirdSet, chosen: tuple[Species, ...]) -> list[str]:
    lines = [
        "These birds are synthetic: drawn by `fieldmark data make`, no photograph and no real species among them.",
        "The files follow the on-disk format of CUB-200-2011.",
        "",
        f"species       {wanted.species}",
        f"size          {wanted.size}   (longer side of a bird's box in pixels, roughly)",
        f"images-train  {wanted.images_train}   (each species)",
        f"images-test   {wanted.images_test}   (each species)",
        f"seed          {wanted.seed}",
        "",
        "All species share body, pose, colours and background. They differ only in these field marks:",
        "",
    ]
    rows = [["species", *MARKS], *([species.name, *species.marks.values()] for species in chosen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines


def _class_folder(number: int, species: Species) -> str:
    return f"{number:03d}.{species.name}"
