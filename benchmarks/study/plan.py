"""The trainings of a study and their order: the rows of the paper's Tables 1 to 3, and more."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.study.pictures import MAIN
from robustness.suites import PAPER
from training.attacks.names import AUTO_CLASSES
from training.presets import preset

OTHERS = ("ap-pcl", "ap-triplet")
# Factors on the preset's weights of clustering and separation: Table 3, the same with adversarial training, and more.
ABLATION = {"none": (0, 0), "separation": (0, 1), "cluster": (1, 0), "strong": (30, 30)}
FAST_ABLATION = {"none": (0, 0), "strong": (10, 10)}
LONGER = ("maxsep", "ap")  # twice the epochs, for the two systems whose order that might change
# One change at a time of our recipe of adversarial training, screened with one seed.
RECIPES = {
    "sum": ("--set", "adversarial_climbs=sum"),
    "rise": ("--set", "adversarial_full=0.4"),
    "n-fgsm": ("--set", "adversarial=n-fgsm"),
    "ema": ("--set", "ema=0.99"),
    "smoothing": ("--set", "loss.label_smoothing=0.1"),
}
TRANSFERRED = "pgd10-8"  # made on the substitutes
APGD = ("apgd-2", "apgd-8")  # AutoAttack's two gradient attacks on every image
ABLATED = ("pgd10-2", "apgd-2", "pgd10-8")  # beside clean images: Table 3 has the stronger, which may leave nothing


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: a preset, and options that change it."""

    name: str
    preset: str
    options: tuple[str, ...] = ()
    fast: bool = False
    longer: bool = False  # twice the epochs
    attacks: tuple[str, ...] | None = None  # None: all columns

    def columns(self, classes: int, sources: Iterable[str], *, apgd: bool) -> tuple[str, ...]:
        """What a run of so many classes is attacked by: APGD where it is wanted and there are classes enough for it."""
        every = self.attacks or (*PAPER, *APGD, *(f"{TRANSFERRED}@{source}" for source in sources))
        return tuple(name for name in every if name not in APGD or (apgd and classes >= AUTO_CLASSES))


def rows(backbone: str, systems: tuple[str, ...] = (*MAIN, *OTHERS)) -> Iterator[Row]:
    """Tables 1 and 2."""
    for fast in (False, True):
        for system in systems:
            name = f"{system}-{backbone}{'-fast' if fast else ''}"
            yield Row(name=name, preset=name, fast=fast)


def set_words(settings: Iterable[str]) -> list[str]:
    """NAME=VALUE texts as words of 'fieldmark train'."""
    return [word for text in settings for word in ("--set", text)]


def ablation(backbone: str) -> Iterator[Row]:
    """What Table 3 needs beside them, without and with fast adversarial training."""
    for suffix, variants in (("", ABLATION), ("-fast", FAST_ABLATION)):
        base = f"{backbone}{suffix}"
        loss = preset(base).loss
        for name, (cluster, separation) in variants.items():
            texts = (f"loss.cluster={loss.cluster * cluster:g}", f"loss.separation={loss.separation * separation:g}")
            options = tuple(set_words(texts))
            yield Row(name=f"maxsep-{name}-{base}", preset=base, options=options, fast=bool(suffix), attacks=ABLATED)


def longer(backbone: str) -> Iterator[Row]:
    """Table 2 again, for longer."""
    for system in LONGER:
        base = f"{system}-{backbone}-fast"
        yield Row(name=f"{base}-longer", preset=base, fast=True, longer=True)


def recipes(backbone: str) -> Iterator[Row]:
    """Adversarial training in other ways."""
    for name, options in RECIPES.items():
        base = f"maxsep-{backbone}-fast"
        yield Row(name=f"{base}-{name}", preset=base, options=options, fast=True, attacks=ABLATED)


def jobs(backbone: str, seeds: int, other_seeds: int | None = None) -> Iterator[tuple[int, Row]]:
    """Every table is whole for one seed before the next begins; the main comparison comes before the other systems,
    which may have fewer seeds, and recipes are screened with one.
    """
    others = seeds if other_seeds is None else other_seeds
    for seed in range(seeds):
        yield from ((seed, row) for row in rows(backbone, MAIN))
        if seed < others:
            yield from ((seed, row) for row in rows(backbone, OTHERS))
    for table in (ablation, longer):
        for seed in range(others):
            yield from ((seed, row) for row in table(backbone))
    yield from ((0, row) for row in recipes(backbone))
