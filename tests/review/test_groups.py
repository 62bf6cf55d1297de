"""A group is decided in one stroke: what its page has shown, whatever came in, was decided or undone meanwhile."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from review.pages.page import Console
from review.store.database import Database
from review.store.decisions import decide, newest, undo
from review.store.groups import members
from review.store.queue import Filter, add, counts, get, latest
from tests.review.items import make_item, make_items
from tests.review.items import members as every_member

CAMPAIGN = Filter(state="any", origin="shop", reason="flagged")


def state(database: Database, number: int) -> str:
    item = get(database, number)
    assert item is not None
    return str(item["state"])


def words_of(page: str) -> str:
    """What a page shows."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def form_of(client: Any, kind: str = "campaigns") -> dict[str, str]:
    """The fields of the first group's form."""
    text = client.get(f"/groups?kind={kind}").text
    form = text[text.index('action="/groups/decide"') :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[: form.index("</form>")])
    return {name: html.unescape(value) for name, value in found}


def test_a_group_is_decided_in_one_stroke_but_for_what_others_said(client: Any, console: Console) -> None:
    form = form_of(client) | {"verdict": "attack"}
    decide(console.database, [41], "clean", "bob")
    answer = client.post("/groups/decide", data=form)
    assert f"Recorded: {int(form['waiting']) - 1} images, attack" in answer.text
    assert counts(console.database).by_state["attack"] == int(form["waiting"]) - 1 >= 10
    assert state(console.database, 41) == "clean"
    again = client.post("/groups/decide", data=form)
    assert "Somebody else has decided all of this group" in again.text


def test_what_came_in_after_the_page_was_loaded_is_not_decided(client: Any, console: Console) -> None:
    form = form_of(client) | {"verdict": "clean"}
    shown = get(console.database, 41)
    assert shown is not None
    add(console.database, [make_item(1, origin=shown["origin"], received=shown["received"])])
    answer = client.post("/groups/decide", data=form)
    assert f"Recorded: {form['waiting']} images, clean" in answer.text
    assert state(console.database, 61) == "waiting"


def test_a_group_that_older_images_have_joined_is_not_decided(client: Any, console: Console) -> None:
    """Which layer is loudest, and what is a near copy, is worked out after an image is in."""
    with console.database.writing() as connection:
        connection.execute("UPDATE items SET label = 'x', layer = iif(id = 41, '', 'grid') WHERE origin = 'partner-x'")
    form = form_of(client, "by-label") | {"verdict": "clean"}
    with console.database.writing() as connection:
        connection.execute("UPDATE items SET layer = 'grid' WHERE id = 41")
    answer = client.post("/groups/decide", data=form)
    assert "Nothing was recorded: images have joined this group" in answer.text
    assert counts(console.database).decided == 0


def test_an_incidents_page_counts_all_of_it_and_shows_some(client: Any, console: Console) -> None:
    later = {"received": "2026-11-24T06:59:00.000+00:00", "label": "Last", "alpha": 0.01}
    items = [*make_items(5999, origin="x", alpha=0.01), make_item(6000, origin="x", **later)]
    add(console.database, [replace(item, key=f"k-{item.key}", layers=(), bundle_id="b") for item in items])
    ids = every_member(console.database, Filter(state="any", origin="x"))
    decide(console.database, ids[-500:], "attack", "ada", note="stripes")
    decide(console.database, ids[-300:], "clean", "bob", note="none")
    text = words_of(client.get("/incident?origin=x").text)
    for words in (
        "Incident: 6,000 images",
        "When 24 Nov 2026, 06:00 to 24 Nov 2026, 06:59 UTC",
        "From caller x (6,000) Answered Dusky Lark (5,999) , Last (1) Loudest layers –",
        "p-values 1e-05 to 0.06; flagged at 0.01",
        "Decided waiting (5,500) , disputed (300) , attack (200)",
        "By ada: attack (500) , bob: clean (300)",
        "Notes ada: stripes ; bob: none Bundle b",
        "The 200 most suspicious",
    ):
        assert words.replace(" ,", ",").replace(" ;", ";") in text.replace(" ,", ",").replace(" ;", ";")


@pytest.fixture
def review(tmp_path: Path) -> Database:
    opened = Database.open(tmp_path / "review.db", source="here", bundle_id="b")
    add(opened, make_items(6))
    decide(opened, [5], "attack", "bob")
    return opened


@pytest.mark.parametrize(
    ("meanwhile", "chosen"),
    [
        (lambda review: None, [1, 2, 3, 4, 6]),
        (lambda review: decide(review, [2, 5], "clean", "bob"), None),  # of 5 nobody knows that it did not wait
        (lambda review: decide(review, [2], "clean", "bob"), [1, 3, 4, 6]),
        (lambda review: add(review, [make_item(7)]), [1, 2, 3, 4, 6]),
        (lambda review: undo(review, "bob"), None),
        (lambda review: (undo(review, "bob"), decide(review, [1], "clean", "ada")), None),  # as many as before
    ],
)
def test_of_a_group_what_was_shown_and_waits_is_chosen_or_nothing(
    review: Database, meanwhile: Callable[[Database], object], chosen: list[int] | None
) -> None:
    with review.reading() as connection:
        known, seen = latest(connection), newest(connection)
    meanwhile(review)
    assert members(review, CAMPAIGN, known=known, seen=seen, waiting=5) == chosen
