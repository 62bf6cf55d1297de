"""How long attacks will take, before they begin, and how few images fit into the time that is allowed.

The unit is a pass: one image forward and backward through the head that is attacked. An attack's passes are known; what
one takes is measured. Images that an attack has fooled drop out of it, so every figure is an upper bound, usually by
half. Where all of it fits, nothing here depends on the clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from bundle.progress import duration
from robustness.accuracy import AUTOATTACK
from robustness.fitting import MIN_IMAGES, Images
from robustness.suites import CURVE, KEPT, OWN_HEAD, Suite
from training.attacks.losses import loss_of, losses_against
from training.attacks.names import AUTO_CLASSES, CLEAN, NOISE, attack_named
from training.data import Sample
from training.data.choice import spread
from training.data.loading import images_array
from training.networks import Network
from training.pixels import from_bytes
from training.run import RunRecord, image_spec

PROBED, REPEATS = 16, 3
GAIN, MOST_THREADS = 0.7, 8  # what every further thread brings, and beyond how many none does
FORWARD = 1 / 3  # of a pass
# APGD 100 steps, APGD-T and FAB-T 100 for each of nine targets, Square 5,000 queries
AUTO_PASSES = {"autoattack": 4000.0, "apgd": 1000.0}
ALONE = "on a machine that does nothing else"  # holds what is forecast
MIN_CLEAN = 200  # clean images below which p-values are not worth a figure


@dataclass(frozen=True, kw_only=True)
class Costs:
    """By head: `seconds` of one pass, and by how many `losses` it is attacked."""

    seconds: dict[str, float]
    losses: dict[str, int]
    classes: int

    @classmethod
    def measured(
        cls, network: Network, heads: Sequence[str], images: Images, clock: Callable[[], float] | None = None
    ) -> "Costs":
        """On a few of `images` (n, H, W, 3), the fastest of some tries. On a processor by the time that one thread
        computes, so that it does not matter what else the machine does meanwhile.
        """
        device, threads = next(network.parameters()).device, torch.get_num_threads()
        network.eval()
        pixels = from_bytes(torch.from_numpy(images[:PROBED]).to(device))
        labels = torch.zeros(len(pixels), dtype=torch.long, device=device)
        if clock is None:
            clock = time.process_time if device.type == "cpu" else time.perf_counter
        seconds = {}
        try:
            torch.set_num_threads(1)
            for head in heads:
                loss, tries = loss_of(network, head), []
                for _ in range(REPEATS):
                    begun, probe = clock(), pixels.clone().requires_grad_()
                    (gradient,) = torch.autograd.grad(loss(probe, labels).sum(), probe)
                    gradient.sum().item()  # a device may answer before it has computed
                    tries.append((clock() - begun) / len(pixels))
                seconds[head] = min(tries)
        finally:
            torch.set_num_threads(threads)
        together = 1 + GAIN * (min(threads, MOST_THREADS) - 1) if device.type == "cpu" else 1.0
        losses = {head: len(losses_against(network, head)) for head in heads}
        return cls(
            seconds={head: each / together for head, each in seconds.items()},
            losses=losses,
            classes=network.config.classes,
        )

    def lesson(self, attacks: Sequence[str]) -> float:
        """Seconds that one image takes under all of `attacks`, at most, on all heads."""
        return sum(self._passes(head, attacks) * each for head, each in self.seconds.items())

    def looks(self, images: int) -> float:
        """Seconds to pass so many images forward through every head."""
        return FORWARD * images * sum(self.seconds.values())

    def suite(self, suite: Suite, images: int | None = None) -> float:
        """Seconds of everything in a report, at most; on a test part of so many `images`."""
        if images is not None:
            suite = _at_most(suite, images)
        return sum(self._suite(head, suite) * each for head, each in self.seconds.items())

    def _passes(self, head: str, attacks: Sequence[str]) -> float:
        return sum(passes(name, self.losses[head]) for name in attacks)

    def _suite(self, head: str, suite: Suite) -> float:
        names = [name for name in suite.adaptive if name != OWN_HEAD or self.losses[head] > 1]
        curve = len(CURVE) * (suite.curve_steps + 1) * self.losses[head] if suite.curve_steps else 0
        auto = suite.autoattack_count * AUTO_PASSES["autoattack"] if self.classes >= AUTO_CLASSES else 0
        return (
            suite.count * (self._passes(head, suite.attacks) + curve)
            + suite.adaptive_count * suite.adaptive_steps * on_both(names)
            + suite.clean_count * FORWARD
            + auto
        )


def passes(name: str, losses: int) -> float:
    """Of one image under an attack by name, at most."""
    method = name.partition("@")[0].partition(":")[0]
    if method in (CLEAN, NOISE):
        return 1.0
    if (auto := method.rpartition("-")[0]) in AUTO_PASSES:
        return AUTO_PASSES[auto]
    attack = attack_named(method)
    return losses * attack.restarts * (attack.steps + 1.0)  # one to judge


def on_both(names: Sequence[str]) -> float:
    """Passes of one image and step under attacks on network and detector: orthogonal PGD takes two gradients."""
    return sum(1 + FORWARD + name.startswith("orthogonal") * (1 - FORWARD) for name in names)


def few(images: int, each: float, minutes: float, what: str) -> tuple[int, str | None]:
    """How many of `images` fit into the time at `each` seconds, and a sentence where that is not all of them: no fewer
    than teach something stable.
    """
    fitting = images if images * each <= 60 * minutes else int(60 * minutes / each)
    kept = min(images, max(fitting, MIN_IMAGES))
    if kept == images:
        return images, None
    sentence = (
        f"{what}: {kept} of {images} images, since all would take up to {duration(images * each)} "
        f"{ALONE} and {minutes:g} min are allowed"
    )
    if kept > fitting:
        sentence += f"; fewer teach nothing stable, so it may take {duration(kept * each)}"
    return kept, sentence


def within(suite: Suite, costs: Costs, minutes: float, images: int, kept: Sequence[str] = KEPT) -> Suite:
    """The suite as far as it fits into the time: first fewer images, evenly, then without its dearest parts. What was
    left out stands in `left_out`. There are so many test `images`; attacks in `kept` stay. A suite that fits is
    returned as it is.
    """
    real = _at_most(suite, images)
    if costs.suite(real) <= 60 * minutes:
        return suite
    least = replace(real, **{name: min(getattr(real, name), floor) for name, floor in COUNTS.items()})
    chosen, gone = least, []
    for percent in range(99, 0, -1):
        fewer = {name: max(getattr(least, name), getattr(real, name) * percent // 100) for name in COUNTS}
        if costs.suite(replace(real, **fewer)) <= 60 * minutes:
            chosen = replace(real, **fewer)
            break
    for lighter, name in _without(chosen, costs, kept):
        if costs.suite(chosen) <= 60 * minutes:
            break
        gone.append(name)
        chosen = lighter
    counts = {what: (getattr(chosen, name), getattr(real, name)) for name, what in _WORDS.items()}
    few_images = [f"{now} of {before} {what}" for what, (now, before) in counts.items() if 0 < now < before]
    why = f"for want of time (all would take up to {duration(costs.suite(real))} {ALONE}, {minutes:g} min are allowed)"
    said = [f"left out {why}: {', '.join(gone)}"] if gone else []
    said += [f"fewer images {why}: {', '.join(few_images)}"] if few_images else []
    if costs.suite(chosen) > 60 * minutes:
        said.append(f"what is left may take {duration(costs.suite(chosen))}: less would say nothing")
    return replace(chosen, left_out=tuple(said))


# Counts of images in a suite, and how few of them still say something.
COUNTS = {"count": MIN_IMAGES, "adaptive_count": MIN_IMAGES, "autoattack_count": MIN_IMAGES, "clean_count": MIN_CLEAN}
_WORDS = {
    "count": "under every attack",
    "adaptive_count": "under attacks that know the detector",
    "autoattack_count": "under AutoAttack",
    "clean_count": "for the p-values of clean ones",
}


def within_paper(
    suite: Suite, record: RunRecord, network: Network, samples: tuple[Sample, ...], minutes: float
) -> Suite:
    """The same on samples on disk, before which nothing was measured; all attacks stay, since they were asked for."""
    probe = images_array(spread(samples, PROBED), image_spec(record.config))[0]
    costs = Costs.measured(network, network.config.heads, probe)
    return within(suite, costs, minutes, len(samples), kept=suite.attacks)


def _without(suite: Suite, costs: Costs, kept: Sequence[str]) -> list[tuple[Suite, str]]:
    """The suite without one part after another, the dearest first, each with its name. What gates and headlines are
    made of stays.
    """
    parts: list[tuple[str, dict[str, object]]] = []
    if suite.autoattack_count:
        parts.append((AUTOATTACK, {"autoattack_count": 0}))
    if suite.curve_steps:
        parts.append(("accuracy against eps", {"curve_steps": 0}))
    parts += [(name, {"attacks": (name,)}) for name in suite.attacks if name not in kept]
    parts += [(name, {"adaptive": (name,)}) for name in suite.adaptive if name not in kept]

    def saved(part: tuple[str, dict[str, object]]) -> float:
        return costs.suite(suite) - costs.suite(_less(suite, part[1]))

    found, left = [], suite
    for name, change in sorted(filter(saved, parts), key=saved, reverse=True):  # nothing that costs nothing
        left = _less(left, change)
        found.append((left, name))
    return found


def _at_most(suite: Suite, images: int) -> Suite:
    return replace(suite, **{name: min(getattr(suite, name), images) for name in COUNTS})


def _less(suite: Suite, change: Mapping[str, object]) -> Suite:
    names = {
        key: tuple(each for each in getattr(suite, key) if each not in value) if isinstance(value, tuple) else value
        for key, value in change.items()
    }
    return replace(suite, **names)  # type: ignore[arg-type]
