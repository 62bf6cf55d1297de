"""Where and with what a number was measured, and how pairs are timed."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import OptionError, first_line
from bundle.files import write_text

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "onnx", "numpy", "scikit-learn", "tritonclient")


def environment() -> dict[str, Any]:
    """Device, versions and commit of this measurement."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        **_gpu(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _gpu() -> dict[str, str]:
    """The one that PyTorch computes on, where this process has loaded it and there is one."""
    torch = sys.modules.get("torch")
    return {"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # an extra that what is measured does not need
        return None


def save(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """Write benchmarks/results/NAME.json, or FOLDER/NAME.json of what is no result."""
    path = (folder or RESULTS) / result_file(name).name
    write_text(path, json.dumps({"environment": environment(), **result}, indent=2, allow_nan=False) + "\n")
    return path


def result_file(name: str) -> Path:
    """benchmarks/results/NAME.json; whoever measures for long asks before."""
    path = RESULTS / f"{name}.json"
    if path.parent != RESULTS:
        raise OptionError(f"{name!r} is no name", hint="Leave out folders: results stand in benchmarks/results.")
    return path


def read_kept(path: Path, *keys: str) -> dict[str, Any]:
    """What an earlier call has kept: a JSON object with these keys."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found.keys() >= set(keys):
            raise ValueError("it is no object with " + (" and ".join(keys) or "names"))
    except (OSError, ValueError, RecursionError) as problem:
        raise OptionError(
            f"{path} cannot be read ({first_line(problem)})", hint="Remove it; what it told is measured again."
        ) from None
    return found


@contextmanager
def understood(*paths: Path) -> Iterator[None]:
    """Whoever takes apart what `read_kept` has read: where it is not as it was written, that is said, and of what."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        named, why = " or ".join(map(str, paths)), f"{type(problem).__name__}: {first_line(problem)}"
        raise OptionError(
            f"{named} is not as it was written ({why})",
            hint="Remove it; what it told is measured again.",
        ) from None


def same_options(path: Path, options: Mapping[str, Any]) -> None:
    """Refuse to mix what was made with other options, which `path` keeps; without anything beside it nothing was."""
    if path.is_file() and any(each != path for each in path.parent.iterdir()):
        made = read_kept(path)
        for key, value in {**dict.fromkeys(made), **options}.items():
            if made.get(key) != value:
                raise OptionError(
                    f"{path.parent} holds results with {key} {made.get(key)!r}, not {value!r}",
                    hint="Repeat its options (--no-apgd where a study has no apgd, --set as it was), or choose another "
                    "--out.",
                )
    write_text(path, json.dumps(options) + "\n")


def paired(first: Callable[[], Any], second: Callable[[], Any], *, rounds: int, warmup: int = 10) -> dict[str, Any]:
    """Time two calls turn by turn in one run, so that drift hits both: milliseconds, and the ratio second / first.

    The ratio's spread is the 5th and 95th percentile over 200 bootstrap medians.
    """
    times = _turns((first, second), rounds, warmup)
    return {
        "rounds": rounds,
        "first_ms": percentiles(times[:, 0]),
        "second_ms": percentiles(times[:, 1]),
        **_ratio(times[:, 1], times[:, 0]),
    }


def side_by_side(calls: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 2) -> dict[str, Any]:
    """Time any number of calls turn by turn: milliseconds of each, and how often it would run while the first runs once
    (`ratio`, first / this), with the spread as `paired` has it.
    """
    times = _turns(tuple(calls.values()), rounds, warmup)
    return {
        "rounds": rounds,
        **{
            name: {"ms": percentiles(times[:, column]), **_ratio(times[:, 0], times[:, column])}
            for column, name in enumerate(calls)
        },
    }


def _turns(calls: Sequence[Callable[[], Any]], rounds: int, warmup: int) -> npt.NDArray[np.float64]:
    """Milliseconds, (rounds, calls); who comes first changes every round."""
    for _ in range(warmup):
        for call in calls:
            call()
    times = np.empty((rounds, len(calls)))
    for index in range(rounds):
        for column in np.roll(np.arange(len(calls)), index).tolist():
            started = time.perf_counter()
            calls[column]()
            times[index, column] = time.perf_counter() - started
    return times * 1e3


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> dict[str, Any]:
    draws = np.random.default_rng(0).integers(0, len(above), (200, len(above)))
    ratios = np.median(above[draws], axis=1) / np.median(below[draws], axis=1)
    return {
        "ratio": round(float(np.median(above) / np.median(below)), 4),
        "ratio_5_95": [round(float(value), 4) for value in np.percentile(ratios, (5, 95))],
    }


def percentiles(values: Any) -> dict[str, float]:
    """The median and the worst of some times."""
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 90, 95, 99)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    except OSError:  # a machine without it
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
