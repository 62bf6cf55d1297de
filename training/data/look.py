"""One decoding of every image, small: which files are damaged, which pictures resemble each other, when each was taken.

A perceptual hash (imagehash's phash) is 256 bits of the low frequencies of a small grey picture. Measured on 5,421
photographs of groceries: of the pairs that differ in at most 64 bits all that were looked at show one scene, none has
two classes, and none lies across the border of the published parts; from 70 bits on, other scenes come in. A copy of
another size or quality differs in at most 40. Drawings of one style resemble each other in these frequencies alone, so
the colours of a copy must agree as well (real copies differ by up to 8 of 255 levels, drawn birds by 11 and more).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from bundle.errors import ImageError, MissingExtra
from bundle.files import open_regular, sha256_of
from bundle.image import FORMATS, ImageSpec
from bundle.progress import Work
from training.data.index import Sample

SIDE = 64  # pixels of the small picture
HASH_SIDE, COLOURS = 16, 8
HASH_BYTES = HASH_SIDE**2 // 8
COPY, SCENE = 40, 64  # bits that hashes of a copy, and of the same scene, differ in at most
SAME_COLOURS = 9.0  # levels of 255 by which the colours of a copy differ on average
DETAIL = 2.0  # grey levels that a picture varies by at least; a flat one resembles every other
SPEC = ImageSpec(height=SIDE, width=SIDE)
ROWS = 512  # hashes compared with all others at once
Keys = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """By the samples' keys: why a file cannot be read, else its fingerprint, and its EXIF time in seconds."""

    bad: dict[str, str]
    prints: dict[str, bytes]
    taken: dict[str, float]


def look(samples: Sequence[Sample], spec: ImageSpec = SPEC, *, hashed: bool = True) -> Look:
    """Decode each sample's box once, small; `spec` has the limits. Without `hashed` only for what is bad."""
    small = replace(spec, height=SIDE, width=SIDE)

    def one(sample: Sample) -> tuple[str | None, bytes | None, float | None]:
        try:
            pixels = small.read(sample.path, sample.box)
        except ImageError as problem:
            return problem.what.removeprefix(f"{sample.path}: "), None, None
        return (None, _print(pixels), _taken(sample.path)) if hashed else (None, None, None)

    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, Work("looking at the images", len(samples)) as work:
        found = []
        for each in pool.map(one, samples):
            found.append(each)
            work.advance()
    keyed = list(zip((sample.key for sample in samples), found, strict=True))
    return Look(
        bad={key: bad for key, (bad, _, _) in sorted(keyed) if bad is not None},
        prints={key: bits for key, (_, bits, _) in keyed if bits is not None},
        taken={key: taken for key, (_, _, taken) in keyed if taken is not None},
    )


def _print(pixels: npt.NDArray[np.uint8]) -> bytes | None:
    """The fingerprint of [SIDE, SIDE, 3]: HASH_BYTES of hash, then mean colours of COLOURS x COLOURS fields. None of a
    picture without detail.
    """
    try:
        import imagehash
    except ImportError as error:
        raise MissingExtra.named("training", "Looking for near copies", error) from None
    grey = Image.fromarray(pixels).convert("L")
    if np.asarray(grey).std() < DETAIL:
        return None
    hashed = np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes()
    return hashed + Image.fromarray(pixels).resize((COLOURS, COLOURS), Image.Resampling.BOX).tobytes()


def _taken(path: Path) -> float | None:
    """When the picture was taken by its EXIF data, in seconds."""
    with suppress(Exception), open_regular(path) as stream, Image.open(stream, formats=FORMATS) as image:
        details = image.getexif().get_ifd(ExifTags.IFD.Exif)
        text = details.get(ExifTags.Base.DateTimeOriginal) or details[ExifTags.Base.DateTimeDigitized]
        moment = datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
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


def alike(prints: Mapping[str, bytes], bits: int, levels: float = 255.0) -> list[Keys]:
    """Pictures whose hashes differ in at most `bits` and whose colours in at most `levels` on average; joined where one
    resembles two others.
    """
    keys: dict[bytes, list[str]] = {}
    for key, fingerprint in prints.items():
        keys.setdefault(fingerprint, []).append(key)
    pairs = [pair for same in keys.values() for pair in pairwise(same)]
    first = [same[0] for same in keys.values()]
    pairs += [(first[i], first[j]) for i, j in _near(list(keys), bits, levels)]
    return joined(pairs)


def _near(prints: Sequence[bytes], bits: int, levels: float) -> list[tuple[int, int]]:
    """Pairs i < j of near prints: of hashes as vectors of +1 and -1, a product of matrices counts the equal bits."""
    table = np.frombuffer(b"".join(prints), np.uint8).reshape(len(prints), HASH_BYTES + 3 * COLOURS**2)
    signs = 1 - 2 * np.unpackbits(table[:, :HASH_BYTES], axis=1).astype(np.float32)
    colours = table[:, HASH_BYTES:].astype(np.int16)
    found: list[tuple[int, int]] = []
    for start in range(0, len(signs), ROWS):
        agree = signs[start : start + ROWS] @ signs[start:].T
        i, j = np.nonzero(np.triu(agree >= 8 * HASH_BYTES - 2 * bits, 1))
        kept = np.abs(colours[start + i] - colours[start + j]).mean(axis=1) <= levels
        found += zip((start + i[kept]).tolist(), (start + j[kept]).tolist(), strict=True)
    return found


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
