"""One decoding of every image, small: which files are damaged, which pictures resemble each other, when each was taken.

A perceptual hash (imagehash's phash) is 256 bits of the low frequencies of a small grey picture. Measured on 5,421
photographs of groceries: of the pairs that differ in at most 64 bits all that were looked at show one scene, none has
two classes, and none lies across the border of the published parts; from 70 bits on, other scenes come in. A copy of
another size or quality differs in at most 40.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track

from bundle.errors import ImageError, MissingExtra
from bundle.files import open_regular, sha256_of
from bundle.image import FORMATS, ImageSpec
from training.data.index import Sample

SIDE = 64  # pixels of the small picture
HASH_SIDE = 16  # a hash has its square of bits
COPY, SCENE = 40, 64  # bits that hashes of a copy, and of the same scene, differ in at most
DETAIL = 2.0  # grey levels that a picture varies by at least; a flat one resembles every other
SPEC = ImageSpec(height=SIDE, width=SIDE)
ROWS = 512  # hashes compared with all others at once
Keys = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """By the samples' keys: why a file cannot be read, the hash of one that can (32 bytes), EXIF seconds where known."""

    bad: dict[str, str]
    hashes: dict[str, bytes]
    taken: dict[str, float]


def look(samples: Sequence[Sample], spec: ImageSpec = SPEC) -> Look:
    """Decode each sample's box once, small; `spec` has the limits."""
    try:
        import imagehash
    except ImportError as error:
        raise MissingExtra.named("training", "Looking for near copies", error) from None
    small = replace(spec, height=SIDE, width=SIDE)

    def one(sample: Sample) -> tuple[str | None, bytes | None, float | None]:
        try:
            grey = Image.fromarray(small.read(sample.path, sample.box)).convert("L")
        except ImageError as problem:
            return problem.what.removeprefix(f"{sample.path}: "), None, None
        hashed = None
        if np.asarray(grey).std() >= DETAIL:
            hashed = np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes()
        return None, hashed, _taken(sample.path)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without the interpreter's lock
        talk = Console(stderr=True)
        found = list(
            track(
                pool.map(one, samples),
                "looking at the images",
                total=len(samples),
                console=talk,
                transient=True,
                disable=not talk.is_terminal,
            )
        )
    keyed = list(zip((sample.key for sample in samples), found, strict=True))
    return Look(
        bad={key: bad for key, (bad, _, _) in keyed if bad is not None},
        hashes={key: hashed for key, (_, hashed, _) in keyed if hashed is not None},
        taken={key: taken for key, (_, _, taken) in keyed if taken is not None},
    )


def _taken(path: Path) -> float | None:
    """When the picture was taken by its EXIF data, in seconds."""
    with suppress(Exception), open_regular(path) as stream, Image.open(stream, formats=FORMATS) as image:
        details = image.getexif().get_ifd(ExifTags.IFD.Exif)
        text = details.get(ExifTags.Base.DateTimeOriginal) or details[ExifTags.Base.DateTimeDigitized]
        moment = datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=timezone.utc)
        return moment.timestamp()
    return None


def same_bytes(samples: Iterable[Sample]) -> list[Keys]:
    """Samples whose files hold the same bytes; only files of one size are read."""
    by_size: dict[int, list[Sample]] = {}
    for sample in samples:
        with suppress(OSError):
            by_size.setdefault(sample.path.stat().st_size, []).append(sample)
    by_digest: dict[str, list[str]] = {}
    for each in by_size.values():
        for sample in each if len(each) > 1 else ():
            with suppress(OSError):
                by_digest.setdefault(sha256_of(sample.path), []).append(sample.key)
    return sorted(tuple(sorted(keys)) for keys in by_digest.values() if len(keys) > 1)


def alike(hashes: Mapping[str, bytes], bits: int) -> list[Keys]:
    """Pictures whose hashes differ in at most `bits`, joined where one resembles two others."""
    keys: dict[bytes, list[str]] = {}
    for key, hashed in hashes.items():
        keys.setdefault(hashed, []).append(key)
    named = list(keys)
    pairs = [(first, other) for same in keys.values() for first, other in zip(same, same[1:], strict=False)]
    pairs += [(keys[named[i]][0], keys[named[j]][0]) for i, j in _near(named, bits)]
    return joined(pairs)


def _near(hashes: Sequence[bytes], bits: int) -> Iterator[tuple[int, int]]:
    """Pairs i < j that differ in at most `bits`: of vectors of +1 and -1, a product of matrices counts the bits."""
    if not hashes:
        return
    signs = 1 - 2 * np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1).astype(
        np.float32
    )
    least = signs.shape[1] - 2 * bits
    for start in range(0, len(signs), ROWS):
        agree = signs[start : start + ROWS] @ signs[start:].T
        for i, j in zip(*np.nonzero(agree >= least), strict=True):
            if i < j:
                yield start + int(i), start + int(j)


def joined(pairs: Iterable[tuple[str, str]]) -> list[Keys]:
    """The sets that pairs hang together in, each sorted."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        above.setdefault(key, key)
        while above[key] != key:
            above[key] = key = above[above[key]]
        return key

    for first, other in pairs:
        above[top(first)] = top(other)
    sets: dict[str, list[str]] = {}
    for key in above:
        sets.setdefault(top(key), []).append(key)
    return sorted(tuple(sorted(keys)) for keys in sets.values())
