"""What somebody who means harm may send to the console: each ends in a sentence, and changes nothing."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from bundle.errors import ReviewError
from review.follower import Follower
from review.pages.access import _cookies
from review.pages.app import application
from review.pages.page import Console, legible
from review.sources.quarantine import QuarantineSource
from review.store.database import Database
from review.store.decisions import decide
from review.store.queue import counts
from tests.review.conftest import HOST, START, write_entry
from tests.review.test_pages import csrf, state

pytestmark = pytest.mark.hostile
MANY = "9" * 5000  # more digits than Python turns into a number
TURNED = "clean \u202eelbat era txen eht\u2066"  # what follows would be read backwards


@pytest.mark.parametrize(
    "path",
    [
        f"/items/{MANY}",
        f"/items/{MANY}/sent.img",
        f"/prototypes/{MANY}.img",
        f"/sample/next?number={MANY}",
        f"/sample/next?number=1&past={MANY}",
        "/sample/next?number=%D9%A3",
        "/items/-1",
        "/items/1/%00.img",
        "/items/1/..%2f..%2fetc.img",
        "/items/1/../../../etc/passwd.img",
        "/static/../pages/access.py",
        "/static/%2e%2e/access.py",
        "/static/..%2faccess.py",
        "/static//etc/passwd",
        "/export/..%2f..%2fetc",
        "/export/csv%00",
        "/?copies=1e400",
        "/?copies=99999999999999999999",
        "/?most=0x1",
        "/?most=-0",
        "/?label=%00%ff%ed%a0%80",
        "/?state=any&origin=%27%20OR%201=1--",
        f"/?label={'(a+)+' * 2000}!",
        f"/?second={'a' * 20000}",
        "/rows?first=nan,nan,1",
        "/rows?first=1,1,1e30",
        f"/rows?first=0,0,{MANY}",
        "/rows?first=0,0,1&hour=%25",
        "/incident?hour=%00",
        "/figures?network=..%2f..%2f",
        "/groups?kind=copies&state=any",
    ],
)
def test_no_address_is_more_than_a_sentence(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code < 500
    assert "root:" not in answer.text
    assert "def " not in answer.text


@pytest.mark.parametrize("length", ["told", "none"])
def test_a_form_of_any_length_is_read_so_far_and_no_further(client: Any, console: Console, length: str) -> None:
    token = csrf(client)

    def body() -> Iterator[bytes]:
        yield f"csrf={token}&verdict=attack&note=".encode()
        for _ in range(64):
            yield b"a" * 65536

    said = {"content-type": "application/x-www-form-urlencoded"}
    if length == "told":  # and told wrongly
        answer = client.post("/items/1/decide", headers=said | {"content-length": "10"}, content=b"a" * 100_000)
    else:
        answer = client.post("/items/1/decide", headers=said, content=body())
    assert answer.status_code == 413
    assert "nothing was recorded" in answer.text
    assert state(console, 1) == "waiting"


@pytest.mark.parametrize("body", ["&".join(f"a{number}=" for number in range(5000)), "x" * 60_000, "%" * 60_000, ""])
def test_what_is_no_form_of_ours_is_refused(client: Any, console: Console, body: str) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "x/\u00e9"):
        answer = client.post("/items/1/decide", headers={"content-type": kind.encode()}, content=body)
        assert answer.status_code in (403, 413)
    assert state(console, 1) == "waiting"


def test_a_header_of_cookies_takes_no_time_that_grows_with_its_square(console: Console) -> None:
    """The standard library takes seven seconds to unquote 60 kB; now nothing is unquoted, since ours need no quotes."""
    header = 'a="' + "\\\\" * 30_000 + f'"; {console.door.cookie}={console.door.token}'
    found = _cookies(Headers({"cookie": header}))
    assert found[console.door.cookie] == console.door.token
    assert found["a"].startswith('"\\\\'), "nothing is taken out of its quotes"
    stranger = TestClient(application(console), base_url=f"http://{HOST}", follow_redirects=False)
    assert stranger.get("/", headers={"cookie": header}).status_code == 200
    assert stranger.get("/", headers={"cookie": header.replace(console.door.token, "x")}).status_code == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_lead_here_and_use_nothing(client: Any, site: str) -> None:
    foreign = {"sec-fetch-site": site}
    for path in ("/items/1/sent.img", "/export/csv", "/rows?first=0,0,0", "/static/review.js"):
        assert client.get(path, headers=foreign | {"sec-fetch-mode": "no-cors"}).status_code == 403
        assert client.get(path, headers=foreign | {"sec-fetch-mode": "cors"}).status_code == 403
    words = "/?said=Your+session+is+over:+call+555"
    led = client.get(words, headers=foreign | {"sec-fetch-mode": "navigate"})
    assert led.status_code == 200
    assert "call 555" not in led.text, "the console says nothing that another site has written"
    assert "call 555" in client.get(words, headers={"sec-fetch-site": "same-origin"}).text


def test_what_turns_the_direction_of_text_is_written_out(
    client: Any, console: Console, quarantine: Path, answered: Any
) -> None:
    data, said = answered[41]
    words = {"label": TURNED, "caller": TURNED, "request_id": TURNED}
    changes = words | {"flagged": True, "reason": "flagged", "p_value": 0.001}
    for index in range(2):
        write_entry(quarantine, data, said, START + timedelta(days=3, minutes=index), **changes)
    Follower(console.database, QuarantineSource(str(quarantine)), console.bundle).turn()
    decide(console.database, [61, 62], "attack", f"eve{TURNED}", note=TURNED)
    for path in ("/?state=any", "/items/61?state=any", "/groups?state=attack", "/groups?kind=by-label&state=attack",
                 "/decisions", "/incident?day=2026-11-27", f"/?said={TURNED}"):  # fmt: skip
        text = client.get(path).text
        assert "\\u202e" in text, path
        shown = text.replace(f'value="{TURNED}"', "")  # what a form gives back, nobody reads
        assert not {"\u202e", "\u2066"} & set(shown), path


def test_legible_text_escapes_what_turns_text_and_leaves_other_writing_alone() -> None:
    assert legible("a\u202eb\u2066c\u200f") == "a\\u202eb\\u2066c\\u200f"
    assert legible("שלום, 王, é, 👩‍🔬") == "שלום, 王, é, 👩‍🔬"


@pytest.mark.parametrize("how", ["replaced", "removed", "emptied"])
def test_a_database_that_is_exchanged_underneath_takes_no_decision_with_it(
    client: Any, console: Console, tmp_path: Path, how: str
) -> None:
    """What went into the old file nobody would find again: the page must not say that it was recorded."""
    place, token = console.database.path, csrf(client)
    if how == "replaced":
        other = tmp_path / "other.db"
        shutil.copyfile(place, other)
        os.replace(other, place)
    elif how == "removed":
        place.rename(tmp_path / "away.db")
    else:
        place.rename(tmp_path / "away.db")
        place.touch()
    for _ in range(2):  # by a thread that knows the old file, and by others
        answer = client.post("/items/1/decide", data={"csrf": token, "verdict": "attack"})
        assert answer.status_code == 503
        assert "nothing can be recorded" in answer.text
    said: list[str] = []

    def other_thread() -> None:
        try:
            decide(console.database, [1], "attack", "ada")
        except ReviewError as problem:
            said.append(str(problem))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert len(said) == 1
    assert "nothing can be recorded" in said[0]
    if how == "removed":
        assert not place.exists(), "no empty database in its place"
        (tmp_path / "away.db").rename(place)
        assert client.post("/items/1/decide", data={"csrf": token, "verdict": "attack"}).status_code == 200
        assert state(console, 1) == "attack"


def test_a_file_that_is_no_database_underneath_is_a_sentence(client: Any, console: Console) -> None:
    token = csrf(client)
    console.database.close()
    with console.database.path.open("r+b") as stream:
        stream.write(b"no database at all" * 100)
    answer = client.post("/items/1/decide", data={"csrf": token, "verdict": "attack"})
    assert answer.status_code in (200, 503)  # a thread may still know its pages: then it is recorded in the journal
    assert "Traceback" not in answer.text


def test_many_reviewers_at_once_lose_nothing(database: Database) -> None:
    """Eight threads decide the same twenty images; each of their decisions is there, and the states are theirs."""

    def one(name: str) -> None:
        for item in range(1, 21):
            decide(database, [item], "attack", name)
        database.close()

    threads = [threading.Thread(target=one, args=(f"reviewer {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM decisions").fetchone()[0] == 160
        assert connection.execute("SELECT count(*) FROM standing").fetchone()[0] == 160
    assert counts(database).by_state["attack"] == 20


def test_the_database_of_a_review_runs_nothing_that_a_stranger_wrote_into_it(database: Database) -> None:
    with sqlite3.connect(database.path) as hand:
        hand.execute("CREATE TRIGGER evil AFTER INSERT ON decisions BEGIN SELECT load_extension('evil'); END")
    hand.close()
    with pytest.raises(sqlite3.DatabaseError):
        decide(database, [1], "attack", "ada")
