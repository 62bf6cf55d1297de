"""The queue: what waits, most suspicious first, a hundred rows at a time; and the strokes that decide."""

import sqlite3
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import OptionError
from review.pages.access import clean_name, reviewer_of
from review.pages.page import WORDS, NotFound, back, console_of, is_part, render
from review.store.decisions import Stroke, decide, undo
from review.store.groups import members
from review.store.queue import ANY, MOST_NUMBER, Filter, after, choices, get, window, windows

YEAR = 365 * 24 * 3600  # seconds


def queue(request: Request) -> Response:
    """The page: filters, the first hundred rows, and for each other hundred the place where it will stand."""
    console = console_of(request)
    wanted = Filter.of(request.query_params)
    if request.query_params.get("second"):
        wanted = Filter.of({**request.query_params, "second": reviewer_of(request, console.door), "state": "decided"})
    blocks = windows(console.database, wanted)
    first = window(console.database, wanted, blocks[0].first) if blocks else []
    total = sum(block.rows for block in blocks)
    return render(
        request,
        "queue.html.j2",
        wanted=wanted,
        blocks=blocks,
        first=first,
        total=total,
        choices=choices(console.database),
    )


def block(request: Request) -> Response:
    """A hundred rows from one place on."""
    console, query = console_of(request), request.query_params
    try:
        p_value, calm, item = (float(part) for part in query.get("first", "").split(","))
        first = (p_value, calm, int(item))
        if abs(first[2]) > MOST_NUMBER:
            raise ValueError("no item has that number")
    except (ValueError, OverflowError):
        raise OptionError("there is no such place in the queue") from None
    wanted = Filter.of(query)
    rows = window(console.database, wanted, first)
    return render(request, "rows.html.j2", rows=rows, wanted=wanted)


def decide_item(request: Request, form: FormData) -> Response:
    """One image. From the queue its row comes back as it is now; from its own page one goes on to the next."""
    console = console_of(request)
    number, reviewer = int(request.path_params["item"]), reviewer_of(request, console.door)
    item = existing(request, number)
    wanted = Filter.of(dict(_texts(form)))
    following = after(console.database, wanted, item)
    verdict = str(form.get("verdict", ""))
    seen = None if form.get("anyway") else _number(form, "seen")
    done = decide(console.database, [number], verdict, reviewer, note=str(form.get("note", "")).strip(), seen=seen)
    if is_part(request):
        return _row(request, number, wanted, done)
    if done.missed:
        return back(f"/items/{number}?{wanted.query()}&missed={verdict}")
    place = f"/items/{following}?{wanted.query()}" if following else f"/?{wanted.query()}"
    if (sample := _number(form, "sample")) is not None:
        place = f"/sample/next?number={sample}"
    return back(saying(place, f"Recorded: {WORDS[verdict]}", done.stroke))


def decide_group(request: Request, form: FormData) -> Response:
    """Everything that the page has shown as waiting in a group, in one stroke."""
    console, place = console_of(request), str(form.get("back", "/groups"))
    wanted = Filter.of({**dict(_texts(form)), "state": ANY})
    known, seen, waiting = (_number(form, name) or 0 for name in ("known", "seen", "waiting"))
    items = members(console.database, wanted, known=known, seen=seen, waiting=waiting)
    if items is None:
        return back(saying(place, "Nothing was recorded: images have joined this group meanwhile. Look at it again"))
    verdict, note = str(form.get("verdict", "")), str(form.get("note", "")).strip()
    done = decide(console.database, items, verdict, reviewer_of(request, console.door), note=note, seen=seen)
    said = f"Recorded: {len(done.items):,} images, {WORDS[verdict]}"
    if not items:
        said = "Somebody else has decided all of this group meanwhile"
    return back(saying(place, said, done.stroke))


def undo_stroke(request: Request, form: FormData) -> Response:
    """A stroke of one's own, or the latest."""
    console = console_of(request)
    done = undo(console.database, reviewer_of(request, console.door), str(form.get("stroke", "")))
    if is_part(request) and len(done.items) == 1:
        return _row(request, done.items[0], Filter.of(dict(_texts(form))), None)
    count = len(done.items)
    said = f"Undone: {WORDS[done.verdict]}, {count:,} image{'s' * (count != 1)}"
    return back(saying(str(form.get("back", "/")), said))


def name_reviewer(request: Request, form: FormData) -> Response:
    """Who sits before the page now."""
    door = console_of(request).door
    name = clean_name(str(form.get("name", "")))
    answer = back(str(form.get("back", "/")))
    if name and not door.keyed:
        answer.set_cookie(f"{door.cookie}_name", quote(name, safe=""), max_age=YEAR, httponly=True, samesite="strict")
    return answer


def saying(place: str, said: str, stroke: str = "") -> str:
    """An address whose page will say what was done, and offer to undo it."""
    address, _, query = place.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in ("said", "stroke")]
    return f"{address}?{urlencode([*kept, ('said', said), ('stroke', stroke)])}"


def existing(request: Request, number: int) -> sqlite3.Row:
    """An item by its number; raises NotFound."""
    item = get(console_of(request).database, number)
    if item is None:
        raise NotFound(f"there is no image {number} in this review", hint="Go back to the queue.")
    return item


def _row(request: Request, number: int, wanted: Filter, done: Stroke | None) -> Response:
    said = "" if done is None or done.missed else f"Recorded: {WORDS[done.verdict]}"
    return render(
        request,
        "row_part.html.j2",
        row=existing(request, number),
        wanted=wanted,
        missed=done.missed if done else (),
        verdict=done.verdict if done else "",
        stroke=done.stroke if done else "",
        said=said if done else "Undone",
    )


def _texts(form: FormData) -> list[tuple[str, str]]:
    return [(name, value) for name, value in form.multi_items() if isinstance(value, str)]


def _number(form: FormData, name: str) -> int | None:
    text = str(form.get(name, ""))
    if text and not text.isdecimal():
        raise OptionError(f"{name} is no number")
    return int(text[:18]) if text else None
