"""A source that tells of all it has, again and again: its random sample stays one, and what is gone does not stay."""

import os
import shutil
from pathlib import Path

import pytest

from bundle import Bundle
from bundle.errors import ImageGone
from review.follower import Follower, bytes_of
from review.sources.source import open_source
from review.store.database import Database
from review.store.decisions import decide, undo
from review.store.queue import add, counts, get, retire
from review.store.sample import draw, drawable, next_open, samples
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference
from tests.review.items import make_item, make_items


class Archive:
    """A folder of photographs that is scored and reviewed night after night."""

    def __init__(self, folder: Path, bundle: Bundle, stock: list[Path]) -> None:
        self.photos, self.scores, self.bundle, self.stock = folder / "photos", folder / "scores", bundle, stock
        self.photos.mkdir()
        self.review = Database.open(folder / "review.db", source="here", bundle_id=bundle.bundle_id)
        self.inference = LocalInference(bundle, threads=1)

    def holds(self, photos: int) -> None:
        for number, path in enumerate(self.stock[:photos]):
            if not (self.photos / f"{number}.png").exists():
                shutil.copy(path, self.photos / f"{number}.png")

    def night(self) -> None:
        """Score, and let the console read it."""
        score_source(self.photos, self.inference, self.scores, ScoreOptions(network="full", workers=1))
        Follower(self.review, open_source(str(self.scores), self.bundle), self.bundle).turn()

    def keys(self, condition: str) -> set[str]:
        with self.review.reading() as connection:
            return {row["key"] for row in connection.execute(f"SELECT key FROM items WHERE {condition}")}

    def number(self, photo: int) -> int:
        with self.review.reading() as connection:
            image = os.fsencode(self.photos / f"{photo}.png")
            return int(connection.execute("SELECT max(id) FROM items WHERE image = ?", [image]).fetchone()[0])

    def state(self, number: int) -> str:
        item = get(self.review, number)
        assert item is not None
        return str(item["state"])


@pytest.fixture
def archive(tmp_path: Path, quarantine: Path, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setattr("review.sources.scores.DRAWN", 16)
    return Archive(tmp_path, toy_bundle, sorted(quarantine.rglob("*.png"), reverse=True))  # those with noise first


def test_of_a_set_that_grew_the_sample_is_what_a_new_review_would_have(archive: Archive) -> None:
    archive.holds(12)
    archive.night()
    assert drawable(archive.review) == 12
    archive.holds(60)
    archive.night()
    drawn = {item.key for item in open_source(str(archive.scores), archive.bundle).news() if item.drawn}
    assert archive.keys("drawn") == drawn
    assert len(drawn) < 40
    assert counts(archive.review).by_state["outdated"] > 0
    assert archive.keys("state = 'waiting'") == archive.keys("told")


def test_an_image_that_is_gone_or_another_one_is_shown_and_asked_for_no_more(archive: Archive) -> None:
    archive.holds(5)
    archive.night()
    gone, changed, decided, same = (archive.number(photo) for photo in (0, 1, 2, 3))
    decide(archive.review, [decided], "attack", "ada")
    shutil.move(archive.photos / "0.png", archive.photos.parent / "0.png")
    for photo in (1, 2):
        shutil.copy(archive.stock[20 + photo], archive.photos / f"{photo}.png")
    source = open_source(str(archive.scores), archive.bundle)
    for number in (changed, decided):  # not scored again yet
        item = get(archive.review, number)
        assert item is not None
        with pytest.raises(ImageGone, match="not the one that was answered"):
            bytes_of(source, item, 10**6)
    archive.night()
    states = [archive.state(number) for number in (gone, changed, decided, same)]
    assert states == ["outdated", "outdated", "attack", "waiting"]
    assert drawable(archive.review) == 4
    assert counts(archive.review).decided == 1
    assert archive.state(archive.number(1)) == archive.state(archive.number(2)) == "waiting"
    undo(archive.review, "ada")
    assert archive.state(decided) == "outdated"
    shutil.move(archive.photos.parent / "0.png", archive.photos / "0.png")
    archive.night()
    assert archive.state(gone) == "waiting"


def test_a_file_of_the_same_size_and_another_time_is_another_one(archive: Archive) -> None:
    archive.holds(2)
    archive.night()
    os.utime(archive.photos / "0.png", ns=(1, 1))
    item = get(archive.review, archive.number(0))
    assert item is not None
    with pytest.raises(ImageGone):
        bytes_of(open_source(str(archive.scores), archive.bundle), item, 10**6)
    moved = archive.photos.rename(archive.photos.with_name("moved"))  # where times need not have come along
    assert bytes_of(open_source(str(archive.scores), archive.bundle, images=moved), item, 10**6)


def test_a_sample_keeps_what_is_outdated_and_it_can_be_decided(tmp_path: Path) -> None:
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(review, make_items(4))
    drawn = draw(review, 4, "ada")
    retire(review, {"key-1"})
    assert drawable(review) == 1
    (sample,) = samples(review)
    assert (sample.size, sample.open) == (4, 4)
    while (item := next_open(review, drawn.number, "ada")) is not None:
        decide(review, [item], "clean", "ada")
    (sample,) = samples(review)
    assert (sample.open, sample.by_state) == (0, {"clean": 4})


def test_another_alpha_flags_anew(tmp_path: Path) -> None:
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(review, [make_item(1, p_value=0.03)])
    assert add(review, [make_item(1, p_value=0.03, alpha=0.01, reason="sample")]) == 1
    item = get(review, 1)
    assert item is not None
    assert (item["alpha"], item["reason"]) == (0.01, "sample")


def test_a_review_of_the_first_format_goes_on(tmp_path: Path) -> None:
    review = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(review, make_items(3))
    decide(review, [2], "unsure", "ada")
    decide(review, [2], "attack", "bob")
    with review.writing() as connection:
        for name in ("size", "mtime_ns", "told"):
            connection.execute(f"ALTER TABLE items DROP COLUMN {name}")
        connection.execute("UPDATE facts SET value = '1' WHERE name = 'format'")
        connection.execute("UPDATE items SET state = 'disputed' WHERE id = 2")
    review.close()
    for _ in range(2):
        again = Database.open(tmp_path / "review.db", source="here")
        add(again, make_items(3, size=7))
        retire(again, {"key-1", "key-2"})
        assert counts(again).by_state == {"waiting": 1, "attack": 1, "outdated": 1}
        again.close()


def test_of_more_flagged_ones_than_are_kept_those_drawn_are_kept(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("review.sources.scores.DRAWN", 30)  # by names and times of files: another half every time
    archive.holds(60)
    archive.night()
    drawn = archive.keys("drawn")
    assert len(archive.keys("drawn AND reason = 'flagged'")) > 1
    monkeypatch.setattr("review.sources.scores.MOST_FLAGGED", 1)
    items = list(open_source(str(archive.scores), archive.bundle).news())
    assert {item.key for item in items if item.drawn} == drawn
    assert 1 < sum(item.reason == "flagged" for item in items) < len(archive.keys("reason = 'flagged'"))
