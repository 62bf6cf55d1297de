"""What shows only after a while: a disk that fills, images of another kind, ten minutes of everything."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.damaged import Mutations
from benchmarks.reliability.deployment import Deployment
from benchmarks.reliability.neighbours import png
from benchmarks.reliability.rows import Ground, Outcome, Row, Skipped, beside_neighbours, tally
from benchmarks.reliability.wire import Heard, outcome
from serving.gateway.drift import QUESTION
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

SOAK_SECONDS, WARM_SECONDS, SAMPLE_SECONDS = 600.0, 90.0, 5.0
GROWTH = 0.02  # share of memory after warm-up
UNLIKE = 300


def _full_disk(ground: Ground) -> Outcome:
    with _small_disk() as disk, Deployment(ground.bundle.path, ground.folder, "--quarantine", str(disk)) as deployment:

        def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
            with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            found, flagged = Counter[str](), 0
            with deployment.gateway.channel() as channel:
                stub: Any = FieldmarkStub(channel)
                for file in ground.known.files * ground.many(50):
                    request = v1.ClassifyRequest(image=file, alpha=0.99)
                    answer, status = outcome(heard, stub.Classify, request, timeout=10)
                    found[status] += 1
                    flagged += answer is not None and answer.adversarial.flagged
            counts = dict(
                re.findall(r"quarantine_(written|dropped)_total(?:\{reason=\"flagged\"\})? (\S+)", deployment.metrics())
            )
            kept, lost = (int(float(counts.get(name, 0))) for name in ("written", "dropped"))
            copies = f"copies of all callers' images: {kept} kept, {lost} counted as lost"
            return f"{tally(found)}, {flagged} of them flagged; {copies}", set(found) == {
                "OK"
            } and flagged > 0 and lost > 0

        return beside_neighbours(ground, attack, deployment)


def _unlike(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        spec, rng, flagged = ground.known.manifest.image, np.random.default_rng(5), 0
        with deployment.gateway.channel() as channel:
            stub: Any = FieldmarkStub(channel)
            for _ in range(UNLIKE):
                stripes = rng.integers(0, 2, (spec.height, 1, 3), dtype=np.uint8) * 255
                image = png(np.repeat(stripes, spec.width, axis=1))
                answer, _ = outcome(heard, stub.Classify, v1.ClassifyRequest(image=image))
                flagged += answer is not None and answer.adversarial.flagged
        time.sleep(1.0)
        said = any(QUESTION in line for line in deployment.lines)
        return f"{flagged} of {UNLIKE} flagged; {'it asks' if said else 'no word'}", said or flagged < UNLIKE // 4

    return beside_neighbours(ground, attack)


def _soak(ground: Ground) -> Outcome:
    seconds, warm = (SOAK_SECONDS, WARM_SECONDS) if not ground.quick else (40.0, 15.0)
    samples: list[tuple[float, dict[str, float]]] = []

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        began, found = time.monotonic(), Counter[str]()
        mutations = Mutations(ground.known.files, seed=77)
        with contextlib.ExitStack() as opened:
            stubs: list[tuple[Any, Any]] = [
                (FieldmarkStub(opened.enter_context(door.channel())), door) for door in deployment.doors
            ]
            while (now := time.monotonic() - began) < warm + seconds:
                for stub, door in stubs:
                    _everything(stub, door.metadata, ground, mutations, found, heard)
                if now > warm and (not samples or now - samples[-1][0] > SAMPLE_SECONDS):
                    samples.append((now, deployment.memory()))
        return f"{seconds / 60:.1f} minutes after {warm:g} s of warm-up; beside the neighbours {tally(found)}", True

    result = beside_neighbours(ground, attack)
    growth = {name: _growth([sample[name] for _, sample in samples]) for name in samples[0][1]}
    total = _growth([sum(sample.values()) for _, sample in samples])
    result.numbers["memory_growth_percent"] = round(100 * total, 2)
    result.happened += "; memory " + ", ".join(f"{name} {100 * grown:+.1f} %" for name, grown in growth.items())
    result.held &= total < GROWTH
    return result


def _everything(
    stub: Any, metadata: Any, ground: Ground, mutations: Mutations, found: Counter[str], heard: Heard
) -> None:
    """One of each: an explained answer, a stream, a damaged image, a description."""
    files = ground.known.files
    explained = v1.ClassifyRequest(image=files[0], explain=True, top_k=2)
    damaged = v1.ClassifyRequest(image=mutations.message())
    several = [
        v1.ClassifyStreamRequest(id=str(number), request=v1.ClassifyRequest(image=file))
        for number, file in enumerate(files)
    ]
    for call in (
        lambda: stub.Classify(explained, timeout=20, metadata=metadata),
        lambda: stub.Classify(damaged, timeout=20, metadata=metadata),
        lambda: [each.id for each in stub.ClassifyStream(iter(several), timeout=20, metadata=metadata)],
        lambda: stub.Describe(v1.DescribeRequest(), timeout=20, metadata=metadata),
    ):
        found[outcome(heard, call)[1]] += 1


def _growth(megabytes: list[float]) -> float:
    """How much more the last fifth of the samples has than the first, as a share."""
    part = max(1, len(megabytes) // 5)
    first, last = float(np.median(megabytes[:part])), float(np.median(megabytes[-part:]))
    return last / first - 1 if first else 0.0


@contextlib.contextmanager
def _small_disk() -> Iterator[Path]:
    """A file system of two megabytes; raises Skipped where none may be mounted."""
    with tempfile.TemporaryDirectory(prefix="fieldmark-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "fieldmark", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode != 0:
            raise Skipped(f"no small disk can be mounted here: {mounted.stderr.strip() or os.strerror(1)}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


ROWS = (
    Row(
        name="full-disk",
        tried="Flagged images while the quarantine's disk is full",
        must="Every answer is given; what could not be kept is counted",
        run=_full_disk,
    ),
    Row(
        name="unlike-the-training-images",
        tried=f"{UNLIKE} images of another kind than the bundle was trained on",
        must="Where far more is flagged than promised, the log asks how they are prepared",
        run=_unlike,
        spoils=True,
    ),
    Row(
        name="soak",
        tried="Ten minutes of answers, explanations, streams, descriptions and damaged images, at both doors",
        must=f"Memory after warm-up grows by less than {GROWTH:.0%}",
        run=_soak,
    ),
)
