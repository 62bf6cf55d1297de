"""Every benchmark in one list: what it measures, how long that takes on two cores, what it needs.

`benchmarks/__main__.py` starts them by these names and prints the list; `docs/benchmarks.md` says where their figures
stand. What a benchmark is made of is imported when it is started.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BUNDLE, NOTHING, STUDY = "a bundle", "nothing", "a finished study"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One line of the list. `at`, `page` and `rehearsal` are `module:function` within benchmarks.

    `at` gives the figures, of a bundle's path where `needs` is BUNDLE and else of nothing, which are then kept in
    results/NAME.json; `beside` are backbones with random weights, measured like the bundle. With `alone` it is a
    command line with options of its own, which keeps its result itself and is started by itself.
    """

    measures: str
    takes: str
    at: str
    needs: str = BUNDLE
    alone: bool = False
    beside: tuple[str, ...] = ()
    page: str = ""  # puts the kept JSON's tables into a page of docs/
    rehearsal: str = ""  # the same in a few seconds, to see that it works before it is given its minutes


BENCHMARKS = {
    "demo": Benchmark(
        measures="the last `make demo`: seconds of its stages, accuracy, flags, AUROC",
        takes="seconds",
        at="walkthrough:read_demo",
    ),
    "endpoint": Benchmark(
        measures="one image through Triton over gRPC beside the same graph in process",
        takes="2 minutes",
        at="endpoint:measure_endpoint",
        beside=("resnet34",),
    ),
    "gateway": Benchmark(
        measures="the gateway and Envoy beside Triton and this process, under load",
        takes="12 minutes",
        at="gateway.comparison:measure_gateway",
        beside=("resnet34",),
        page="gateway.page:write_page",
        rehearsal="gateway.comparison:rehearse",
    ),
    "overhead": Benchmark(
        measures="what the detector adds to the served graph",
        takes="5 minutes",
        at="overhead:measure_overhead",
        beside=(
            "resnet34",
            "vgg16",
        ),
    ),
    "mahalanobis": Benchmark(
        measures="the detector's fit and distances beside a loop over classes and pytorch-ood",
        takes="2 minutes",
        at="mahalanobis:measure_mahalanobis",
        needs=NOTHING,
    ),
    "scoring": Benchmark(
        measures="archives: decoding, inference, the jobs that do both; what grows with rows",
        takes="5 minutes",
        at="scoring:measure_scoring",
        page="scoring:write_page",
    ),
    "footprint": Benchmark(
        measures="the environments on the disk",
        takes="seconds",
        at="footprint:measure_footprint",
        needs=NOTHING,
    ),
    "runtime": Benchmark(
        measures="the served graph in ONNX Runtime, int8, torch.compile and PyTorch",
        takes="20 minutes",
        at="runtime:measure_runtime",
        needs=NOTHING,
    ),
    "precisions": Benchmark(
        measures="every precision of export: size, parity, accuracy, flags",
        takes="6 minutes",
        at="precisions:measure_precisions",
    ),
    "training": Benchmark(
        measures="a training step beside that of other systems; whether images come fast enough",
        takes="3 minutes",
        at="training:measure_training",
        needs=NOTHING,
    ),
    "regulariser": Benchmark(
        measures="the regulariser of Eqs. 1 to 3 beside its naive forms: time, memory",
        takes="a minute",
        at="regulariser:measure_regulariser",
        needs=NOTHING,
    ),
    "attacks": Benchmark(
        measures="our PGD beside torchattacks and foolbox, at equal success",
        takes="4 minutes",
        at="attacks:measure_attacks",
        needs=NOTHING,
    ),
    "review": Benchmark(
        measures="the console before 10,000 waiting images",
        takes="2 minutes",
        at="review:measure_review",
    ),
    "rows": Benchmark(
        measures="memory and seconds of a job of COUNT rows; printed, not kept",
        takes="a minute",
        at="scoring:rows",
        alone=True,
    ),
    "calibrate": Benchmark(
        measures="clean images of another camera, flagged before and after `fieldmark calibrate`",
        takes="minutes",
        at="calibrate:bench",
        needs="a bundle, images",
        alone=True,
    ),
    "rivals": Benchmark(
        measures="our detector beside those of others and its own parts, on equal features",
        takes="30 minutes",
        at="rivals.comparison:bench",
        needs="finished runs",
        alone=True,
    ),
    "detection": Benchmark(
        measures="every system of the study: its detector, and what gets past the whole",
        takes="hours",
        at="detection:bench",
        needs=STUDY,
        alone=True,
    ),
    "pointing": Benchmark(
        measures="whether attention and prototypes lie on the parts of the birds",
        takes="10 minutes",
        at="pointing:bench",
        needs=STUDY,
        alone=True,
    ),
    "sr5": Benchmark(
        measures="how often an attacker who knows the detector gets past it",
        takes="hours",
        at="sr5:bench",
        needs="finished runs",
        alone=True,
    ),
    "study": Benchmark(
        measures="Tables 1 to 3: every system trained and attacked; `make study`",
        takes="hours",
        at="study.command:bench",
        needs=NOTHING,
        alone=True,
    ),
    "recipe": Benchmark(
        measures="what each part of the recipe for photographs is worth",
        takes="hours",
        at="recipe:bench",
        needs="photographs",
        alone=True,
    ),
    "reliability": Benchmark(
        measures="every way to bring the service down, tried; `make reliability`",
        takes="20 minutes",
        at="reliability.attempts:bench",
        alone=True,
    ),
    "gpu": Benchmark(
        measures="everything that a GPU is needed for",
        takes="12 minutes",
        at="gpu.command:bench",
        needs="a GPU, data sets",
        alone=True,
    ),
}


def load(at: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, function = at.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    return found
