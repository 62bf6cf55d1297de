"""The pages without a browser: who is let in, what is refused, what hostile text becomes, what a page says."""

import html
import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bundle import Bundle
from bundle.errors import OptionError, ReviewError
from review.evidence.look import Looker
from review.follower import Follower
from review.pages.access import HEADERS, Door, clean_name, hosts_of
from review.pages.app import application
from review.pages.page import Console
from review.sources.quarantine import QuarantineSource
from review.sources.source import open_source
from review.store.database import Database
from review.store.decisions import decide, standing
from review.store.queue import counts, get
from review.store.sample import draw
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference
from serving.envoy.keys import KEY_NAME, LONGEST_NAME
from tests.review.conftest import HOST, START, write_entry

PAGES = ("/", "/?state=any", "/items/1", "/groups", "/groups?kind=by-label", "/groups?kind=copies", "/figures",
         "/figures?network=attention", "/sample", "/decisions", "/export", "/incident?origin=partner-x")  # fmt: skip
HOSTILE = '"><script>alert(1)</script>{{7*7}}<img src=x onerror=alert(1)>'


def csrf(client: Any) -> str:
    return csrf_of(client.get("/").text)


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page)
    assert found is not None
    return found[1]


def state(console: Console, number: int) -> str:
    item = get(console.database, number)
    assert item is not None
    return str(item["state"])


@pytest.fixture
def stranger(console: Console) -> TestClient:
    return TestClient(application(console), base_url=f"http://{HOST}", follow_redirects=False)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_with_every_guard(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=|https?://(?!www\.w3\.org)|javascript:", answer.text)
    assert "{{" not in answer.text


@pytest.mark.parametrize("path", [*PAGES, "/items/1/sent.img", "/static/review.css", "/export/csv", "/nowhere"])
def test_nobody_comes_in_without_the_token(stranger: TestClient, path: str) -> None:
    for query in ("", "token=", "token=wrong"):
        answer = stranger.get(path + ("&" if "?" in path else "?") + query)
        assert answer.status_code == 401
        assert "ends in a token" in answer.text
        assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_the_token_goes_out_of_the_address_into_a_cookie(stranger: TestClient, console: Console) -> None:
    answer = stranger.get(f"/items/1?state=any&token={console.door.token}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/items/1?state=any"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/items/1").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:9", f"{HOST}.evil.example", ""])
def test_a_foreign_name_is_refused(client: Any, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://{HOST}.evil.example"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_changes_nothing(client: Any, console: Console, headers: dict[str, str]) -> None:
    form = {"verdict": "clean", "csrf": csrf(client)}
    for path in ("/items/1/decide", "/groups/decide", "/undo", "/sample/draw", "/reviewer"):
        answer = client.post(path, data=form, headers=headers)
        assert answer.status_code == 403
        assert "comes from another site" in answer.text
    assert counts(console.database).decided == 0


@pytest.mark.parametrize("token", [None, "", "0" * 64, "\u00e9" * 64])
def test_a_form_that_is_not_ours_changes_nothing(client: Any, console: Console, token: str | None) -> None:
    form = {"verdict": "clean"} | ({} if token is None else {"csrf": token})
    for path in ("/items/1/decide", "/groups/decide", "/undo", "/sample/draw", "/reviewer"):
        assert client.post(path, data=form).status_code == 403
    assert counts(console.database).decided == 0
    assert client.get("/items/1/decide").status_code == 404 or client.get("/items/1/decide").status_code == 405


def test_what_tells_our_forms_is_compared_in_a_time_that_tells_nothing(
    client: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def equal(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    form = {"csrf": csrf(client), "name": "bob"}
    monkeypatch.setattr("review.pages.access.hmac.compare_digest", equal)
    assert client.post("/reviewer", data=form).status_code == 200
    assert form["csrf"].encode() in compared
    del console


def test_a_huge_form_is_refused(client: Any) -> None:
    answer = client.post("/items/1/decide", data={"csrf": csrf(client), "note": "x" * 100_000})
    assert answer.status_code == 413


def test_a_decision_leads_to_the_next_and_can_be_undone(client: Any, console: Console) -> None:
    form = {"verdict": "attack", "note": "stripes", "csrf": csrf(client), "seen": "0", "state": "waiting"}
    answer = client.post("/items/41/decide", data=form)
    assert "/items/" in str(answer.url)
    assert "Recorded: attack" in answer.text
    assert [(row["reviewer"], row["note"]) for row in standing(console.database, 41)] == [("ada", "stripes")]
    client.post("/reviewer", data={"csrf": csrf(client), "name": "bob"})
    answer = client.post("/undo", data={"csrf": csrf(client)})
    assert "nothing of yours to undo" in html.unescape(answer.text)
    client.post("/reviewer", data={"csrf": csrf(client), "name": "ada"})
    assert "Undone: attack, 1 image" in client.post("/undo", data={"csrf": csrf(client)}).text
    assert state(console, 41) == "waiting"


def test_whoever_comes_second_is_told_and_may_still_say_his(client: Any, console: Console) -> None:
    form = {"verdict": "clean", "csrf": csrf(client), "seen": "0", "state": "waiting"}
    decide(console.database, [41], "attack", "bob")
    answer = client.post("/items/41/decide", data=form)
    assert "bob said <b>attack</b>" in answer.text
    assert "Nothing of yours was recorded" in answer.text
    assert state(console, 41) == "attack"
    part = client.post("/items/41/decide", data=form, headers={"hx-request": "true"})
    assert "bob said attack meanwhile" in part.text
    client.post("/items/41/decide", data=form | {"anyway": "1"})
    assert state(console, 41) == "disputed"


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"])
def test_no_form_leads_to_a_foreign_page(client: Any, back: str) -> None:
    answer = client.post("/reviewer", data={"csrf": csrf(client), "name": "bob", "back": back}, follow_redirects=False)
    assert answer.headers["location"] == "/"


def test_a_full_disk_is_a_sentence_and_loses_nothing(
    client: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(console.database, [1], "clean", "ada")
    connected = Database._connection

    def small(self: Database) -> Any:
        connection = connected(self)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(Database, "_connection", small)
    answers = [
        client.post(f"/items/{number}/decide", data={"verdict": "clean", "csrf": csrf(client), "note": "n" * 2000})
        for number in range(2, 20)
    ]
    refused = [answer for answer in answers if answer.status_code == 507]
    assert refused
    assert "no space left on the disk" in refused[0].text
    assert "was not recorded" in refused[0].text
    assert client.get("/").status_code == 200
    monkeypatch.undo()
    recorded = sum(answer.status_code == 200 for answer in answers)
    assert counts(console.database).by_state["clean"] == 1 + recorded


@pytest.mark.hostile
def test_hostile_names_notes_and_labels_are_text(
    tmp_path: Path, toy_bundle: Bundle, console: Console, client: Any, quarantine: Path, answered: Any
) -> None:
    data, said = answered[50]
    for index in range(2):
        write_entry(
            quarantine, data, said, START + timedelta(days=4, minutes=index),
            caller=HOSTILE, label=HOSTILE, request_id=HOSTILE, network="full",
        )  # fmt: skip
    console.follower.turn()
    form = {"csrf": csrf(client), "name": HOSTILE}
    client.post("/reviewer", data=form)
    client.post("/items/61/decide", data={"csrf": form["csrf"], "verdict": "unsure", "note": HOSTILE})
    seen = 0
    for path in (*PAGES, "/items/61", "/items/62", "/groups?kind=copies", "/incident?day=2026-11-28"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "{{7*7}}" in text or "49<" not in text
        seen += "&lt;script&gt;" in text
    assert seen > 6


@pytest.mark.hostile
@pytest.mark.parametrize(
    "path",
    [
        "/items/999999", "/items/-1", "/items/1/nothing.img", "/items/1/..%2f..%2fetc%2fpasswd.img",
        "/prototypes/999.img", "/static/../app.py", "/static/%2e%2e/app.py", "/export/exe", "/rows?first=x",
        "/rows?first=1,2", "/?state=guilty",
        "/?most=many", "/groups?kind=x", "/figures?network=x", "/sample/next", "/sample/next?number=x", "/nowhere",
        "/incident?label=nobody", "/?copies=" + "9" * 40, "/rows?first=0,0,inf", "/rows?first=0,0,nan",
        "/rows?first=0,0,1e30", "/items/10000000000000000000", "/items/9223372036854775808/sent.img",
        "/prototypes/10000000000000000000.img",
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_sentence(client: Any, path: str) -> None:
    answer = client.get(path)
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.text
    assert len(answer.text) < 3000


def test_an_image_that_is_gone_can_still_be_decided(client: Any, console: Console, quarantine: Path) -> None:
    item = get(console.database, 5)
    assert item is not None
    (quarantine / item["image"].decode()).unlink()
    page = client.get("/items/5")
    assert page.status_code == 200
    assert "The image is gone" in page.text
    assert client.get("/items/5/sent.img").status_code == 404
    client.post("/items/5/decide", data={"csrf": csrf(client), "verdict": "clean"})
    assert state(console, 5) == "clean"


def test_a_file_that_somebody_exchanged_is_not_shown(client: Any, console: Console, quarantine: Path) -> None:
    item, other = get(console.database, 5), get(console.database, 6)
    assert item is not None
    assert other is not None
    (quarantine / item["image"].decode()).write_bytes((quarantine / other["image"].decode()).read_bytes())
    assert client.get("/items/5/sent.img").status_code == 404
    assert "not the one that was answered" in client.get("/items/5").text


def test_an_svg_in_the_clothes_of_a_png_is_no_picture(
    client: Any, console: Console, quarantine: Path, answered: Any
) -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    write_entry(quarantine, svg, answered[50][1], START + timedelta(days=6))
    console.follower.turn()
    for kind in ("sent", "thumbnail", "seen"):
        answer = client.get(f"/items/61/{kind}.img")
        assert answer.status_code == 400
        assert "onload" not in answer.text
    page = client.get("/items/61")
    assert page.status_code == 200
    assert "cannot be shown" in page.text


def test_pictures_are_ours(client: Any) -> None:
    for kind in ("thumbnail", "sent", "seen", "full", "attention", "encoded", "smoothed"):
        answer = client.get(f"/items/1/{kind}.img")
        assert answer.status_code == 200
        assert answer.headers["content-type"] in ("image/png", "image/jpeg")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/prototypes/0.img").headers["content-type"] == "image/png"


def test_an_answer_of_another_bundle_is_shown_as_it_was(
    client: Any, console: Console, quarantine: Path, answered: Any
) -> None:
    write_entry(quarantine, *answered[50], START + timedelta(days=5), bundle_id="e" * 64, layers=())
    console.follower.turn()
    page = client.get("/items/61")
    assert page.status_code == 200
    assert "Another bundle" in page.text
    assert "eeeeeeeeeeee" in page.text


def test_in_a_sample_nothing_tells_how_suspicious_an_image_is(client: Any, console: Console) -> None:
    client.post("/sample/draw", data={"csrf": csrf(client), "wanted": "30"})
    page = client.get("/sample/next?number=1")
    assert "drawn at random" in page.text
    for word in ("p = ", "By layer", "Both answers", "where <i>", "flagged", "UTC · from"):
        assert word not in page.text.split("<main")[1].split("</main>")[0]
    number = int(re.search(r"/items/(\d+)", str(page.url))[1])  # type: ignore[index]
    following = client.post(
        f"/items/{number}/decide", data={"csrf": csrf(client), "verdict": "clean", "sample": "1", "state": "any"}
    )
    assert f"/items/{number}" not in str(following.url)
    assert "sample=1" in str(following.url)
    assert "p = " in client.get(f"/items/{number}?sample=1").text


def test_a_form_of_filters_as_the_browser_sends_it_leaves_out_nothing(client: Any) -> None:
    total = re.search(r'class="count">([\d,]+)', client.get("/?state=any").text)
    form = "/?state=any&day=&label=&layer=&reason=&origin=any&most="
    found = re.search(r'class="count">([\d,]+)', client.get(form).text)
    assert found is not None
    assert total is not None
    assert found[1] == total[1]


def test_the_page_says_what_to_do_when_the_sample_is_decided(client: Any, console: Console) -> None:
    drawn = draw(console.database, 40, "ada")
    with console.database.reading() as connection:
        items = [row[0] for row in connection.execute("SELECT item FROM sampled WHERE sample = ?", [drawn.number])]
    decide(console.database, items, "clean", "ada")
    page = client.get("/sample").text
    assert f"fieldmark calibrate {console.bundle.path} --from-review {console.database.path}" in page
    assert "40 images take the place of 99 calibration images" in page
    assert "the smallest will be 0.024 instead of 0.01" in page


@pytest.fixture
def scored(tmp_path: Path, quarantine: Path, looker: Looker) -> Iterator[Any]:
    """A browser before the console of a score folder: sixty files, in no folder below the one that was scored."""
    (tmp_path / "photos").mkdir()
    for path in sorted(quarantine.rglob("*.png")):
        shutil.copy(path, tmp_path / "photos")
    options = ScoreOptions(network="full", workers=1)
    score_source(tmp_path / "photos", LocalInference(looker.bundle, threads=1), tmp_path / "scores", options)
    source = open_source(str(tmp_path / "scores"), looker.bundle)
    database = Database.open(tmp_path / "scores.db", source=source.place, bundle_id=looker.bundle.bundle_id)
    follower = Follower(database, source, looker.bundle)
    follower.turn()
    door = Door(hosts=frozenset({HOST}), port=8000, reviewer="ada")
    console = Console(database=database, source=source, follower=follower, looker=looker, door=door)
    with TestClient(application(console), base_url=f"http://{HOST}") as opened:
        opened.get("/", params={"token": door.token})
        yield opened
    database.close()


def words_of(page: str) -> str:
    """What a page shows."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_of_a_score_folder_pages_say_what_is_true_of_it(scored: Any) -> None:
    """Nothing was drawn by chance, nobody has called, and no name is missing."""
    pages = {path: words_of(scored.get(path).text) for path in (*PAGES[:-1], "/incident?origin=&reason=flagged")}
    for path, text in pages.items():
        for wrong in ("by chance", "no name", "caller", "drawn at random.", "drawn at random;", "was sent", "received"):
            assert wrong not in text, path
    assert re.search(r"(\d+) were flagged, (\d+) were not \(all that was scored is here\); 0 are decided", pages["/"])
    assert re.search(r"loudest layer: (colour|grid) the top folder", pages["/"])
    assert "60 images: all that were scored." in pages["/figures"]
    assert "All 60 images that were scored are here to draw from" in pages["/sample"]
    assert "images from the top folder" in pages["/groups"]
    assert "flagged of one folder within one hour" in pages["/groups"]
    unflagged = re.search(r'href="/items/(\d+)', scored.get("/?reason=sample&state=any").text)
    assert unflagged is not None
    assert "It was not flagged; all that was scored is here." in words_of(scored.get(f"/items/{unflagged[1]}").text)
    incident = pages["/incident?origin=&reason=flagged"]
    assert "From the top folder (" in incident
    assert re.search(r" waiting [0-9T.-]+-[0-9a-f]{32}\.png ", incident), "the file is named"


def test_of_a_quarantine_pages_say_what_is_true_of_it(client: Any, console: Console) -> None:
    with console.database.writing() as connection:
        connection.execute("UPDATE items SET origin = '' WHERE id % 2 = 0")
    queue = words_of(client.get("/?state=any").text)
    assert re.search(
        r"were flagged, \d+ were not and were drawn at random; 0 are decided. Many come from one caller", queue
    )
    assert "caller shop" in queue
    assert "a caller without a name" in queue
    assert re.search(r"loudest layer: (colour|grid) caller partner-x", queue)
    assert "It was not flagged; it was drawn at random." in words_of(client.get("/items/1").text)
    assert "images from callers without a name" in words_of(client.get("/groups").text)


def test_a_layer_that_is_unknown_is_not_the_loudest(client: Any, console: Console) -> None:
    with console.database.writing() as connection:
        connection.execute("UPDATE items SET layer = '?'")
    for path in ("/?state=any", "/items/41", "/groups?kind=by-label"):
        text = words_of(client.get(path).text)
        assert "loudest layer:" not in text
        assert "? loudest" not in text


def test_an_incidents_page_says_who_decided_and_nothing_was_done_just_now(client: Any, console: Console) -> None:
    decide(console.database, [41, 42], "attack", "ada")
    text = client.get("/incident?origin=partner-x").text
    assert "ada: attack (2)" in text
    (said,) = re.findall(r'<div id="said"[^>]*>(.*?)</div>', text, re.DOTALL)
    assert said.strip() == ""


def test_behind_envoy_the_key_is_the_name(console: Console) -> None:
    import dataclasses

    door = Door(hosts=frozenset({"review.example"}), port=1, reviewer="x", keyed=True)
    app = application(dataclasses.replace(console, door=door))
    with TestClient(app, base_url="http://review.example") as keyed:
        assert keyed.get("/").status_code == 401
        page = keyed.get("/", headers={KEY_NAME: "grace"})
        assert page.status_code == 200
        assert "You are <b>grace</b>" in page.text
        token = re.search(r'name="csrf" value="(\w+)"', page.text)
        assert token is not None
        keyed.post("/items/1/decide", data={"csrf": token[1], "verdict": "clean"}, headers={KEY_NAME: "grace"})
        assert standing(console.database, 1)[0]["reviewer"] == "grace"
        taken = keyed.post("/items/2/decide", data={"csrf": token[1], "verdict": "clean"}, headers={KEY_NAME: "heidi"})
        assert taken.status_code == 403
        assert "or another reviewer" in taken.text
        assert standing(console.database, 2) == []


def test_two_keys_never_become_one_reviewer(console: Console) -> None:
    import dataclasses

    door = Door(hosts=frozenset({"review.example"}), port=1, reviewer="x", keyed=True)
    first, second = (f"{'n' * (LONGEST_NAME - 1)}{last}" for last in "ab")
    app = application(dataclasses.replace(console, door=door))
    with TestClient(app, base_url="http://review.example") as keyed:
        for name in (first, second):
            token = csrf_of(keyed.get("/", headers={KEY_NAME: name}).text)
            keyed.post("/items/1/decide", data={"csrf": token, "verdict": "clean"}, headers={KEY_NAME: name})
        for name in (f"{first}more", "two  spaces"):  # an Envoy of somebody else's may know such names
            refused = keyed.get("/", headers={KEY_NAME: name})
            assert refused.status_code == 403
            assert "is not one line of at most 64 characters" in refused.text
    assert [row["reviewer"] for row in standing(console.database, 1)] == [second, first]


@pytest.mark.parametrize(
    ("named", "called"),
    [
        ("Review.Example:8443", "review.example:8443"),
        ("review.example:8443", "REVIEW.example:8443"),
        ("review.example:443", "review.example"),
        ("review.example", "review.example"),
        ("review.example", "review.example:443"),
        ("[2001:DB8::1]:443", "[2001:db8::1]"),
    ],
)
def test_behind_envoy_it_answers_to_the_name_as_browsers_write_it(console: Console, named: str, called: str) -> None:
    import dataclasses

    door = Door(hosts=hosts_of("127.0.0.1", 8020, [named]), port=8020, reviewer="x", keyed=True)
    with TestClient(application(dataclasses.replace(console, door=door))) as keyed:
        keyed.headers.update({KEY_NAME: "grace", "host": called})
        page = keyed.get("/")
        assert page.status_code == 200
        form = {"csrf": csrf_of(page.text), "verdict": "clean"}
        headers = {"origin": f"https://{called.lower()}"}
        assert keyed.post("/items/1/decide", data=form, headers=headers, follow_redirects=False).status_code == 303
        assert keyed.get("/", headers={"host": "review.example:1"}).status_code == 421


@pytest.mark.hostile
@pytest.mark.parametrize(
    "name", ["", "https://review.example", "review.example/", "a b", "review.example:0", "review.example:70000", "ä.de"]
)
def test_a_name_that_no_browser_calls(name: str) -> None:
    with pytest.raises(OptionError, match="is no name that browsers call"):
        hosts_of("127.0.0.1", 8020, [name])


def test_whoever_comes_with_a_key_learns_no_folders(
    console: Console, quarantine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    drawn = draw(console.database, 40, "ada")
    with console.database.reading() as connection:
        items = [row[0] for row in connection.execute("SELECT item FROM sampled WHERE sample = ?", [drawn.number])]
    decide(console.database, items, "clean", "ada")
    door = Door(hosts=frozenset({"review.example"}), port=1, reviewer="x", keyed=True)
    bundle, folder = console.bundle.path, str(quarantine.parent)
    console.follower.problem = f"{bundle}/detector/full.npz is not a detector"

    def refused(*_: object, **__: object) -> None:
        raise ReviewError(f"{console.database.path} cannot be read or written (disk I/O error)")

    with TestClient(application(dataclasses.replace(console, door=door)), base_url="http://review.example") as keyed:
        keyed.headers[KEY_NAME] = "grace"
        page = keyed.get("/sample").text
        assert f"fieldmark calibrate {bundle.name} --from-review review.db --out {bundle.name}-calibrated" in page
        assert f"{bundle.name}/detector/full.npz is not a detector" in page
        aside = quarantine.rename(quarantine.with_name("aside"))
        with pytest.raises(ReviewError) as gone:
            console.follower.turn()
        aside.rename(quarantine)
        console.follower.problem = str(gone.value)
        monkeypatch.setattr("review.pages.queue.windows", refused)
        answer = keyed.get("/")
        assert answer.status_code == 503
        assert "review.db cannot be read or written" in answer.text
        page += answer.text + keyed.get("/groups").text
        assert "quarantine cannot be reached" in page
    for place in (folder, str(bundle.parent)):
        assert place not in page
    with TestClient(application(console), base_url=f"http://{HOST}") as here:
        assert f"{quarantine} cannot be reached" in here.get("/sample", params={"token": console.door.token}).text


def test_on_the_port_of_http_browsers_leave_it_out(console: Console) -> None:
    import dataclasses

    assert hosts_of("127.0.0.1", 8000, ()) >= {"127.0.0.1:8000", "localhost:8000"}
    assert "localhost" not in hosts_of("127.0.0.1", 8000, ())
    door = dataclasses.replace(console.door, hosts=hosts_of("127.0.0.1", 80, ()), port=80)
    with TestClient(application(dataclasses.replace(console, door=door)), base_url="http://localhost") as client:
        assert client.get("/", params={"token": door.token}).status_code == 200


def test_a_second_console_says_so(console: Console) -> None:
    import dataclasses

    app = application(dataclasses.replace(console, alone=False))
    with TestClient(app, base_url=f"http://{HOST}") as second:
        assert "Another console has this review open" in second.get("/", params={"token": console.door.token}).text


def test_a_source_that_went_away_is_a_notice(client: Any, console: Console, quarantine: Path) -> None:
    console.follower.problem = "the quarantine cannot be reached"
    assert "the quarantine cannot be reached" in client.get("/").text
    del quarantine


def test_rows_come_by_the_hundred(console: Console, client: Any, toy_bundle: Bundle) -> None:
    from review.store.queue import add
    from tests.review.items import make_items

    add(console.database, make_items(250, bundle_id=toy_bundle.bundle_id))
    text = client.get("/?state=any").text
    places = [html.unescape(place) for place in re.findall(r'hx-get="(/rows\?[^"]+)"', text)]
    found = re.findall(r'data-id="(\d+)"', text)
    for place in places:
        part = client.get(place)
        assert part.status_code == 200
        found += re.findall(r'data-id="(\d+)"', part.text)
    assert len(found) == len(set(found)) == 310


def test_names_are_one_short_line() -> None:
    assert clean_name("  Ada\n\x00 Lovelace " + "x" * 100) == ("Ada Lovelace " + "x" * 100)[:64]


def test_a_follower_that_stops_is_quick(console: Console, quarantine: Path) -> None:
    follower = Follower(console.database, QuarantineSource(str(quarantine)), console.bundle, seconds=60)
    follower.start()
    follower.stop()
    assert not follower._thread.is_alive()
