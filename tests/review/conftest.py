"""A quarantine of the toy bundle, small and true: clean birds, and noise that one caller sent within an hour."""

import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle import Bundle
from review.evidence.look import Looker
from review.follower import Follower
from review.pages.access import Door
from review.pages.app import application
from review.pages.page import Console
from review.sources.quarantine import QuarantineSource
from review.store.database import Database
from serving.client.local import LocalInference
from serving.client.prediction import Prediction, predictions
from serving.quarantine.entry import RECORD, Entry, LayerEvidence, place_of, write_record
from tests.conftest import LABELS, LAYERS, draw_toy

START = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
SHARE = 0.5
HOST = "127.0.0.1:8000"


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_entry(root: Path, data: bytes, said: Prediction, when: datetime, **changes: Any) -> Path:
    """One entry as the gateway writes it, and the path of its record; `changes` are some of its fields."""
    number = hashlib.sha256(data + when.isoformat().encode()).hexdigest()[:32]
    received = when.isoformat(timespec="milliseconds")
    day, stem = place_of(received, number)
    facts = {
        "schema": 1,
        "id": number,
        "received": received,
        "request_id": f"r-{number[:6]}",
        "bundle_id": said.bundle_id,
        "network": said.network,
        "caller": "shop",
        "label": said.label,
        "probability": said.probability,
        "score": said.instance_score,
        "p_value": said.p_value,
        "alpha": 0.05,
        "flagged": said.is_adversarial,
        "reason": "flagged" if said.is_adversarial else "sample",
        "drawn": not said.is_adversarial or int(number[:2], 16) < 256 * SHARE,
        "layers": tuple(
            LayerEvidence(layer=layer, squared_distance=distance)
            for layer, distance in zip(LAYERS, said.layer_scores, strict=True)
        ),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "image": f"{stem}.png",
    }
    (root / day).mkdir(parents=True, exist_ok=True)
    (root / day / f"{stem}.png").write_bytes(data)
    path = root / day / f"{stem}{RECORD}"
    path.write_bytes(write_record(Entry(**facts | changes)))
    return path


@pytest.fixture(scope="session")
def answered(toy_bundle: Bundle) -> list[tuple[bytes, Prediction]]:
    """Forty clean images and twenty of noise over birds, each as PNG with the bundle's answer."""
    random = np.random.default_rng(7)
    clean = [draw_toy(index % len(LABELS), 3000 + index) for index in range(40)]
    noisy = [
        (draw_toy(index % len(LABELS), 4000 + index) + random.normal(0, 45, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        for index in range(20)
    ]
    images = np.stack([*clean, *noisy])
    said = predictions(LocalInference(toy_bundle, threads=1).infer(images, "full"), toy_bundle.manifest, "full")
    return [(encoded(image), each) for image, each in zip(images, said, strict=True)]


@pytest.fixture
def quarantine(tmp_path: Path, answered: list[tuple[bytes, Prediction]]) -> Path:
    """Sixty entries: the clean ones over two days, the noise within one hour from `partner-x`."""
    root = tmp_path / "quarantine"
    for index, (data, said) in enumerate(answered):
        clean = index < 40
        when = START + (timedelta(minutes=67 * index) if clean else timedelta(hours=30, seconds=50 * index))
        write_entry(root, data, said, when, caller="shop" if clean else "partner-x")
    return root


@pytest.fixture
def database(tmp_path: Path, quarantine: Path, toy_bundle: Bundle) -> Iterator[Database]:
    """The review of the quarantine, before anything was decided; everything is worked out."""
    opened = Database.open(tmp_path / "review.db", source=str(quarantine), bundle_id=toy_bundle.bundle_id)
    Follower(opened, QuarantineSource(str(quarantine)), toy_bundle).turn()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def looker(toy_bundle: Bundle) -> Looker:
    return Looker(toy_bundle, threads=1)


@pytest.fixture
def console(database: Database, quarantine: Path, looker: Looker) -> Console:
    """A console that nobody serves; its follower has worked once."""
    source = QuarantineSource(str(quarantine))
    follower = Follower(database, source, looker.bundle)
    follower.turn()
    door = Door(hosts=frozenset({HOST}), port=8000, reviewer="ada")
    return Console(database=database, source=source, follower=follower, looker=looker, door=door)


@pytest.fixture
def client(console: Console) -> Iterator[Any]:
    """A browser without scripts that came in by the token."""
    from starlette.testclient import TestClient

    with TestClient(application(console), base_url=f"http://{HOST}") as opened:
        assert opened.get("/", params={"token": console.door.token}).status_code == 200
        yield opened
