"""What reviewers found clean of a random sample becomes the calibration: from another camera's scores to a bundle."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldmark
from bundle import Bundle
from bundle.arrays import read_arrays
from review.evidence.layers import calibrated
from review.follower import Follower
from review.sources.source import open_source
from review.store.database import Database
from review.store.decisions import decide
from review.store.queue import counts
from review.store.sample import draw
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference


def test_a_decided_sample_makes_another_bundle(
    bundle: Bundle, other_camera: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in other_camera["calibrate"]:
        shutil.copy(path, photos)
    score_source(photos, LocalInference(bundle), tmp_path / "scores", ScoreOptions(network="full"))
    source = open_source(str(tmp_path / "scores"), bundle)
    review = Database.open(tmp_path / "review.db", source=source.place, bundle_id=bundle.bundle_id)
    Follower(review, source, bundle).turn()
    drawn = draw(review, 60, "ada")
    with review.reading() as connection:
        rows = connection.execute(
            "SELECT items.id, image FROM sampled JOIN items ON id = item WHERE sample = ?", [drawn.number]
        ).fetchall()
    decide(review, [row["id"] for row in rows[3:]], "clean", "ada")
    decide(review, [row["id"] for row in rows[:3]], "attack", "ada")
    moved = photos.rename(tmp_path / "moved")
    command: list[Any] = ["calibrate", bundle.path, "--from-review", review.path, "--out", tmp_path / "here"]
    for more, code in ([], 1), (["--images", moved], 0):
        with pytest.raises(SystemExit) as ended:
            fieldmark.main([str(word) for word in [*command, *more]])
        assert ended.value.code == code
    said = capsys.readouterr()
    assert "--images DIR" in " ".join(said.err.split())
    assert "of the sample left out: 3 attacks" in said.out
    assert "take the place of" not in said.out, "they are more than before"
    made = Bundle.open(tmp_path / "here")
    assert made.bundle_id != bundle.bundle_id
    assert made.manifest.training["calibration"]["source"] == "review review.db, sample 1"
    pixels = np.stack([bundle.manifest.image.read(moved / Path(row["image"].decode()).name) for row in rows[3:]])
    scores = np.sort(LocalInference(bundle).infer(pixels, "full")["instance_score"])
    assert np.array_equal(read_arrays(made.file("detector/full.npz"))["calibration"], scores)
    assert counts(review).by_state["clean"] == len(rows) - 3
    known = calibrated(made, "full")
    assert known is not None
    assert known.of == "calibration images"
    assert known.distances.shape == (len(rows) - 3, len(made.manifest.networks["full"].detector.columns))
    with review.reading() as connection:
        assert connection.execute("SELECT DISTINCT made FROM uses").fetchall()[0][0] == made.bundle_id
