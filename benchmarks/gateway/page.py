"""docs/benchmarks.md: what the gateway costs and what a core is good for, from the JSON, between two marks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gateway.comparison import BUSY
from benchmarks.gateway.sides import ENVOY, GATEWAY, IN_PROCESS, SIDES, TRITON
from benchmarks.page import put, table_head, table_row

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MARK = "gateway"
RATES = (10, 100, 1000)  # images a second, of the sizing table
# The aim of each ratio, and whether a higher figure is a better one.
AIMS: dict[str, tuple[float, bool]] = {
    f"{GATEWAY} / {IN_PROCESS}, answers a second at saturation": (0.85, True),
    f"{ENVOY} / {GATEWAY}, answers a second at saturation": (0.95, True),
    f"{GATEWAY}, p99 / p50 at {BUSY:.0%} load": (3.0, False),
}
_COLUMNS = ("load", "answers/s", "client", "decode", "queue", "compute", "p50", "p90", "p95", "p99", "failed")


def write_page(result: Path) -> None:
    """Put the tables of a result's JSON into docs/benchmarks.md."""
    put(MARK, tables(json.loads(result.read_text(encoding="utf-8"))), PAGE)


def tables(result: Mapping[str, Any]) -> str:
    """Ratios, sizing and every load, in Markdown; of each bundle that was measured."""
    measured = {name: found for name, found in result.items() if name != "environment"}
    where, pixels = result["environment"], " x ".join(map(str, _any(measured)["jpeg"]["pixels"]))
    lines = [
        f"{where['cpu']}, {where['cores']} cores, the caller among them, commit {where['commit'][:12]}. JPEGs of "
        f"{pixels} pixels, decoded on every side; in process is one thread a core, each with decode and ONNX Runtime. "
        "Median of the rounds, and the least and the most of them.",
        "",
        *table_head(["figure", *(_title(found) for found in measured.values()), "aim"]),
    ]
    for name in _any(measured)["ratios"]:
        found = [_spread(each["ratios"][name]) for each in measured.values()]
        lines.append(table_row(name, [*found, _aim(name, [each["ratios"][name] for each in measured.values()])]))
    lines += ["", "### How many cores", "", *_sizing(measured), "", "### Load by load", ""]
    for found in measured.values():
        for side in SIDES:
            lines += [f"{_title(found)}, {side}; milliseconds:", "", *table_head(list(_COLUMNS))]
            lines += [*(_row(load, told) for load, told in found[side].items()), ""]
    return "\n".join(lines) + "\n"


def _sizing(measured: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"images a second and core = {BUSY:g} / (processor seconds of Envoy + gateway + Triton for one image), where "
        f"the service gives most: at {BUSY:.0%} of what it can, waiting is still short. Cores = images a second / that."
    )
    yield ""
    rates = [f"cores for {rate:,} images/s" for rate in RATES]
    parts = [f"{name}, ms" for name in (ENVOY, GATEWAY, TRITON)]
    yield from table_head(["network", *parts, "images/s and core", *rates])
    for found in measured.values():
        sizing = found["sizing"]
        each = sizing["images_a_second_and_core"]
        cells = [f"{sizing[f'{name}_cpu_ms']:.2f}" for name in (ENVOY, GATEWAY, TRITON)]
        yield table_row(_title(found), [*cells, f"{each:.1f}", *(f"{max(rate / each, 0.1):,.1f}" for rate in RATES)])


def _row(load: str, told: Mapping[str, Any]) -> str:
    times = [f"{told[f'{part}_ms']:.1f}" for part in ("client", "decode", "queue", "compute")]
    late = [f"{told[f'p{percent}_ms']['all']:.1f}" for percent in (50, 90, 95, 99)]
    return table_row(load, [_spread(told["throughput"]), *times, *late, str(told["failed"])])


def _spread(found: Any) -> str:
    if not isinstance(found, dict):
        return f"{found:g}"
    return f"{found['median']:g} ({found['least']:g} to {found['most']:g})"


def _aim(name: str, found: list[Any]) -> str:
    if name not in AIMS:
        return ""
    aim, higher = AIMS[name]
    kept = all((each["median"] >= aim) if higher else (each["median"] <= aim) for each in found)
    return f"{'at least' if higher else 'at most'} {aim:g}{'' if kept else ': **missed**'}"


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['name']}, {found['image'][1]} px"


def _any(measured: Mapping[str, Any]) -> Any:
    return next(iter(measured.values()))
