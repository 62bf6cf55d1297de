"""The clean images that a calibration is made of, as every network of a bundle sees them.

A calibration holds for images like these, drawn one by one: a copy counts one image twice, and a damaged file may be
the very kind that the camera makes. Neither is passed over in silence.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import DatasetError, ImageError
from bundle.files import sha256_of
from bundle.progress import Work
from serving.client.prediction import Inference

BATCH = 64
NAMED = 10  # images that an error names before it counts the others
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one network says of n images: `scores` (n,), `layers` (n, columns), `predicted` classes (n,), and how many
    of them it `flagged` by the calibration that it has.
    """

    scores: npt.NDArray[np.float32]
    layers: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int64]
    flagged: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What every network says of the images at `paths`. `sha256` is the digest of the sorted digests of their files:
    the same in any order and place. `left_out` says which others there were, and why they are none, a sentence each.
    """

    networks: dict[str, Seen]
    paths: tuple[Path, ...]
    sha256: str
    left_out: tuple[str, ...]


def look(inference: Inference, paths: Sequence[Path], *, skip_bad: bool) -> Sample:
    """Decode every image once and ask every network; raises DatasetError that names those which are damaged or there
    twice, unless these are to be left out.
    """
    spec, networks = inference.manifest.image, tuple(inference.manifest.networks)
    files: dict[Path, str] = {}  # SHA-256
    known: dict[bytes, Path] = {}  # by the digest of what the networks see
    left_out: list[str] = []
    asked: dict[str, list[Seen]] = {each: [] for each in networks}
    batch: list[Images] = []

    def ask() -> None:
        if batch:
            for network in networks:
                asked[network].append(_ask(inference, network, np.stack(batch)))
        batch.clear()

    with Work("clean images", len(paths)) as work:
        for path in paths:
            work.advance()
            try:
                pixels = spec.read(path)
                file = sha256_of(path)
            except (ImageError, OSError) as problem:
                left_out.append(str(problem) if isinstance(problem, ImageError) else f"{path}: {problem.strerror}")
                continue
            digest = hashlib.sha256(pixels.tobytes()).digest()
            if digest in known:
                left_out.append(f"{path}: the same picture as {known[digest]}")
                continue
            known[digest] = path
            if left_out and not skip_bad:  # only looked at, to name all that is wrong at once
                continue
            files[path] = file
            batch.append(pixels)
            if len(batch) == BATCH:
                ask()
    if left_out and not skip_bad:
        raise DatasetError(
            f"{len(left_out):,} of {len(paths):,} images cannot be calibrated with: {'; '.join(left_out[:NAMED])}"
            + (f"; and {len(left_out) - NAMED:,} more" if len(left_out) > NAMED else ""),
            hint="Repair or remove them, or calibrate with the others: --skip-bad.",
        )
    ask()
    return Sample(
        networks={network: _joined(parts) for network, parts in asked.items()},
        paths=tuple(files),
        sha256=hashlib.sha256("".join(f"{each}\n" for each in sorted(files.values())).encode()).hexdigest(),
        left_out=tuple(left_out),
    )


def _ask(inference: Inference, network: str, images: Images) -> Seen:
    found = inference.infer(images, network)
    return Seen(
        scores=found[tensors.INSTANCE_SCORE],
        layers=found[tensors.LAYER_SCORES],
        predicted=found[tensors.PROBABILITIES].argmax(1),
        flagged=int(found[tensors.IS_ADVERSARIAL].sum()),
    )


def _joined(parts: Sequence[Seen]) -> Seen:
    if not parts:
        none = np.zeros(0, np.float32)
        return Seen(scores=none, layers=none[:, None], predicted=np.zeros(0, np.int64), flagged=0)
    return Seen(
        scores=np.concatenate([part.scores for part in parts]),
        layers=np.concatenate([part.layers for part in parts]),
        predicted=np.concatenate([part.predicted for part in parts]),
        flagged=sum(part.flagged for part in parts),
    )
