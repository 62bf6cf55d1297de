"""Species of the built-in birds: a species is one value for each field mark, and a name made from those marks.

All species share everything else (body, pose, colours, background), so nothing but the marks tells them apart. They
come in genera of four look-alikes that differ from each other in a few small marks only, as real sister species do.
Species number `i` looks the same in a set of any size.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

MAX_SPECIES = 400
MIN_SPECIES = 2

# mark -> its values. A bird has at least BOLD[0] and at most BOLD[1] of the marks that can be absent ("plain").
MARKS: dict[str, tuple[str, ...]] = {
    "crown": ("plain", "black", "white", "red", "golden", "blue"),
    "beak": ("cone", "needle", "sickle"),
    "beak_colour": ("slate", "orange", "ivory"),
    "wing": ("plain", "white_bar", "two_white_bars", "golden_bar", "two_golden_bars", "blue_patch"),
    "breast": ("plain", "spots", "streaks", "band", "rufous"),
    "eye": ("plain", "ring", "mask", "brow"),
    "tail": ("plain", "white_tip", "black_band", "rufous"),
    "throat": ("plain", "black", "ruby", "golden"),
    "legs": ("slate", "orange"),
}
BOLD = (2, 4)
GENUS = 4  # species in a genus
FOUNDERS = 8000  # codes among which the first species of each genus are chosen

# How much of a difference a mark makes: its area, roughly. Used only to choose look-alikes and genera.
WEIGHTS: dict[str, float] = {
    "crown": 2.0,
    "beak": 1.5,
    "beak_colour": 1.0,
    "wing": 2.0,
    "breast": 2.0,
    "eye": 1.0,
    "tail": 1.5,
    "throat": 1.5,
    "legs": 0.5,
}

# mark -> the parts, in CUB's words, that bear it; back, belly, forehead and nape have no mark of their own.
BEARERS: dict[str, tuple[str, ...]] = {
    "crown": ("crown",),
    "beak": ("beak",),
    "beak_colour": ("beak",),
    "wing": ("left wing", "right wing"),
    "breast": ("breast",),
    "eye": ("left eye", "right eye"),
    "tail": ("tail",),
    "throat": ("throat",),
    "legs": ("left leg", "right leg"),
}

_FAMILIES = {"cone": "Finch", "needle": "Warbler", "sickle": "Sicklebill"}
_ADJECTIVES: dict[tuple[str, str], str] = {
    ("crown", "black"): "Black_capped",
    ("crown", "white"): "White_crowned",
    ("crown", "red"): "Red_crowned",
    ("crown", "golden"): "Golden_crowned",
    ("crown", "blue"): "Blue_crowned",
    ("breast", "spots"): "Spotted",
    ("breast", "streaks"): "Streaked",
    ("breast", "band"): "Collared",
    ("breast", "rufous"): "Rufous_breasted",
    ("wing", "white_bar"): "White_barred",
    ("wing", "two_white_bars"): "Double_barred",
    ("wing", "golden_bar"): "Golden_barred",
    ("wing", "two_golden_bars"): "Golden_winged",
    ("wing", "blue_patch"): "Blue_winged",
    ("throat", "black"): "Black_throated",
    ("throat", "ruby"): "Ruby_throated",
    ("throat", "golden"): "Golden_throated",
    ("eye", "ring"): "Spectacled",
    ("eye", "mask"): "Masked",
    ("eye", "brow"): "White_browed",
    ("tail", "white_tip"): "White_tailed",
    ("tail", "black_band"): "Band_tailed",
    ("tail", "rufous"): "Rufous_tailed",
    ("beak_colour", "slate"): "Slate_billed",
    ("beak_colour", "orange"): "Orange_billed",
    ("beak_colour", "ivory"): "Ivory_billed",
    ("legs", "slate"): "Slate_footed",
    ("legs", "orange"): "Orange_footed",
}


@dataclass(frozen=True, kw_only=True)
class Species:
    """One species: a name in CUB's style (`Red_crowned_Finch`) and the value of each field mark (see `MARKS`)."""

    name: str
    crown: str
    beak: str
    beak_colour: str
    wing: str
    breast: str
    eye: str
    tail: str
    throat: str
    legs: str

    @property
    def marks(self) -> dict[str, str]:
        """Mark -> value, in the order of `MARKS`."""
        values = asdict(self)
        return {mark: values[mark] for mark in MARKS}


@functools.lru_cache(maxsize=1)
def all_species() -> tuple[Species, ...]:
    """Every species there is, `MAX_SPECIES` of them; a set of n species takes the first n."""
    taken: set[str] = set()
    species = []
    for code in _codes(MAX_SPECIES):
        marks = {mark: MARKS[mark][value] for mark, value in zip(MARKS, code, strict=True)}
        name = next(name for name in _names(marks) if name not in taken)
        taken.add(name)
        species.append(Species(name=name, **marks))
    return tuple(species)


def telling_parts(labels: Sequence[str]) -> tuple[frozenset[str], ...] | None:
    """For each label the parts whose marks tell the species from another of its genus; None of classes that are not the
    built-in species, of which nobody wrote down what tells them apart.
    """
    species = all_species()[: len(labels)]
    if [one.name.replace("_", " ") for one in species] != list(labels):
        return None
    genera = [species[first : first + GENUS] for first in range(0, len(species), GENUS)]
    return tuple(
        frozenset(
            part
            for sister in genus
            for mark, value in one.marks.items()
            if sister.marks[mark] != value
            for part in BEARERS[mark]
        )
        for genus in genera
        for one in genus
    )


def _codes(count: int) -> list[tuple[int, ...]]:
    """Genera of GENUS species. Each founder is as far as possible from all before it; its sisters are the nearest codes
    that differ from it, and from every species so far, in two marks or more. Ties go to the earlier candidate, so the
    result is the same everywhere.
    """
    sizes = [len(values) for values in MARKS.values()]
    total = math.prod(sizes)
    step = 1_000_003  # a prime that divides no size: walks the codes in a scattered but fixed order
    order = (np.arange(total, dtype=np.int64) * step) % total
    candidates = np.stack(np.unravel_index(order, sizes)).astype(np.int8)  # (marks, total)
    can_be_plain = [values[0] == "plain" for values in MARKS.values()]
    bold = (candidates[can_be_plain] > 0).sum(axis=0)
    candidates = candidates[:, (bold >= BOLD[0]) & (bold <= BOLD[1])]
    weights = np.array(list(WEIGHTS.values()))
    nearest = np.full(FOUNDERS, np.inf)
    free = np.ones(candidates.shape[1], dtype=bool)  # differs from every species so far in at least two marks
    chosen: list[tuple[int, ...]] = []
    while len(chosen) < count:
        index = int(np.argmax(np.where(free[:FOUNDERS], nearest, -1)))
        sister = np.flatnonzero(_differences(candidates, candidates[:, index]) == 2)
        apart = weights @ (candidates[:, sister] != candidates[:, index, None])
        for _ in range(min(GENUS, count - len(chosen))):
            code = candidates[:, index]
            chosen.append(tuple(int(value) for value in code))
            free &= _differences(candidates, code) >= 2
            nearest = np.minimum(nearest, weights @ (candidates[:, :FOUNDERS] != code[:, None]))
            index = int(sister[np.argmin(np.where(free[sister], apart, np.inf))])
    return chosen


def _differences(candidates: npt.NDArray[np.int8], code: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """In how many marks each of candidates : (marks, n) differs from code : (marks,)."""
    differences = np.zeros(candidates.shape[1], dtype=np.int8)
    for values, value in zip(candidates, code, strict=True):
        differences += values != value
    return differences


def _names(marks: dict[str, str]) -> list[str]:
    """Names a bird with these marks could bear, the shortest first."""
    words = [_ADJECTIVES[mark, marks[mark]] for mark in ("crown", "breast", "throat", "wing", "tail", "eye")
             if marks[mark] != "plain"]  # fmt: skip
    words += [_ADJECTIVES[mark, marks[mark]] for mark in ("beak_colour", "legs")]
    return [
        "_".join([*some, _FAMILIES[marks["beak"]]])
        for length in range(1, len(words) + 1)
        for some in itertools.combinations(words, length)
    ]
