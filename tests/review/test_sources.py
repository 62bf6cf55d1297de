"""Sources as they are found: half written, thinned by age, hostile, of another bundle."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fieldmark
from bundle import Bundle
from bundle.errors import FieldmarkError, ImageGone, ReviewError
from review.follower import Follower
from review.sources.quarantine import QuarantineSource
from review.sources.scores import ScoredFiles, ScoreSource
from review.sources.source import Stamp, open_source
from review.store.database import Database
from review.store.queue import add, counts
from review.store.sample import drawable
from scoring.columns import exact_paths
from scoring.local.score import ScoreOptions, score_source
from scoring.local.shards import read_scores
from serving.client.local import LocalInference
from serving.client.prediction import Prediction
from tests.conftest import draw_toy
from tests.review.conftest import START, encoded, write_entry

Answered = list[tuple[bytes, Prediction]]


def test_an_entry_is_told_once_and_as_it_stands(quarantine: Path, answered: Answered) -> None:
    source = QuarantineSource(str(quarantine))
    items = list(source.news())
    assert len(items) == 60
    assert list(source.news()) == []
    noisy = next(item for item in items if item.origin == "partner-x")
    assert noisy.reason == "flagged"
    assert noisy.received.startswith("2026-11-25T12:")
    said = dict(answered)[source.read(noisy.image, 10**6, Stamp())]
    assert (noisy.label, noisy.layers) == (said.label, said.layer_scores)
    write_entry(quarantine, answered[0][0], answered[0][1], START + timedelta(days=9))
    assert [item.received[:10] for item in source.news()] == ["2026-12-03"]
    assert source.notices == []


def test_what_is_being_written_is_told_when_it_is_whole(tmp_path: Path, answered: Answered) -> None:
    data, said = answered[0]
    path = write_entry(tmp_path, data, said, START)
    text = path.read_text()
    path.unlink()  # the image stands there, its JSON comes last
    source = QuarantineSource(str(tmp_path))
    assert list(source.news()) == []
    (path.parent / f".{path.name}.1234567890123.tmp").write_text(text[:40])
    assert list(source.news()) == []
    path.write_text(text)
    assert len(list(source.news())) == 1


def test_what_was_removed_by_age_is_told_no_more_and_its_image_is_gone(quarantine: Path, toy_bundle: Bundle) -> None:
    source = QuarantineSource(str(quarantine))
    items = list(source.news())
    (quarantine / items[0].image).unlink()
    with pytest.raises(ImageGone, match="the image is gone"):
        source.read(items[0].image, 10**6, Stamp())
    review = Database.open(quarantine.parent / "r.db", source="x", bundle_id="b")
    add(review, items)
    Follower(review, source, toy_bundle).turn()
    with review.reading() as connection:
        assert connection.execute("SELECT key FROM items WHERE problem LIKE '%is gone%'").fetchone()[0] == items[0].key
        assert connection.execute("SELECT count(*) FROM items WHERE print IS NULL").fetchone()[0] == 1
    assert counts(review).total == 60


@pytest.mark.hostile
@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: "{",
        lambda facts: "[" * 100_000,
        lambda facts: json.dumps([facts]),
        lambda facts: json.dumps({key: value for key, value in facts.items() if key != "p_value"}),
        lambda facts: json.dumps(facts | {"p_value": 7}),
        lambda facts: json.dumps(facts | {"p_value": "NaN"}),
        lambda facts: json.dumps(facts | {"image": "../../../etc/passwd"}),
        lambda facts: json.dumps(facts | {"image": "/etc/passwd"}),
        lambda facts: json.dumps(facts | {"image": ".."}),
        lambda facts: json.dumps(facts | {"layers": "many"}),
        lambda facts: json.dumps(facts | {"drawn": False}),
        lambda facts: json.dumps(facts | {"more": 1}),
        lambda facts: json.dumps(facts | {"received": "<b>now</b>"}),
        lambda facts: json.dumps(facts | {"reason": "spite"}),
        lambda facts: json.dumps(facts | {"label": "x" * 300_000}),
        lambda facts: "\0\xff",
    ],
)
def test_a_hostile_entry_is_left_out_with_a_sentence(
    tmp_path: Path, answered: Answered, spoil: Callable[[dict[str, Any]], str]
) -> None:
    data, said = answered[0]
    bad = write_entry(tmp_path, data, said, START)
    bad.write_text(spoil(json.loads(bad.read_text())), encoding="latin-1")
    write_entry(tmp_path, data, said, START + timedelta(hours=1))
    source = QuarantineSource(str(tmp_path))
    assert len(list(source.news())) == 1
    (notice,) = source.notices
    assert bad.name in notice
    assert "left out" in notice


@pytest.mark.hostile
def test_no_link_and_no_dots_lead_out_of_the_quarantine(tmp_path: Path, answered: Answered) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(answered[0][0])
    root = tmp_path / "quarantine"
    path = write_entry(root, *answered[0], START)
    image = path.with_suffix(".png")
    image.unlink()
    image.symlink_to(secret)
    source = QuarantineSource(str(root))
    assert list(source.news()) == []
    assert "has lost its image, and is left out" in source.notices[0]
    linked = f"{image.parent.name}/{image.name}"
    for name in (linked, "../secret.png", str(secret), "2026-11-24/../../secret.png"):
        with pytest.raises(ImageGone):
            source.read(name, 10**6, Stamp())


def test_a_pipe_in_the_place_of_an_image_makes_nobody_wait(tmp_path: Path, answered: Answered) -> None:
    path = write_entry(tmp_path, *answered[0], START)
    source = QuarantineSource(str(tmp_path))
    (item,) = source.news()
    path.with_suffix(".png").unlink()
    os.mkfifo(path.with_suffix(".png"))
    with pytest.raises(ImageGone):
        source.read(item.image, 10**6, Stamp())


def test_a_quarantine_that_went_away_is_a_sentence_and_comes_back(quarantine: Path, toy_bundle: Bundle) -> None:
    source = QuarantineSource(str(quarantine))
    aside = quarantine.with_name("aside")
    quarantine.rename(aside)
    with pytest.raises(ReviewError, match=r"cannot be reached.*What was decided is safe"):
        list(source.news())
    aside.rename(quarantine)
    assert len(list(source.news())) == 60


@pytest.fixture
def scored(tmp_path: Path, toy_bundle: Bundle) -> Path:
    photos = tmp_path / "photos"
    for folder, noise in (("clean", 0), ("noisy", 45)):
        (photos / folder).mkdir(parents=True)
        for index in range(24):
            random = np.random.default_rng(index)
            pixels = draw_toy(index % 5, 6000 + index) + random.normal(0, noise, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(photos / folder / f"{index}.png")
    (photos / "broken.png").write_bytes(b"no image")
    score_source(photos, LocalInference(toy_bundle, threads=1), tmp_path / "scores", ScoreOptions(network="full"))
    return tmp_path / "scores"


def test_scores_tell_all_that_was_flagged_and_some_of_the_others(scored: Path, toy_bundle: Bundle) -> None:
    source = open_source(str(scored), toy_bundle)
    items = {item.image: item for item in source.news()}
    rows = read_scores(scored)
    told = {path: row for path, row in zip(exact_paths(rows), rows.to_pylist(), strict=True) if row["status"] == "ok"}
    assert set(items) == set(told)  # few as they are, all of them
    assert source.totals == {"full": 48}
    assert source.whole
    for path, item in items.items():
        assert item.reason == ("flagged" if told[path]["is_adversarial"] else "sample")
        assert (item.p_value, item.label) == (told[path]["p_value"], told[path]["label"])
        assert item.origin == Path(path).parent.name
        assert item.drawn
        assert source.read(path, 10**6, Stamp()) == Path(path).read_bytes()
    assert list(source.news()) == []


def test_of_many_a_share_is_drawn_by_name(
    scored: Path, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("review.sources.scores.DRAWN", 24)
    source = open_source(str(scored), toy_bundle)
    items = list(source.news())
    assert not source.whole
    flagged = [item for item in items if item.reason == "flagged"]
    others = [item for item in items if item.reason == "sample"]
    assert 0 < len(others) < 24
    assert all(item.drawn for item in others)
    assert 0 < sum(item.drawn for item in flagged) < len(flagged)
    assert items == list(open_source(str(scored), toy_bundle).news())
    review = Database.open(tmp_path / "r.db", source="x", bundle_id="b")
    Follower(review, open_source(str(scored), toy_bundle), toy_bundle).turn()
    assert drawable(review) == sum(item.drawn for item in items)


def test_scores_of_another_bundle_and_unfinished_ones_are_refused(
    scored: Path, make_toy_bundle: Callable[..., Bundle], toy_bundle: Bundle, tmp_path: Path
) -> None:
    other = make_toy_bundle(tmp_path / "other", name="other")
    with pytest.raises(ReviewError, match="was scored with bundle"):
        open_source(str(scored), other)
    state = scored / "_fieldmark.json"
    plain = json.loads(state.read_text())
    state.write_text(json.dumps(plain | {"complete": False}))
    with pytest.raises(ReviewError, match="is not finished"):
        open_source(str(scored), toy_bundle)


def test_scored_images_are_found_where_they_moved_to_and_nowhere_else(
    scored: Path, toy_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "photos").rename(tmp_path / "moved")
    source = open_source(str(scored), toy_bundle)
    item = next(iter(source.news()))
    with pytest.raises(ImageGone):
        source.read(item.image, 10**6, Stamp())
    moved = open_source(str(scored), toy_bundle, images=tmp_path / "moved")
    assert isinstance(moved, ScoreSource)
    assert moved.read(item.image, 10**6, Stamp())
    with pytest.raises(ImageGone, match="outside"):
        moved.read("../../etc/passwd", 10**6, Stamp())
    with pytest.raises(ReviewError, match="no folder of images"):
        open_source(str(scored), toy_bundle, images=tmp_path / "nowhere")


def test_a_delta_table_tells_the_rows_that_hold(
    scored: Path, toy_bundle: Bundle, make_toy_bundle: Callable[..., Bundle], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # the source is given by a relative name

    def score() -> None:
        command = ["score", "photos", "--bundle", str(toy_bundle.path), "--table", "table", "--network", "full"]
        with pytest.raises(SystemExit) as ended:
            fieldmark.main(command)
        assert ended.value.code in (0, 4)  # one file is broken, and is not asked again

    score()
    monkeypatch.chdir("/")
    source = open_source(str(tmp_path / "table"), toy_bundle)
    items = list(source.news())
    assert len(items) == 48
    assert source.totals == {"full": 48}
    assert source.whole
    assert {item.origin for item in items} == {"clean", "noisy"}
    assert source.read(items[0].image, 10**6, Stamp()) in {
        path.read_bytes() for path in (tmp_path / "photos").rglob("*.png")
    }
    assert list(source.news()) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "clean" / "0.png").unlink()
    score()
    assert len(list(source.news())) == 47
    source.forget()
    assert len(list(source.news())) == 47
    with pytest.raises(ReviewError, match="was scored with bundle"):
        open_source(str(tmp_path / "table"), make_toy_bundle(tmp_path / "other", name="other"))
    import deltalake

    deltalake.write_deltalake(str(tmp_path / "foreign"), read_scores(scored).select(["path"]))
    with pytest.raises(ReviewError, match="something else"):
        open_source(str(tmp_path / "foreign"), toy_bundle)


@pytest.mark.parametrize(
    ("source", "image", "inner"),
    [
        ("/data/photos", "/data/photos/a/1.png", "a/1.png"),
        ("/data/photos", "photos/a/1.png", "a/1.png"),
        ("/data/photos", "data/photos/a/1.png", "a/1.png"),
        ("/data/photos", "./photos/1.png", "1.png"),
        ("/data/photos", "elsewhere/1.png", "elsewhere/1.png"),
        ("/data/photos", "/etc/passwd", "etc/passwd"),
        ("s3://bucket/photos", "s3://bucket/photos/a/1.png", "a/1.png"),
        ("s3://bucket/night.parquet", "s3://bucket/photos/a/1.png", "photos/a/1.png"),
        ("s3://bucket/night.CSV", "photos/a/1.png", "photos/a/1.png"),
    ],
)
def test_a_scored_file_is_found_below_its_source(source: str, image: str, inner: str) -> None:
    assert ScoredFiles(source).folder(image) == os.path.dirname(inner)
    assert ScoredFiles(source)._inner(image) == inner


def test_times_of_a_catalogue_are_as_exact_as_it_likes(tmp_path: Path) -> None:
    """Its time is told, not looked up: whole seconds, or what a float makes of them, are no change of the file."""
    (tmp_path / "a.png").write_bytes(b"picture")
    for name in ("all.csv", "all.txt"):
        (tmp_path / name).write_text("path\na.png\n")
    status = (tmp_path / "a.png").stat()
    files, told = ScoredFiles(str(tmp_path / "all.csv")), int(status.st_mtime) * 10**9 - 1
    assert files.read("a.png", 10**6, Stamp(size=7, mtime_ns=told)) == b"picture"
    with pytest.raises(ImageGone, match="somebody changed the file"):
        files.read("a.png", 10**6, Stamp(size=8, mtime_ns=told))
    looked_at = ScoredFiles(str(tmp_path / "all.txt"))
    with pytest.raises(ImageGone, match="somebody changed the file"):
        looked_at.read("a.png", 10**6, Stamp(size=7, mtime_ns=told))
    os.utime(tmp_path / "a.png", ns=(10**19, 10**19))  # and what no int64 holds was clamped when it was scored
    assert looked_at.read("a.png", 10**6, Stamp(size=7, mtime_ns=2**63 - 1)) == b"picture"


def test_of_a_bucket_nothing_else_is_fetched() -> None:
    with pytest.raises(ImageGone, match="outside"):
        ScoredFiles("s3://bucket/photos").read("s3://other/secret.png", 100, Stamp())


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x"), lambda path: _other(path)])
def test_what_is_no_source_is_refused(tmp_path: Path, toy_bundle: Bundle, make: Callable[[Path], object]) -> None:
    make(tmp_path / "source")
    with pytest.raises(FieldmarkError, match=r"no folder at|is neither a quarantine"):
        open_source(str(tmp_path / "source"), toy_bundle)


def test_an_empty_folder_is_a_quarantine_before_its_first_image(tmp_path: Path, toy_bundle: Bundle) -> None:
    assert list(open_source(str(tmp_path), toy_bundle).news()) == []


def test_the_fixture_is_what_the_gateway_writes(quarantine: Path) -> None:
    assert encoded(draw_toy(0, 3000)) == next(quarantine.rglob("060000.000-*.png")).read_bytes()


def _other(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(b"x")
