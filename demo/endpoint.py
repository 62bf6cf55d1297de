"""The served bundle as the demo meets it: a real server in a process of its own, and a client on its gRPC port."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import tensors
from demo.stages import StageFailed
from serving.prediction import Inference, Prediction, predictions

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the endpoint said of one folder of images, in the order of index.csv."""

    labels: list[str]  # the truth
    pixels: npt.NDArray[np.uint8]  # (n, H, W, 3)
    attention: npt.NDArray[np.float32]  # (n, h, w)
    predictions: list[Prediction]

    @property
    def accuracy(self) -> float:
        """Share of images answered with their true label."""
        pairs = zip(self.labels, self.predictions, strict=True)
        return sum(truth == answer.label for truth, answer in pairs) / len(self.labels)

    @property
    def flagged(self) -> float:
        """Share of images with p-value <= alpha."""
        return sum(answer.is_adversarial for answer in self.predictions) / len(self.labels)

    @property
    def missed(self) -> float:
        """Share of images answered wrongly and not flagged: what an attacker gains from the system as a whole."""
        pairs = zip(self.labels, self.predictions, strict=True)
        return sum(truth != answer.label and not answer.is_adversarial for truth, answer in pairs) / len(self.labels)

    @property
    def scores(self) -> list[float]:
        """Adversarial scores, higher = more suspicious."""
        return [answer.instance_score for answer in self.predictions]


@contextmanager
def served(bundle: Path) -> Iterator[dict[str, Any]]:
    """`fieldmark serve` on free ports; yields what it prints when it is ready, and stops it as Ctrl-C would."""
    command = [sys.executable, "-m", "fieldmark", "serve", str(bundle), "--json"]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise StageFailed("the server did not start", hint="Its message stands above.")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def ask(inference: Inference, folder: Path, network: str) -> dict[str, Answers]:
    """Send every image of an attack folder to the endpoint; answers by attack."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["network"] == network]
    answers = {}
    for attack in dict.fromkeys(row["attack"] for row in rows):
        chosen = [row for row in rows if row["attack"] == attack]
        pixels = np.stack([inference.manifest.image.read(folder / row["path"]) for row in chosen])
        attention, said = [], []
        for start in range(0, len(pixels), BATCH):
            outputs = inference.infer(pixels[start : start + BATCH], network)
            attention.append(outputs[tensors.ATTENTION])
            said.extend(predictions(outputs, inference.manifest, network))
        answers[attack] = Answers(
            labels=[row["label"] for row in chosen],
            pixels=pixels,
            attention=np.concatenate(attention),
            predictions=said,
        )
    return answers
