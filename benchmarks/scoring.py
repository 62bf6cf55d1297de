"""What scoring archives costs: decoding alone, inference alone, and the jobs that do both; and what grows with rows.

On shared cores no job is faster than 1 / (1/decode + 1/inference), each measured with all cores; shares are of that.
What depends on the number of rows alone is measured with reading and inference replaced by constants.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.page import put
from bundle.folder import Bundle
from bundle.manifest import Manifest
from bundle.tensors import DTYPES
from scoring.answers import Asking
from scoring.cluster.crew import Cluster
from scoring.local.score import ScoreOptions, score_source
from scoring.sources import SourceFile
from scoring.table.chunks import ChunkScorer
from scoring.table.crew_of_one import CrewOfOne
from scoring.table.job import Briefing, Crew, TableOptions, score_into_table
from scoring.table.runs import Chunk
from serving.client.local import LocalInference
from serving.client.prediction import Outputs

IMAGES, ROWS, ROUNDS = 4000, (1_000, 100_000, 1_000_000), 3
SIDE, BATCH, CHUNK = (375, 500), 64, 256
LOCAL_AIM, FAR_AIM = 0.90, 0.80
MANY = "all cores, workers of one"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
NUMPY = {"FP32": np.float32, "BOOL": np.bool_, "INT64": np.int64, "UINT8": np.uint8}


def measure_scoring(bundle_path: Path, *, images: int = IMAGES, rows: Sequence[int] = ROWS) -> dict[str, Any]:
    """Images a second of each part and job, medians of ROUNDS turns; seconds and peak MB by rows."""
    with tempfile.TemporaryDirectory(prefix="fieldmark-bench-") as place:
        folder = Path(place)
        photos = _photographs(folder / "photos", images)
        result = _rates(Bundle.open(bundle_path), photos, folder, images)
        result["rows"] = {str(count): _alone(bundle_path, folder / f"rows-{count}", count) for count in rows}
    return result


def write_page(result: Path) -> None:
    """Put the table of a kept result into docs/benchmarks.md, between its marks."""
    put("scoring", table(json.loads(result.read_text(encoding="utf-8"))), PAGE)


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown, each beside its aim."""
    rates, shares = result["images_per_second"], result["share_of_limit"]
    lines = [
        f"Images a second on {result['cores']} cores, JPEGs of 500 x 375, `{result['network']}` network; the limit is "
        "1 / (1/decode + 1/inference).",
        "",
        "| figure | measured | aim |",
        "|---|---|---|",
        f"| decoding alone; inference alone; the limit of both | {rates['decode']:,.0f}; {rates['inference']:,.0f}; "
        f"{result['limit']:,.0f} | |",
        f"| `--out`, of the limit | {shares['shards']:.2f} ({rates['shards']:,.0f}) | {LOCAL_AIM:.2f} |",
        f"| `--table`, of the limit | {shares['table']:.2f} ({rates['table']:,.0f}) | {LOCAL_AIM:.2f} |",
        f"| `--cluster local`, of the limit, once it runs | {shares[MANY]:.2f} ({rates[MANY]:,.0f}) | {FAR_AIM:.2f} |",
        "| its workers of one core against one of them | "
        f"{result['all_workers_against_one']:.2f}x | {0.9 * result['cores']:.1f}x |",
    ]
    for count, found in result["rows"].items():
        seconds = found["seconds"]
        lines.append(
            f"| {int(count):,} rows, reading and inference replaced by constants: list; resume before the commit; find "
            f"nothing new; peak memory | {seconds['list']:.1f} s; {seconds['resume']:.1f} s; "
            f"{seconds['nothing new']:.1f} s; {found['peak_mb']:,.0f} MB | 60 s each at a million |"
        )
    return "\n".join(lines) + "\n"


def _rates(bundle: Bundle, photos: Path, folder: Path, images: int) -> dict[str, Any]:
    network, files = bundle.manifest.main_network, sorted(photos.iterdir())
    inference = LocalInference(bundle)
    asking = Asking(network=network, batch=BATCH)
    options = TableOptions(asking=asking, chunk_rows=CHUNK)
    table = iter(range(10**6))

    def into(crew: Crew) -> float:
        where = folder / f"table-{next(table)}"
        score_into_table(str(photos), bundle, str(where), options, crew)
        return _steady(where)

    def decode() -> float:
        with ThreadPoolExecutor(inference.threads) as pool:
            return _rate(images, lambda: list(pool.map(bundle.manifest.image.read, files)))

    spec = bundle.manifest.image
    batch = np.zeros((BATCH, spec.height, spec.width, 3), np.uint8)
    turns = max(1, images // BATCH)
    measures: dict[str, Callable[[], float]] = {
        "decode": decode,
        "inference": lambda: _rate(turns * BATCH, lambda: [inference.infer(batch, network) for _ in range(turns)]),
        "shards": lambda: _shards(photos, inference, folder / f"out-{next(table)}", network),
        "table": lambda: into(CrewOfOne(inference=inference)),
        "one worker": lambda: _on_one_core(lambda: into(Cluster(address="local", workers=1))),
        MANY: lambda: into(Cluster(address="local", workers=inference.threads)),
    }
    inference.infer(batch, network)
    seen: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(ROUNDS):  # turn by turn, so that drift hits all
        for name, call in measures.items():
            seen[name].append(call())
    rates = {name: float(np.median(values)) for name, values in seen.items()}
    limit = 1 / (1 / rates["decode"] + 1 / rates["inference"])
    return {
        "bundle_id": bundle.bundle_id,
        "network": network,
        "images": images,
        "cores": inference.threads,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "all_turns": {name: [round(rate, 1) for rate in values] for name, values in seen.items()},
        "limit": round(limit, 1),
        "share_of_limit": {name: round(rates[name] / limit, 3) for name in ("shards", "table", MANY)},
        "all_workers_against_one": round(rates[MANY] / rates["one worker"], 3),
    }


def _on_one_core(action: Callable[[], float]) -> float:
    """What `action` gives when it and all processes that it starts share one core.

    A worker reads while it infers, so one that is alone on a machine takes more than the core it asks for.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return action()
    finally:
        os.sched_setaffinity(0, cores)


def _rate(images: int, action: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    action()
    return images / (time.perf_counter() - begun)


def _shards(photos: Path, inference: LocalInference, out: Path, network: str) -> float:
    options = ScoreOptions(network=network, batch=BATCH, shard_rows=CHUNK)
    return score_source(photos, inference, out, options).images_per_second


def _steady(table: Path) -> float:
    """Rows a second from the first chunk that was written to the last: starting a cluster is no part of its rate."""
    records = sorted(table.glob("_fieldmark/runs/*/done/*.json"), key=lambda path: path.stat().st_mtime_ns)
    times = [path.stat().st_mtime_ns / 1e9 for path in records]
    rows = sum(json.loads(path.read_text())["rows"] for path in records[1:])
    return rows / (times[-1] - times[0]) if len(times) > 1 else float("nan")


def _photographs(folder: Path, count: int) -> Path:
    """JPEGs of 500 x 375 as a camera's: smooth, with some noise, 60 to 70 kB."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            SIDE[::-1], Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + random.integers(-12, 13, (*SIDE, 3), np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:06d}.jpg", quality=88)
    return folder


@dataclass
class Constant:
    """Answers of the right shapes and nothing behind them."""

    manifest: Manifest
    bundle_id: str

    def infer(self, images: npt.NDArray[np.uint8], network: str) -> Outputs:
        return {
            tensor.name: np.full((len(images), *tensor.shape), 0.5, NUMPY[DTYPES[tensor.name]])
            for tensor in self.manifest.networks[network].outputs
        }


@dataclass(frozen=True)
class ConstantCrew:
    """Scores chunks without reading a file."""

    inference: Constant

    def score(self, work: Briefing, numbers: Sequence[int], on_rows: Callable[[int], None]) -> Iterator[Chunk]:
        spec = self.inference.manifest.image
        image = np.zeros((spec.height, spec.width, 3), np.uint8)

        def read(_: SourceFile) -> npt.NDArray[np.uint8]:
            return image

        yield from ChunkScorer(
            place=work.place,
            begun=work.begun,
            inventory=work.inventory,
            inference=self.inference,
            asking=work.asking,
            reader=read,
        ).score(numbers, on_rows)


def _alone(bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """`rows` in a process of its own, since the peak of memory is a process's."""
    command = [sys.executable, "-m", "benchmarks", "rows", str(bundle), str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Stopped(BaseException):
    """The job is killed before its commit."""


def rows(bundle_path: Path, folder: Path, count: int) -> None:
    """Print seconds to list, score, resume and compare `count` rows, and the peak of memory in MB."""
    folder.mkdir()
    _manifest(folder / "manifest.parquet", count)
    bundle = Bundle.open(bundle_path)
    options = TableOptions(asking=Asking(network=bundle.manifest.main_network, batch=BATCH))
    crew = ConstantCrew(Constant(bundle.manifest, bundle.bundle_id))
    marks: dict[str, float] = {}

    def job(stop: bool = False) -> float:
        begun = time.perf_counter()

        def on_progress(done: int, scored: int, total: int) -> None:
            marks.setdefault("listed", time.perf_counter() - begun)
            if stop and done == total:
                raise _Stopped

        try:
            source, table = str(folder / "manifest.parquet"), str(folder / "table")
            score_into_table(source, bundle, table, options, crew, on_progress=on_progress)
        except _Stopped:
            pass
        return time.perf_counter() - begun

    before = _peak()
    scored = job(stop=True)
    found = {"list": marks["listed"], "score": scored - marks["listed"], "resume": job(), "nothing new": job()}
    told = {
        "seconds": {name: round(seconds, 2) for name, seconds in found.items()},
        "peak_mb": _peak(),
        "before_mb": before,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def _manifest(path: Path, count: int) -> None:
    """Ids, names, sizes and tags of objects that nobody asks for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = pa.schema([("id", pa.int64()), ("path", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
    with pq.ParquetWriter(path, kinds) as writer:
        for begin in range(0, count, 10_000):
            ids = np.arange(begin, min(begin + 10_000, count))
            names = [f"s3://archive/{each // 1000:06d}/{each:09d}.jpg" for each in ids]
            tags = [f"{each:032x}" for each in ids]
            writer.write_table(pa.table({"id": ids, "path": names, "size": ids + 1, "etag": tags}, schema=kinds))


def _peak() -> float:
    """Of this program alone, in MB: what getrusage tells begins with what the process was before it became this one."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(each for each in status.splitlines() if each.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)
