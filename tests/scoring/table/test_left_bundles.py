"""The bundle that lies beside a table for a cluster's workers: it is the one of the job, whatever lay there before."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bundle import Bundle
from bundle.errors import BundleUntrusted, ScoringError
from bundle.folder import sign_bundle
from bundle.manifest import MANIFEST, SIGNATURE
from scoring.answers import Asking
from scoring.cluster.crew import Cluster
from scoring.cluster.worker import BUNDLES, fetch, leave
from scoring.table.job import TableOptions, score_into_table
from tests.conftest import MakeToyBundle
from tests.keys import write_keys
from tests.scoring.conftest import InThisProcess, save


@dataclass
class Nights:
    """Jobs of one table; each finds a new photograph."""

    photos: Path
    path: Path
    crew: InThisProcess
    count: int = 0

    @property
    def left(self) -> Path:
        return self.photos.with_name("table") / BUNDLES / Bundle.open(self.path).bundle_id

    def score(self) -> int:
        self.count += 1
        save(self.photos / "new" / f"{self.count}.png", np.full((32, 32, 3), self.count, np.uint8))
        options, table = TableOptions(asking=Asking(network="full")), self.photos.with_name("table")
        return score_into_table(str(self.photos), Bundle.open(self.path), str(table), options, self.crew).scored


@pytest.fixture
def nights(photos: Path, toy_bundle: Bundle, tmp_path: Path) -> Nights:
    """The first is over."""
    found = Nights(photos, Path(shutil.copytree(toy_bundle.path, tmp_path / "own")), InThisProcess())
    assert found.score() == 23
    return found


def test_signed_after_a_night_and_signed_anew(nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (b"\1" * 32, b"\2" * 32):
        private, public = write_keys(tmp_path, seed)
        sign_bundle(nights.path, private, replace=True)
        monkeypatch.setenv("FIELDMARK_PUBLIC_KEY", str(public))
        assert nights.score() == 1
    monkeypatch.delenv("FIELDMARK_PUBLIC_KEY")
    (nights.path / SIGNATURE).unlink()
    assert nights.score() == 1
    monkeypatch.setenv("FIELDMARK_PUBLIC_KEY", str(public))
    with pytest.raises(BundleUntrusted, match="is not signed"):
        fetch(Cluster(address="local").parcel(nights.crew.work[-1]))


@pytest.mark.parametrize("name", [MANIFEST, "*.onnx"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_damaged_copy_is_replaced(nights: Nights, name: str, damage: str) -> None:
    file = min(nights.left.rglob(name))
    file.unlink() if damage == "missing" else file.write_bytes(b"\0" + file.read_bytes()[1:])
    assert nights.score() == 1


def test_what_is_not_the_bundle_of_the_job_is_refused(nights: Nights, make_toy_bundle: MakeToyBundle) -> None:
    work = nights.crew.work[-1]
    parcel = Cluster(address="local").parcel(work)
    other = make_toy_bundle(nights.path.with_name("other"), name="other")
    shutil.rmtree(nights.left)
    shutil.copytree(other.path, nights.left)
    with pytest.raises(ScoringError, match=f"is bundle {other.bundle_id[:12]}.* Run the same command again"):
        fetch(parcel)
    (nights.left / MANIFEST).unlink()
    with pytest.raises(ScoringError, match=rf"{work.bundle.bundle_id} has no {MANIFEST}\. Run the same command again"):
        fetch(parcel)
    leave(work.bundle, work.place)
    assert fetch(parcel).bundle_id == work.bundle.bundle_id
