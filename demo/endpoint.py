"""The served bundle as the demo meets it: `fieldmark serve` in a process of its own, and a client of fieldmark.v1."""

import csv
import io
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
from PIL import Image

from demo.stages import StageFailed
from serving.client.endpoint import prediction_of
from serving.client.prediction import Prediction
from serving.gateway.client import FieldmarkClient

STOP_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the endpoint said of one folder of images, in the order of index.csv."""

    labels: list[str]  # the truth
    paths: list[Path]  # the files that were sent
    predictions: list[Prediction]

    @property
    def right(self) -> list[bool]:
        """Which images were answered with their true label."""
        return [truth == answer.label for truth, answer in zip(self.labels, self.predictions, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of these."""
        return sum(self.right) / len(self.labels)

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
    ports = ["--port", "0", "--gateway-metrics-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise StageFailed("the server did not start", hint="Its message stands above.")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def ask(client: FieldmarkClient, folder: Path, network: str) -> dict[str, Answers]:
    """Send the file of every image of an attack folder to the endpoint; answers by attack."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["network"] == network]
    answers = {}
    for attack in dict.fromkeys(row["attack"] for row in rows):
        chosen = [row for row in rows if row["attack"] == attack]
        paths = [folder / row["path"] for row in chosen]
        said = _classify(client, paths, network)
        answers[attack] = Answers(labels=[row["label"] for row in chosen], paths=paths, predictions=said)
    return answers


def look(client: FieldmarkClient, image: Path, network: str) -> npt.NDArray[np.float32]:
    """Where the network looked in one image, as the endpoint draws it : (H, W) in [0, 1]."""
    answer = client.classify(image.read_bytes(), network=network, explain=True)
    with Image.open(io.BytesIO(answer.explanation.attention_png)) as picture:
        return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _classify(client: FieldmarkClient, paths: list[Path], network: str) -> list[Prediction]:
    """One answer a file, in their order; raises StageFailed for a file without one."""
    files = ((str(number), path.read_bytes()) for number, path in enumerate(paths))
    found: dict[int, Prediction] = {}
    for each in client.classify_stream(files, network=network):
        if each.HasField("error"):
            raise StageFailed(f"{paths[int(each.id)]} was not classified: {each.error.message}")
        found[int(each.id)] = prediction_of(each.response)
    return [found[number] for number in range(len(paths))]
