"""`python -m benchmarks calibrate`: another camera before and after `fieldmark calibrate`, on one's own images.

Half of the images calibrate, the other half is judged: the share that is flagged by the bundle as it is, and by the one
that the verb makes of it. And many such divisions, by the scores alone, show how far a single one may be off by luck.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.page import put, table_head, table_row
from benchmarks.record import RESULTS, read_kept, result_file, save
from bundle.errors import OptionError, printable
from bundle.false_alarms import false_alarms
from bundle.folder import Bundle
from calibration.recalibration import recalibrate
from calibration.sample import Seen, look
from detector.model import Detector
from robustness.metrics import INTERVAL, flagged_interval, share
from scoring.sources import Source
from serving.client.local import LocalInference

DIVISIONS = 200
PAGE = Path(__file__).parent.parent / "docs" / "calibrate.md"
Which = npt.NDArray[np.int64]


def bench(
    images: Annotated[Path, typer.Option(help="Clean images of another source: a folder, or a list of paths.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to calibrate.")] = Path("build/demo/bundle"),
    count: Annotated[int | None, typer.Option(min=1, help="Images that calibrate; half of them all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which ones these are.")] = 0,
    name: Annotated[str, typer.Option(help="benchmarks/results/NAME.json; begins with 'calibrate'.")] = "calibrate",
    write: Annotated[bool, typer.Option("--page/--no-page", help="Put the table into docs/calibrate.md.")] = True,
) -> None:
    """Measure how many clean images are flagged before and after a calibration on others of the same source."""
    if not name.startswith("calibrate"):
        raise OptionError(f"{name!r} would not stand in the table", hint="Let the name begin with 'calibrate'.")
    result_file(name)
    result = measure_flags(Bundle.open(bundle), images, count=count, seed=seed)
    console = Console()
    table = Table("network", "alpha", "flagged before", "after", f"{INTERVAL:.0%} of calibrations give")
    for network, found in result["networks"].items():
        low, high = found["after"]["bounds"]
        shares = (f"{found[when]['flagged']['share']:.1%}" for when in ("before", "after"))
        table.add_row(network, f"{found['alpha']:g}", *shares, f"{low:.1%} to {high:.1%}")
    console.print(table)
    console.print(f"{save(name, result)}", highlight=False, markup=False, soft_wrap=True)
    if write:
        kept = {file.stem: read_kept(file, "images", "networks") for file in RESULTS.glob("calibrate*.json")}
        put("calibrate", page(dict(sorted(kept.items()))), PAGE)


def measure_flags(bundle: Bundle, images: Path, *, count: int | None, seed: int) -> dict[str, Any]:
    """By network the flagged share of images that took no part, before and after, and what chance allows."""
    sample = look(LocalInference(bundle), [Path(file.location) for file in Source.open(images).files()], skip_bad=True)
    whole = len(sample.paths)
    kept = whole // 2 if count is None else count
    if not 0 < kept < whole:
        raise OptionError(
            f"{images} holds {whole} usable images, and {kept} of them cannot calibrate while others are judged",
            hint="Give more images, or a smaller --count.",
        )
    order = np.random.default_rng(seed).permutation(whole)
    own, rest, called = order[:kept], order[kept:], printable(images.resolve().name)
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as folder:
        chosen = [sample.paths[index] for index in own]
        made = recalibrate(bundle, chosen, Path(folder) / "bundle", source=called).bundle
        judged = look(LocalInference(made), [sample.paths[index] for index in rest], skip_bad=True)
        networks = {
            network: _compared(bundle, made, network, seen, judged.networks[network], (own, rest), seed)
            for network, seen in sample.networks.items()
        }
    return {
        "bundle_id": bundle.bundle_id,
        "bundle": bundle.manifest.name,
        "images": {"source": called, "calibrate": kept, "judge": whole - kept, "sha256": sample.sha256},
        "left_out": len(sample.left_out),
        "networks": networks,
    }


def page(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown: of every source the judged images that are flagged, with 95 % intervals (Wilson)."""
    lines = table_head(
        ["source", "calibrated, judged", "network", "flagged before", "after", "median p before", "after"]
    )
    for name, result in kept.items():
        images = f"{result['images']['calibrate']:,}, {result['images']['judge']:,}"
        for network, found in result["networks"].items():
            cells = [_percent(found[when]["flagged"]) for when in ("before", "after")]
            cells += [f"{found[f'p_values_{when}'][4]:.2f}" for when in ("before", "after")]
            lines.append(table_row(f"[{name}](../benchmarks/results/{name}.json)", [images, network, *cells]))
    return "\n".join(lines) + "\n"


def _percent(flagged: Mapping[str, Any]) -> str:
    low, high = flagged["interval"]
    return f"{100 * flagged['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _compared(
    bundle: Bundle, made: Bundle, network: str, seen: Seen, judged: Seen, parts: tuple[Which, Which], seed: int
) -> dict[str, Any]:
    old, new = (Detector.load(each.file(each.manifest.networks[network].detector.file)) for each in (bundle, made))
    kept, rest = map(len, parts)
    before = _flags(old, seen, parts[1])
    after = {
        "flagged": share(judged.flagged, rest),
        "bounds": list(flagged_interval(new.groups(judged.predicted), new.alpha)),
    }
    random, found = np.random.default_rng(seed + 1), []
    for _ in range(DIVISIONS):
        order = random.permutation(kept + rest)
        own = order[:kept]
        again = old.calibrated(seen.scores[own], seen.predicted[own], old.alpha, bundle.manifest.labels)
        found.append(_flags(again, seen, order[kept:]) / rest)
    rate = false_alarms(new.calibration_n, new.alpha)
    bounds = list(flagged_interval(old.groups(seen.predicted[parts[1]]), old.alpha))
    return {
        "alpha": old.alpha,
        "calibration": bundle.manifest.networks[network].detector.calibration,
        "before": {"n": old.calibration_n, "flagged": share(before, rest), "bounds": bounds},
        "after": {"n": new.calibration_n, **after},
        "divisions": {
            "count": DIVISIONS,
            "mean": round(float(np.mean(found)), 5),
            "deviation": round(float(np.std(found)), 5),
            "true_rate": {"mean": round(rate.mean, 5), "deviation": round(rate.deviation, 5)},
        },
        "p_values_before": _deciles(old.p_values(seen.scores[parts[1]], seen.predicted[parts[1]])),
        "p_values_after": _deciles(new.p_values(judged.scores, judged.predicted)),
    }


def _flags(detector: Detector, seen: Seen, which: Which) -> int:
    p_values = detector.p_values(seen.scores[which], seen.predicted[which])
    return int((p_values <= np.float32(detector.alpha)).sum())


def _deciles(p_values: npt.NDArray[np.float32]) -> list[float]:
    """Nine numbers that would be 0.1, 0.2, ... 0.9 if the p-values were what they say."""
    return [round(float(value), 3) for value in np.quantile(p_values, np.arange(1, 10) / 10)]
