"""The robustness report of a run: report.json, and the same on one page, report.html, that needs no network.

docs/report.md says what every entry means. The report belongs to exactly these weights and these detectors.
"""

import base64
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from bundle.errors import MissingExtra
from bundle.false_alarms import false_alarms, smallest_p_value
from bundle.files import sha256_of, write_text
from bundle.version import version
from detector.model import Detector
from robustness.accuracy import WORST
from robustness.figures import (
    accuracy_against_eps,
    activations,
    prototype_sheet,
    prototype_space,
    reliability,
    roc_curves,
    system_view,
)
from robustness.fitting import Taught
from robustness.gates import ANY, BROKEN, HOLDS, UNKNOWN, broken
from robustness.journal import Journal
from robustness.limits import FEW, attacked_images, limits, not_measured
from robustness.measure import EPS, measure_heads
from robustness.pointing import pointing
from robustness.shown import SHOWN_ATTACK, images_looked_at, prototypes_shown
from robustness.suites import Suite
from training.attacks.attacker import Attackers
from training.attacks.autoattack import PARTS
from training.attacks.names import CLEAN, NOISE
from training.data import Dataset
from training.networks import Network
from training.run import Run, RunRecord, published_config

REPORT_SCHEMA = 1
JSON, PAGE = "report.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class Report:
    """`document` is report.json, `page` the text of report.html."""

    document: dict[str, Any]
    page: str

    def write(self, folder: Path) -> None:
        """Both files into an existing folder."""
        write_text(folder / JSON, json.dumps(self.document, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(folder / PAGE, self.page)


def require(suite: Suite) -> None:
    """Miss a library now, or not at all: it is used after hours of work."""
    needed = {"jinja2": "training", "matplotlib": "figures", "sklearn.manifold": "training"}
    if suite.autoattack_count or any(name.startswith(tuple(PARTS)) for name in suite.attacks):
        needed["pyautoattack"] = "attacks"
    for library, extra in needed.items():
        try:
            importlib.import_module(library)
        except ImportError as problem:
            raise MissingExtra.named(extra, "a robustness report", problem) from None


def make_report(
    run: Run,
    attackers: Attackers,
    taught: Mapping[str, Taught],
    dataset: Dataset,
    suite: Suite,
    *,
    calibration: Mapping[str, Any] | None = None,
    journal: Journal | None = None,
) -> Report:
    """Measure everything of `suite` on the test part and draw it, with the detectors in `taught`, by head.
    `calibration` is what a bundle says of images that it was calibrated on after its export. `journal` goes on where an
    earlier run was stopped.
    """
    record, network, seed = run.read_record(), attackers.network, attackers.seed
    if network.prototype_head is not None:  # before hours of work: they are drawn at its end
        run.prototypes_of(network, {sample.key for sample in dataset.parts["train"]})
    heads = measure_heads(record, attackers, taught, dataset, suite, journal=journal)
    document: dict[str, Any] = {
        "schema": REPORT_SCHEMA,
        "suite": asdict(suite),
        "seed": seed,
        "run": {
            "preset": record.config.preset,
            "config": published_config(record.config),
            "weights_sha256": sha256_of(run.path / "model.pt"),
            "trained_with": record.versions,
        },
        "dataset": record.dataset.published(),
        "labels": list(record.labels),
        "measured_with": _versions(network),
        "detectors": {
            head: {
                "columns": list(detector.columns),
                "taught": list(lessons.fooled),
                "lessons": {"images": len(lessons.clean), "of": lessons.available},
                "alpha": detector.alpha,
                "calibration_n": detector.calibration_n,
                "calibration": _calibration(detector, dataset, calibration),
            }
            for head, (detector, lessons) in taught.items()
        },
        "heads": heads,
        "attention": _attention(record, attackers, dataset, suite),
    }
    document["limits"] = limits(document)
    figures = _figures(run, record, network, dataset, document, seed)
    return Report(document=document, page=render(document, figures))


def _calibration(detector: Detector, dataset: Dataset, told: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which images stand behind the p-values, how fine these are, and how sure the rate of false alarms."""
    own = {"source": f"the calibration part of {dataset.name}", "date": None, "sha256": None}
    rate = false_alarms(detector.calibration_n, detector.alpha)
    return {
        **(own if told is None else {key: told.get(key) for key in own}),
        "smallest_p_value": round(smallest_p_value(detector.calibration_n), 6),
        "false_alarms": {"mean": round(rate.mean, 5), "deviation": round(rate.deviation, 5)},
    }


def _attention(record: RunRecord, attackers: Attackers, dataset: Dataset, suite: Suite) -> dict[str, Any] | None:
    """The pointing game, where the dataset knows where parts are."""
    if not any(sample.landmarks for sample in dataset.parts["test"]):
        return None
    return pointing(record, attackers, dataset, attacks=(SHOWN_ATTACK,), count=suite.count)


def headlines(document: Mapping[str, Any]) -> list[str]:
    """A line for each head: gates, the worst static attack, attacks that know the detector."""
    lines = []
    for head, measured in document["heads"].items():
        worst, won = measured["accuracy"][WORST], measured["adaptive"]["success"].get(ANY)
        line = f"{head}: {'gates broken: ' + '; '.join(found) if (found := broken(measured)) else 'no gate broken'}; "
        line += f"the worst attacks leave {worst['count']} of {worst['of']} right"
        if won is not None:
            line += f"; who knows the detector gets {won['count']} of {won['of']} past both"
        lines.append(line)
    return [*lines, *not_measured(document)]


def gate_table(document: Mapping[str, Any]) -> Table:
    """Gates for a terminal, red where broken."""
    table = Table("gate", "network", "state", "evidence", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    styles = {HOLDS: "green", BROKEN: "bold white on red", UNKNOWN: "dim"}
    for measured in document["heads"].values():
        for gate in measured["gates"]:
            state = f"[{styles[gate['state']]}]{gate['state']}[/]"
            table.add_row(gate["name"], gate["head"], state, escape(gate["evidence"]))
    return table


def summary_table(document: Mapping[str, Any]) -> Table:
    """By attack and head: right, AUROC, and what gets through; the adaptive attacks below."""
    heads = document["heads"]
    table = Table(Column("attack", overflow="fold"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        for title in (f"{head}:\nright", "AUROC", "missed"):
            table.add_column(title, justify="right")
    alphas = {head: each["alpha"] for head, each in document["detectors"].items()}
    for name in next(iter(heads.values()))["accuracy"]:
        cells = []
        for head, measured in heads.items():
            area = measured["detection"].get(name, {}).get("auroc")
            points = measured["system"].get(name, ())
            missed = next((point["missed"]["share"] for point in points if point["alpha"] == alphas[head]), None)
            cells += [_percent(measured["accuracy"][name]["share"]), "" if area is None else f"{area:.3f}"]
            cells.append("" if missed is None else _percent(missed))
        table.add_row(escape(name), *cells)
    for name in _aware(document):
        cells = []
        for measured in heads.values():
            won = measured["adaptive"]["success"].get(name)
            cells += ["", "", "" if won is None else _percent(won["share"])]
        table.add_row(f"both: {escape(name)}", *cells)
    return table


def _aware(document: Mapping[str, Any]) -> list[str]:
    """Adaptive attacks that some head was measured under; only a gated one is also attacked by its own loss."""
    return list(dict.fromkeys(name for each in document["heads"].values() for name in each["adaptive"]["success"]))


def render(document: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """report.html, figures inside."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["interval"] = _interval
    pictures = {name: base64.b64encode(png).decode("ascii") for name, png in figures.items()}
    return environment.get_template("report.html.j2").render(
        report=document,
        figures=pictures,
        aware=_aware(document),
        clean=CLEAN,
        noise=NOISE,
        worst=WORST,
        any=ANY,
        eps=round(255 * EPS),
        few=attacked_images(document) < FEW,
        left_out=not_measured(document),
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _interval(each: Mapping[str, Any]) -> str:
    low, high = each["interval"]
    return f"{100 * low:.0f} to {100 * high:.0f}"


def _versions(network: Network) -> dict[str, str]:
    device = next(network.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"fieldmark": version(), "torch": torch.__version__, "device": name}


def _figures(
    run: Run, record: RunRecord, network: Network, dataset: Dataset, document: Mapping[str, Any], seed: int
) -> dict[str, bytes]:
    heads, classes = document["heads"], len(record.labels)
    figures = {"roc": roc_curves(heads), "system": system_view(heads), "reliability": reliability(heads)}
    if document["suite"]["curve_steps"]:
        figures["eps"] = accuracy_against_eps(heads, classes)
    if network.attention_head is not None and (looked := images_looked_at(record, network, dataset, seed)):
        figures["activations"] = activations(looked)
    if network.prototype_head is not None:
        prototypes = network.prototype_head.prototypes.detach().cpu().numpy()
        figures["prototype_space"] = prototype_space(prototypes, record.labels)
        figures["prototypes"] = prototype_sheet(prototypes_shown(run, record, network, dataset))
    return figures
