"""A person at the console, in a real Chromium: flows by keyboard and by mouse, on a phone, in the dark, read out."""

import asyncio
import dataclasses
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bundle import Bundle
from review.cli import _server
from review.pages.access import Door
from review.pages.app import application
from review.pages.page import Console
from review.store.decisions import decide, standing
from review.store.queue import add, counts, get
from tests.review.items import make_items

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ("/", "/?state=any&most=0.5", "/items/41", "/groups", "/groups?kind=copies", "/figures", "/sample",
         "/decisions", "/export", "/incident?origin=partner-x", "/nowhere")  # fmt: skip
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 375, "height": 700}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Not for the session: while it is open, this thread has an event loop, and no verb could start one of its own."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(console: Console) -> Iterator[Console]:
    """The console on a free port, in a thread."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        door = Door(hosts=frozenset({f"127.0.0.1:{port}"}), port=port, reviewer="ada")
        running = dataclasses.replace(console, door=door)
        server = _server(application(running))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
        thread.start()
        yield running
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def complaints() -> list[str]:
    """What pages complain of: at the end of a test there must be nothing but pages that are not there."""
    return []


@pytest.fixture
def open_page(served: Console, chromium: Any, complaints: list[str]) -> Iterator[Open]:
    """`open_page("/groups", viewport=..., color_scheme=...)`."""
    said, contexts = complaints, []

    def open_one(path: str, **how: Any) -> Any:
        context = chromium.new_context(**{"viewport": WIDE, **how})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine is no failure
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda problem: said.append(str(problem)))
        base = f"http://127.0.0.1:{served.door.port}"
        page.goto(f"{base}/sample?token={served.door.token}")
        page.goto(base + path)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [line for line in said if "404" not in line] == []


def state(console: Console, number: int) -> str:
    item = get(console.database, number)
    assert item is not None
    return str(item["state"])


def first_of(page: Any) -> int:
    return int(page.locator(".row").first.get_attribute("data-id"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_a_rule_of_accessibility(served: Console, open_page: Open, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    decide(served.database, list(range(42, 50)), "attack", "ada", note="stripes")
    decide(served.database, [42, 43], "clean", "bob")
    page = open_page("/", color_scheme=scheme)
    base = page.url.rstrip("/")
    for path in PAGES:
        page.goto(base + path)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"


MOVING = """() => [...document.querySelectorAll("*")].filter((each) => {
  const style = getComputedStyle(each);
  return style.transitionDuration !== "0s" || style.animationDuration !== "0s";
}).map((each) => each.outerHTML.slice(0, 80))"""


def test_nothing_passes_through_a_colour_that_was_not_chosen(served: Console, open_page: Open) -> None:
    """Buttons were on their way from the browser's own grey while a page loaded, and nobody could read them."""
    page = open_page("/", reduced_motion="no-preference")
    base = page.url.rstrip("/")
    for path in PAGES:
        page.goto(base + path)
        assert page.evaluate(MOVING) == [], path


def test_no_page_is_wider_than_a_phone_and_fingers_meet_its_buttons(open_page: Open) -> None:
    page = open_page("/", viewport=PHONE, has_touch=True, is_mobile=True)
    base = page.url.rstrip("/")
    for path in PAGES:
        page.goto(base + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        heights = "[...document.querySelectorAll('button')].map(each => each.getBoundingClientRect().height)"
        assert all(height >= 24 or not height for height in page.evaluate(heights)), path


BROKEN = """() => {
  const found = [];
  for (const cell of document.querySelectorAll("th, td")) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      for (const word of node.data.matchAll(/[^\\s-]+/g)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map((each) => Math.round(each.top)));
        if (lines.size > 1) found.push(word[0]);
      }
    }
  }
  return found;
}"""


def test_no_table_breaks_a_word_on_a_phone(served: Console, open_page: Open) -> None:
    decide(served.database, [41, 42, 43], "attack", "ada", note="stripes that run from the wing to the crown, in blue")
    decide(served.database, [41, 42], "clean", "bob")
    page = open_page("/", viewport=PHONE, has_touch=True, is_mobile=True)
    base = page.url.rstrip("/")
    for path in PAGES:
        page.goto(base + path)
        assert page.evaluate(BROKEN) == [], path
    page.goto(f"{base}/decisions")
    undo = page.get_by_role("cell").get_by_role("button", name="Undo").first.bounding_box()
    assert undo["x"] + undo["width"] <= PHONE["width"], "nobody must look for it beside the screen"


def test_the_queue_is_decided_by_keys_alone(served: Console, open_page: Open) -> None:
    page = open_page("/")
    first, second = (int(row.get_attribute("data-id")) for row in page.locator(".row").all()[:2])
    page.keyboard.press("j")
    page.keyboard.press("a")
    page.wait_for_selector(f"#item-{first}.attack")
    page.wait_for_function(f"() => document.activeElement.closest('#item-{second}')")
    assert f"Recorded: attack, image {first}" in page.text_content("#said")
    page.keyboard.press("c")
    page.wait_for_selector(f"#item-{second}.clean")
    assert (state(served, first), state(served, second)) == ("attack", "clean")
    page.keyboard.press("k")
    page.keyboard.press("z")
    page.wait_for_selector(f"#item-{second}.waiting")
    assert (state(served, first), state(served, second)) == ("attack", "waiting")
    page.keyboard.press("Enter")
    page.wait_for_url("**/items/**")


def test_the_last_one_is_undone_wherever_the_focus_is(served: Console, open_page: Open) -> None:
    page = open_page("/")
    first, second, third = (int(row.get_attribute("data-id")) for row in page.locator(".row").all()[:3])
    page.keyboard.press("j")
    for key, number, after in (("a", first, second), ("c", second, third)):
        page.keyboard.press(key)
        page.wait_for_selector(f"#item-{number}:not(.waiting)")
        page.wait_for_function(f"() => document.activeElement.closest('#item-{after}')")
    page.keyboard.press("z")
    page.wait_for_selector(f"#item-{second}.waiting")
    assert (state(served, first), state(served, second)) == ("attack", "waiting")
    page.wait_for_function(f"() => document.activeElement.closest('#item-{second}')")
    page.keyboard.press("f")  # what was meant
    page.wait_for_selector(f"#item-{second}.fault")
    page.keyboard.press("z")
    page.wait_for_selector(f"#item-{second}.waiting")
    page.keyboard.press("z")
    page.wait_for_selector(f"#item-{first}.waiting")
    assert counts(served.database).decided == 0


def test_an_image_is_decided_by_keys_alone_and_undone(served: Console, open_page: Open) -> None:
    page = open_page("/items/41")
    page.keyboard.press("f")
    page.wait_for_url(lambda url: "/items/41" not in url)
    assert "Recorded: camera fault" in page.text_content("#said")
    assert state(served, 41) == "fault"
    page.keyboard.press("z")
    page.wait_for_url("**said=Undone**")
    assert state(served, 41) == "waiting"
    page.goto(page.url.split("/?")[0].split("/items")[0] + "/items/41")
    page.keyboard.press("j")
    page.wait_for_url(lambda url: "/items/41" not in url)
    page.keyboard.press("q")
    page.wait_for_url(lambda url: "/items/" not in url)


def test_keys_are_letters_in_a_note_and_can_be_turned_off(served: Console, open_page: Open) -> None:
    page = open_page("/items/41")
    page.get_by_label("Note").fill("")
    page.get_by_label("Note").press_sequentially("a faq")
    assert page.get_by_label("Note").input_value() == "a faq"
    page.get_by_role("button", name="Single keys: on").click()
    page.locator("#main").focus()
    page.keyboard.press("a")
    page.reload()
    page.keyboard.press("a")
    assert page.get_by_role("button", name="Single keys: off").is_visible()
    assert state(served, 41) == "waiting"


def test_the_tab_key_reaches_every_decision(open_page: Open) -> None:
    page = open_page("/items/41")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.value || ''"))
    assert {"attack", "clean", "fault", "unsure"} <= reached
    page.goto(page.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"


def test_an_image_is_decided_by_mouse_with_a_note(served: Console, open_page: Open) -> None:
    page = open_page("/")
    first = first_of(page)
    page.locator(".row .open").first.click()
    page.wait_for_url(f"**/items/{first}?**")
    page.get_by_label("Note").fill("stripes")
    page.get_by_role("button", name="Attack").click()
    page.wait_for_url(lambda url: f"/items/{first}?" not in url)
    (row,) = standing(served.database, first)
    assert (row["verdict"], row["note"], row["reviewer"]) == ("attack", "stripes", "ada")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url("**said=Undone**")
    assert state(served, first) == "waiting"


def test_a_campaign_is_found_decided_and_printed_by_mouse(served: Console, open_page: Open) -> None:
    page = open_page("/")
    page.get_by_role("link", name="Groups", exact=True).click()
    heading = page.locator(".group h2").first
    assert "from caller partner-x" in heading.text_content()
    page.locator(".group").first.get_by_role("button", name="Attack").click()
    page.wait_for_url("**said=Recorded**")
    found = counts(served.database).by_state["attack"]
    assert found >= 10
    page.get_by_role("link", name="Those decided to be attacks").click()
    page.get_by_role("link", name="incident page").first.click()
    page.wait_for_url("**/incident?**")
    assert f"Incident: {found} images" in page.text_content("h1")
    page.emulate_media(media="print")
    assert not page.locator("header.top").is_visible()
    page.emulate_media(media="screen")
    page.go_back()
    page.get_by_role("link", name="Decisions", exact=True).click()
    page.get_by_role("button", name="Undo").first.click()
    page.wait_for_url("**said=Undone**")
    assert counts(served.database).decided == 0


def test_the_second_reviewer_sees_the_first_in_the_queue(served: Console, open_page: Open) -> None:
    page = open_page("/")
    first = first_of(page)
    decide(served.database, [first], "attack", "bob")
    page.keyboard.press("j")
    page.keyboard.press("c")
    page.get_by_text("bob said attack meanwhile").wait_for()
    assert state(served, first) == "attack"
    page.get_by_role("button", name="Say clean too").click()
    page.wait_for_selector(f"#item-{first}.disputed")


def test_a_sample_is_drawn_decided_and_ready_to_calibrate(served: Console, open_page: Open) -> None:
    page = open_page("/sample")
    page.get_by_label("How many").fill("12")
    page.get_by_role("button", name="Draw a sample").click()
    page.wait_for_url("**said=Drawn**")
    page.get_by_role("link", name="Decide", exact=True).click()
    page.wait_for_url("**/items/**")  # loaded: a key that comes before the script is lost
    while "/items/" in page.url:
        assert page.get_by_text("drawn at random").is_visible()
        before = page.url
        page.keyboard.press("c")
        page.wait_for_url(lambda url, before=before: url != before)
    assert "fieldmark calibrate" in page.text_content("pre")
    assert counts(served.database).by_state["clean"] == counts(served.database).decided > 0


def test_filters_and_a_name_are_kept(served: Console, open_page: Open) -> None:
    page = open_page("/")
    page.get_by_label("Caller").select_option("partner-x")
    page.get_by_label("Why here").select_option("flagged")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**origin=partner-x**")
    assert page.locator(".row").count() == int(page.locator(".count").text_content())
    page.get_by_label("You are").fill("Grace <b>Hopper</b>")
    with page.expect_navigation():
        page.get_by_role("button", name="Change").click()
    assert page.get_by_label("You are").input_value() == "Grace <b>Hopper</b>"
    page.goto(page.url.split("?")[0].rstrip("/") + "/items/41")
    page.keyboard.press("a")
    page.wait_for_url(lambda url: "/items/41" not in url)
    assert standing(served.database, 41)[0]["reviewer"] == "Grace <b>Hopper</b>"


def test_ten_thousand_scroll_and_only_what_is_near_is_loaded(
    served: Console, open_page: Open, toy_bundle: Bundle
) -> None:
    add(served.database, make_items(10_000, p_value=0.04, bundle_id=toy_bundle.bundle_id))
    page = open_page("/?most=0.05")
    assert page.locator(".row").count() <= 300
    before = page.evaluate("document.documentElement.scrollHeight")
    assert before > 9000 * 60
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.row')]"
        ".some(row => Math.abs(row.getBoundingClientRect().top) < innerHeight)"
    )
    assert page.locator(".row").count() < 2000
    after = page.evaluate("document.documentElement.scrollHeight")
    assert abs(after - before) < 0.1 * before


def test_figures_come_again_by_themselves(served: Console, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("review.pages.figures.SECONDS", 1)
    page = open_page("/figures")
    assert "Nothing flagged was decided yet" in page.text_content("main")
    decide(served.database, list(range(41, 60)), "attack", "ada")
    page.get_by_text("decided flags were attacks").wait_for()
    assert page.locator("svg[role=img]").count() == 4


def test_nothing_of_a_foreign_site_and_nothing_inline_runs(
    served: Console, open_page: Open, complaints: list[str]
) -> None:
    asked: list[str] = []
    page = open_page("/items/41")
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_load_state("networkidle")
    assert asked
    assert all(url.startswith(f"http://127.0.0.1:{served.door.port}/") for url in asked)
    assert complaints == []
    inline = """() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<p style='color: red' onclick='window.ran = true'>x</p>");
        document.body.lastElementChild.click();
        return [window.ran === true, document.body.lastElementChild.style.color];
    }"""
    assert page.evaluate(inline)[0] is False
    page.wait_for_timeout(100)
    assert sum("Content Security Policy" in line for line in complaints) >= 2
    complaints.clear()
