"""Series: images that were taken together, which must not be divided between learning and judging.

Found by what the files themselves say: the same bytes, near copies, times of exposure within seconds of each other in
one class, and names that speak of one scene. A name that merely counts (001 to 050) speaks of nothing. Pictures of two
classes may resemble each other because the classes do: across classes only copies count.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import PurePosixPath

from training.data.index import Sample
from training.data.look import COPY, SAME_COLOURS, SCENE, Keys, Look, alike, joined, same_bytes

SECONDS = 3.0  # between two photographs of one series
LONGEST = 10  # a longer run that is most of its class is an album, or a clock that stands still

# IMG_20200131_120506, PXL_20200131_120506123, 2020-01-31 12.05.06
_TIME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[-_ T]{0,3}(\d\d)[-_.:h]?(\d\d)[-_.:m]?(\d\d)(?:\d{3})?(?!\d)"
)
# What phones and cameras call a burst, and tools the frames of a film: what stands before it names the scene.
_SCENES = (
    re.compile(r"(.+?)[-_ ]burst[-_ ]?\d+.*", re.IGNORECASE),
    re.compile(r"(.+?)[-_ ]frame[-_ ]?\d+", re.IGNORECASE),
    re.compile(r"(.+?)[-_ ]\d+[-_ ]of[-_ ]\d+", re.IGNORECASE),
)
# DSC0001-2, IMG_0001(1), IMG_0001~2, IMG_0001 copy, IMG_0001_edited: further ones of a numbered photograph
_AGAIN = re.compile(r"(.*\d{4,})(?:-\d{1,2}| ?\(\d{1,2}\)|~\d{1,2}|[-_ ](?:copy|edited|hdr)\d*)", re.IGNORECASE)
# A camera's own counter: IMG_0001, DSC_0001, DSCN0001, _MG_0001, P1010001
_COUNTER = re.compile(r"((?:_?(?:IMG|DSC|DSCN|DSCF|MG|MVIMG|GOPR|DJI)_?)|P\d{3})(\d{4})", re.IGNORECASE)


def find_series(samples: Sequence[Sample], seen: Look) -> tuple[Keys, ...]:
    """Keys of the images of each series of two or more, sorted. What cannot be read belongs to none."""
    samples = [sample for sample in samples if sample.key not in seen.bad]
    sets = [*same_bytes(samples), *alike(_prints(samples, seen), COPY, SAME_COLOURS)]
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    for each in by_class.values():
        for found in (alike(_prints(each, seen), SCENE), _by_time(each, seen), _by_name(each)):
            sets += _told(found, len(each))
        sets += (run for run in _by_counter(each, seen) if len(run) <= min(LONGEST, len(each) // 2))
    return tuple(joined(pair for keys in sets for pair in pairwise(keys)))


def _prints(samples: Iterable[Sample], seen: Look) -> dict[str, bytes]:
    return {sample.key: seen.prints[sample.key] for sample in samples if sample.key in seen.prints}


def _told(sets: Iterable[Keys], images: int) -> Iterator[Keys]:
    """The sets that tell something of a class of `images`."""
    return (keys for keys in sets if len(keys) <= max(LONGEST, images // 2))


def _by_time(samples: Iterable[Sample], seen: Look) -> list[Keys]:
    moments = [(moment, each.key) for each in samples if (moment := _moment(each, seen)) is not None]
    return _runs(moments, SECONDS)


def _by_name(samples: Iterable[Sample]) -> list[Keys]:
    """What the names call one scene, or one photograph again."""
    scenes: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        path = PurePosixPath(sample.key)
        scene = next((match[1] for each in (*_SCENES, _AGAIN) if (match := each.fullmatch(path.stem))), path.stem)
        scenes.setdefault((str(path.parent), scene), []).append(sample.key)
    return [tuple(keys) for keys in scenes.values()]


def _by_counter(samples: Iterable[Sample], seen: Look) -> list[Keys]:
    """Consecutive numbers of a camera's counter, where no time tells more."""
    counted: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for sample in samples:
        path = PurePosixPath(sample.key)
        if (counter := _COUNTER.fullmatch(path.stem)) and _moment(sample, seen) is None:
            counted.setdefault((str(path.parent), counter[1].lower()), []).append((float(counter[2]), sample.key))
    return [run for each in counted.values() for run in _runs(each, 1.0)]


def _runs(places: Iterable[tuple[float, str]], step: float) -> list[Keys]:
    """Keys in order of their places, parted where two are further apart than `step`."""
    runs: list[list[str]] = []
    before = float("-inf")
    for place, key in sorted(places):
        if place - before > step:
            runs.append([])
        runs[-1].append(key)
        before = place
    return [tuple(keys) for keys in runs]


def _moment(sample: Sample, seen: Look) -> float | None:
    """When it was taken, in seconds: by EXIF data, or by its name."""
    if sample.key in seen.taken:
        return seen.taken[sample.key]
    if (match := _TIME.search(PurePosixPath(sample.key).stem)) is None:
        return None
    year, month, day, hour, minute, second = (int(field) for field in match.groups())
    with suppress(ValueError):  # digits that are no time
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    return None
