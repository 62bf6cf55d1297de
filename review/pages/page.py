"""What every page needs: the console behind it, its template, its form, its sentence when something is wrong."""

import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bundle import Bundle
from bundle.errors import DiskFull, FieldmarkError, ImageGone, InputError, printable
from review.evidence.look import Looker
from review.follower import Follower
from review.pages.access import CSRF, Door, is_foreign, reviewer_of
from review.sources.source import Source
from review.store.database import Database
from review.store.decisions import ATTACK, CLEAN, DISPUTED, FAULT, OUTDATED, UNSURE, WAITING, newest
from review.store.queue import Filter, counts

FOLDER = Path(__file__).parent
MOST_FORM, MOST_FIELDS = 64 * 1024, 100  # bytes, fields
WORDS = {
    WAITING: "waiting",
    ATTACK: "attack",
    CLEAN: "clean",
    FAULT: "camera fault",
    UNSURE: "unsure",
    DISPUTED: "disputed",
    OUTDATED: "outdated",
}
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # the direction of text
KEYS = {ATTACK: "a", CLEAN: "c", FAULT: "f", UNSURE: "u"}


@dataclass(frozen=True, kw_only=True)
class Console:
    """Everything that the pages show. `alone` is False where another console has the same database open."""

    database: Database
    source: Source
    follower: Follower
    looker: Looker
    door: Door
    alone: bool = True
    templates: jinja2.Environment = field(default_factory=lambda: _templates())

    @property
    def bundle(self) -> Bundle:
        """The bundle that answers for single images."""
        return self.looker.bundle

    @property
    def notices(self) -> list[str]:
        """What is not as it should be, a sentence each."""
        found = [self.told(self.follower.problem)] if self.follower.problem else []
        if not self.alone:
            found.append("Another console has this review open, too. Both write into it, and nothing is lost.")
        return found + [self.told(each) for each in self.source.notices]

    def told(self, text: str) -> str:
        """A sentence, or a place, as who looks may read it: who comes with a key learns no folders of this machine."""
        if not self.door.keyed:
            return text
        for place in (str(self.database.path), self.source.place, str(self.bundle.path)):
            text = text.replace(os.path.abspath(place), os.path.basename(place)).replace(place, os.path.basename(place))
        return text


class NotFound(FieldmarkError):
    """A page of something that is not there."""


def console_of(request: Request) -> Console:
    """The console that a request came to."""
    found: Console = request.app.state.console
    return found


def render(request: Request, template: str, **values: Any) -> HTMLResponse:
    """A page, or a part of one, from its template."""
    console = console_of(request)
    with console.database.reading() as connection:
        seen = newest(connection)
    reviewer = reviewer_of(request, console.door)
    known = {
        "reviewer": reviewer,
        "csrf": console.door.csrf(reviewer),
        "keyed": console.door.keyed,
        "seen": seen,
        "path": request.url.path,
        "notices": console.notices,
        "busy": console.follower.busy,
        "counts": counts(console.database),
        "bundle": console.bundle,
        "words": console.source.words,
        "whole": console.source.whole,
        "said": "" if is_foreign(request.headers) else request.query_params.get("said", "")[:300],
        "undoable": request.query_params.get("stroke", "")[:32],
    }
    text = console.templates.get_template(template).render({**known, **values})
    return HTMLResponse(text)


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def back(address: str) -> RedirectResponse:
    """To another page of ours after something was done; a foreign address leads to the queue."""
    own = address.startswith("/") and not address.startswith(("//", "/\\"))
    return RedirectResponse(address if own else "/", status_code=303)


FormHandler = Callable[[Request, FormData], Response]


def acts(handler: FormHandler) -> Callable[[Request], Awaitable[Response]]:
    """A handler of a form of ours: it is read, and refused where it is not ours, before the handler sees it."""

    async def handle(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():  # its length need not be told, nor true
            body += chunk
            if len(body) > MOST_FORM:
                return sentence(request, "The form is too large, and nothing was recorded.", 413)
        try:
            pairs = parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            return sentence(request, "The form has too many fields, and nothing was recorded.", 413)
        form = FormData(dict(pairs))
        door = console_of(request).door
        if not door.issued(str(form.get(CSRF, "")), reviewer_of(request, door)):
            return sentence(
                request,
                "This form is of an earlier run of the console, or another reviewer's: nothing was recorded. "
                "Load the page again.",
                403,
            )
        return await run_in_threadpool(handler, request, form)

    return handle


def sentence(request: Request, text: str, status: int) -> Response:
    """One sentence instead of a page, or of a part of one."""
    template = "sentence_part.html.j2" if is_part(request) else "sentence.html.j2"
    console = console_of(request)
    values = {"sentence": text, "status": status, "bundle": console.bundle}
    return HTMLResponse(console.templates.get_template(template).render(values), status_code=status)


def failed(request: Request, problem: Exception) -> Response:
    """The sentence of an error of ours, with its status."""
    if isinstance(problem, DiskFull):
        status = 507
    elif isinstance(problem, (NotFound, ImageGone)):
        status = 404
    else:
        status = 400 if isinstance(problem, InputError) else 503
    return sentence(request, legible(console_of(request).told(str(problem))), status)


def legible(text: str) -> str:
    """Text of others as a reader takes it for what it is: nothing in it turns the direction of what follows."""
    return "".join(ascii(character)[1:-1] if character in TURNING else character for character in printable(text))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}g}"


def percent(value: float) -> str:
    """A share for people."""
    return f"{100 * value:.1f} %"


def moment(text: str) -> str:
    """A time for people, in UTC: `24 Nov 2026, 13:05`; the text as it is where it is none."""
    try:
        return datetime.fromisoformat(text).strftime("%-d %b %Y, %H:%M")
    except ValueError:
        return text[:30]


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "moment": moment, "printable": legible}
    environment.globals |= {"WORDS": WORDS, "KEYS": KEYS, "fresh": Filter()}
    return environment
