"""A sample for calibration: every image alike, flagged or not; decided whole, or refused with a reason."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import ReviewError
from review.store.database import Database
from review.store.decisions import decide
from review.store.queue import add, get
from review.store.sample import clean_images, draw, next_open, samples, use
from tests.review.items import make_item

SHARE = 0.2


@pytest.fixture
def review(tmp_path: Path) -> Database:
    """What a quarantine keeps of 10,000 clean images at alpha 0.05: the flagged, and of all of them a fifth."""
    random = np.random.default_rng(3)
    drawn = random.random(10_000) < SHARE
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    p_values = (random.permutation(10_000) + 1) / 10_000
    items = [
        make_item(
            number,
            p_value=float(p),
            reason="flagged" if p <= 0.05 else "sample",
            drawn=bool(drawn[number - 1]),
            sha256=f"{number:064d}",
        )
        for number, p in enumerate(p_values, start=1)
        if p <= 0.05 or drawn[number - 1]
    ]
    add(opened, items)
    return opened


def decided(review: Database, number: int, verdict: str = "clean") -> list[int]:
    with review.reading() as connection:
        rows = connection.execute("SELECT item FROM sampled WHERE sample = ? ORDER BY place", [number]).fetchall()
    items = [row["item"] for row in rows]
    decide(review, items, verdict, "ada")
    return items


def test_p_values_of_samples_are_uniform_though_those_of_the_source_are_not(review: Database) -> None:
    """The flagged are a fifth of what is kept and a twentieth of what came in: so they must be of the samples."""
    with review.reading() as connection:
        flagged, all_ = connection.execute("SELECT sum(p_value <= 0.05), count(*) FROM items").fetchone()
    assert flagged / all_ > 0.15
    found = []
    for _ in range(12):
        drawn = draw(review, 1000, "ada")
        assert drawn.size == 1000  # as many as were asked for
        with review.reading() as connection:
            rows = connection.execute(
                "SELECT p_value FROM sampled JOIN items ON id = item WHERE sample = ?", [drawn.number]
            )
            found += [row["p_value"] for row in rows]
    share = float((np.array(found) <= 0.05).mean())
    assert share == pytest.approx(0.05, abs=0.015)  # its deviation is about 0.003
    assert float(np.mean(found)) == pytest.approx(0.5, abs=0.03)


def test_its_order_says_nothing_and_stays(review: Database) -> None:
    drawn = draw(review, 500, "ada")
    with review.reading() as connection:
        rows = connection.execute(
            "SELECT p_value, item FROM sampled JOIN items ON id = item WHERE sample = ? ORDER BY place", [drawn.number]
        ).fetchall()
    p_values = np.array([row["p_value"] for row in rows])
    assert abs(np.corrcoef(np.arange(len(rows)), p_values)[0, 1]) < 0.15
    first = rows[0]["item"]
    assert next_open(review, drawn.number, "ada") == first
    assert next_open(review, drawn.number, "ada", past=first) == rows[1]["item"]
    decide(review, [first], "unsure", "ada")
    assert next_open(review, drawn.number, "ada") == rows[1]["item"]
    assert next_open(review, drawn.number, "bob") == first  # a second reviewer helps
    assert next_open(review, drawn.number, "ada", again=True) == rows[1]["item"]
    decide(review, [row["item"] for row in rows[1:]], "clean", "ada")
    assert next_open(review, drawn.number, "ada") is None
    assert next_open(review, drawn.number, "ada", again=True) == first  # one may change one's mind


def test_without_a_sample_clean_ones_are_refused_and_it_says_how(review: Database) -> None:
    decide(review, list(range(1, 300)), "clean", "ada")
    with pytest.raises(ReviewError, match=r"299 images.*none of them was drawn at random.*draw a random sample"):
        clean_images(review)


def test_what_is_missing_and_what_to_do_is_said_at_every_step(review: Database) -> None:
    said = r"nothing is decided yet\. In 'fieldmark review', draw a random sample on the page 'Sample' and decide all"
    with pytest.raises(ReviewError, match=rf"^{said}"):
        clean_images(review)
    decide(review, [1, 2], "attack", "ada")
    with pytest.raises(ReviewError, match=r"^no random sample was drawn yet, and nothing was decided to be clean\."):
        clean_images(review)
    decide(review, [3], "clean", "ada")
    with pytest.raises(ReviewError, match=r"^1 image was decided to be clean, and it was not drawn at random"):
        clean_images(review)
    number = draw(review, 50, "ada").number
    with review.reading() as connection:
        found = connection.execute("SELECT item FROM sampled WHERE sample = ?", [number]).fetchall()
    items = [row["item"] for row in found if row["item"] > 3]
    assert len(items) == 50, "none of those decided before is in it"
    with pytest.raises(ReviewError, match=r"^of the random sample of 50 images nothing is decided yet\. .*decide all"):
        clean_images(review)
    decide(review, items, "attack", "ada")
    with pytest.raises(ReviewError, match=r"^of the random sample 1 of 50 images none is clean .*: 50 attacks\. "):
        clean_images(review)


@pytest.mark.parametrize("left", ["waiting", "unsure", "disputed"])
def test_a_sample_that_is_not_decided_whole_is_refused(review: Database, left: str) -> None:
    drawn = draw(review, 100, "ada")
    items = decided(review, drawn.number)
    if left == "waiting":
        from review.store.decisions import undo

        undo(review, "ada")
        decide(review, items[1:], "clean", "ada")
    elif left == "unsure":
        decide(review, items[:1], "unsure", "ada")
    else:
        decide(review, items[:1], "attack", "bob")
    with pytest.raises(ReviewError, match=r"1 are not decided, unsure or disputed.*choose by score again"):
        clean_images(review)
    assert samples(review)[0].open == 1


def test_a_second_reviewer_decides_what_the_first_is_unsure_of(review: Database) -> None:
    drawn = draw(review, 100, "ada")
    items = decided(review, drawn.number)
    decide(review, items[:3], "unsure", "ada")
    assert next_open(review, drawn.number, "bob") == items[0]
    decide(review, items[:3], "clean", "bob")
    assert next_open(review, drawn.number, "bob") is None
    assert len(clean_images(review).items) == 100


def test_its_clean_images_are_taken_once_and_none_that_taught_anything_else(review: Database) -> None:
    drawn = draw(review, 200, "ada")
    items = decided(review, drawn.number)
    decide(review, items[:3], "attack", "ada")
    decide(review, items[3:5], "fault", "ada")
    use(review, tuple(items[5:7]), "lessons", "bundle")
    use(review, tuple(items[7:9]), "calibration", "bundle")  # what calibrated once may do so again
    with review.writing() as connection:
        connection.execute("UPDATE items SET sha256 = 'same' WHERE id IN (?, ?)", items[10:12])
    found = clean_images(review)
    taken = {row["id"] for row in found.items}
    assert taken == set(items[7:]) - ({items[10], items[11]} - taken)
    assert len(taken & {items[10], items[11]}) == 1
    assert found.left_out == "3 attacks, 2 camera faults, 2 that taught something else, 1 with the bytes of another"


def test_a_source_of_flagged_images_alone_gives_no_sample(tmp_path: Path) -> None:
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(opened, [make_item(number, drawn=False) for number in range(1, 50)])
    with pytest.raises(ReviewError, match=r"what was flagged and nothing else.*--quarantine-sample"):
        draw(opened, 20, "ada")
    assert samples(opened) == []


@pytest.mark.parametrize("wanted", [0, 5001])
def test_a_size_that_is_none_is_refused(review: Database, wanted: int) -> None:
    with pytest.raises(ReviewError, match="cannot be drawn"):
        draw(review, wanted, "ada")


def test_more_than_was_kept_cannot_be_drawn(review: Database) -> None:
    drawn = draw(review, 5000, "ada")
    assert drawn.rate == 1
    item = get(review, 1)
    assert item is not None


def test_what_can_be_drawn_is_looked_at_when_it_is_drawn(review: Database) -> None:
    begun = threading.Event()

    def empty() -> None:
        with review.writing() as connection:
            connection.execute("UPDATE items SET drawn = 0")
            begun.set()
            time.sleep(0.3)  # whoever has looked already waits for this transaction by then

    other = threading.Thread(target=empty)
    other.start()
    begun.wait(timeout=30)
    with pytest.raises(ReviewError, match="no random sample can be drawn"):
        draw(review, 10, "ada")
    other.join(timeout=30)
    assert samples(review) == []
