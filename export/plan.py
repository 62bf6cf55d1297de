"""What an export will do, and about how long it takes: said before it begins, kept within the time that is allowed."""

from dataclasses import dataclass, field, replace

import torch
from rich.console import Console

from bundle.errors import OptionError
from bundle.manifest import FP32
from bundle.progress import duration
from export.staging import GraphSettings
from robustness.budget import ALONE, Costs, few, within
from robustness.fitting import DetectorSettings, Parts
from robustness.suites import Suite
from training.data import Dataset
from training.networks import Network

ATTACKED_IMAGES = 200  # validation images on which a narrower precision's detection is compared
GRAPH_SECONDS = 15.0  # to write a graph and prove it, roughly, whatever the network


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Minutes that the attacks for the detector's lessons, and those of the report, may take; None is no limit."""

    lessons: float | None = None
    report: float | None = None

    def __post_init__(self) -> None:
        for name in ("lessons", "report"):
            if (minutes := getattr(self, name)) is not None and not 0 < minutes < float("inf"):
                raise OptionError(
                    f"--{name}-minutes {minutes:g} is no time",
                    hint="Name minutes, such as 5; a large number is no limit.",
                )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What a run is made into: how its detectors are taught and its graphs written, the suite of the bundle's report
    if there is to be one, and how long it may take.
    """

    detector: DetectorSettings = field(default_factory=DetectorSettings)
    graphs: GraphSettings = field(default_factory=GraphSettings)
    suite: Suite | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fits into the limits: the settings of the detector, on how many validation images under attack a narrower
    precision is tried, the report's suite; and what was left out, a sentence each.
    """

    detector: DetectorSettings
    trial_images: int
    suite: Suite | None
    left_out: tuple[str, ...]


def make_plan(network: Network, parts: Parts, dataset: Dataset, settings: ExportSettings, console: Console) -> Plan:
    """Measure what a pass takes, fit everything into the limits, and say what will be done and about how long."""
    detector, suite, limits = settings.detector, settings.suite, settings.limits
    heads, counts = network.config.heads, {name: len(samples) for name, samples in dataset.parts.items()}
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    costs = Costs.measured(network, heads, parts.validation[0])
    lesson, left_out = costs.lesson(detector.attacks), []
    images = min(detector.images, len(parts.validation[1]))
    trial_images = min(ATTACKED_IMAGES, counts["validation"]) if settings.graphs.precision != FP32 else 0
    trial = costs.lesson(trial_attacks(detector))
    if limits.lessons is not None and detector.attacks:
        images, said = few(images, lesson, limits.lessons, "the detector's lessons")
        left_out += [] if said is None else [said]
    if limits.lessons is not None and trial_images:
        trial_images, said = few(trial_images, trial, limits.lessons, "attacks on the narrower graph")
        left_out += [] if said is None else [said]
    if suite is not None and limits.report is not None:
        suite = within(suite, costs, limits.report, counts["test"])
        left_out += suite.left_out
    looked = counts["train"] + len(heads) * counts["calibration"]  # calibration's graphs look about as fast
    seconds = [costs.looks(looked) + len(heads) * GRAPH_SECONDS, images * lesson + trial_images * trial]
    what = [f"{' and '.join(heads)}: detector and graph, about {duration(seconds[0])}"]
    if detector.attacks:
        what.append(f"lessons from {images} images under {', '.join(detector.attacks)}, at most {duration(seconds[1])}")
    if suite is not None:
        seconds.append(costs.suite(suite, counts["test"]))
        what.append(f"{suite.name} report of {min(suite.count, counts['test'])} images, at most {duration(seconds[2])}")
    console.print(f"{'; '.join(what)}; all {ALONE}", highlight=False, markup=False, soft_wrap=True)
    for each in left_out:
        console.print(each, highlight=False, markup=False, soft_wrap=True)
    detector = replace(detector, images=images)  # the manifest says how many it was
    return Plan(detector=detector, trial_images=trial_images, suite=suite, left_out=tuple(left_out))


def trial_attacks(settings: DetectorSettings) -> tuple[str, ...]:
    """What a narrower graph's detection is tried on: what its detector learns from, or would by default."""
    return settings.attacks or DetectorSettings().attacks
