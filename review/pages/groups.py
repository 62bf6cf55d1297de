"""Groups: campaigns and near copies, each decided in one stroke; and a page of one for whoever must be told."""

import os
import sqlite3

from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import OptionError
from review.pages.page import console_of, render
from review.sources.source import CALLERS, Words
from review.store.decisions import STATES, WAITING, newest
from review.store.groups import CAMPAIGNS, KINDS, groups, totals
from review.store.queue import ANY, Filter, latest, window

MOST = 100
SHOWN, LISTED = 24, 200  # pictures and rows on an incident's page
FIRST = (-1.0, float("-inf"), 0)  # before every place in the order


def groups_page(request: Request) -> Response:
    """The groups of a kind of which some wait, or are decided as asked."""
    kind, state = request.query_params.get("kind", CAMPAIGNS), request.query_params.get("state", WAITING)
    if kind not in KINDS or state not in STATES:
        raise OptionError("there are no such groups", hint=f"Choose from: {', '.join(KINDS)}.")
    database = console_of(request).database
    with database.reading() as connection:  # of one moment, so that what is decided is what was shown
        found = groups(database, kind, state=state, most=MOST)
        known, seen = latest(connection), newest(connection)
    return render(request, "groups.html.j2", kind=kind, kinds=KINDS, state=state, groups=found, known=known, seen=seen)


def incident(request: Request) -> Response:
    """One group on paper: what, when, from whom, how sure, who decided."""
    console = console_of(request)
    wanted = Filter.of({**request.query_params, "state": request.query_params.get("state", ANY)})
    with console.database.reading():
        found = totals(console.database, wanted)
        rows = window(console.database, wanted, FIRST, rows=LISTED)
    if found is None:
        raise OptionError("nothing belongs to this group", hint="Go back to the groups.")
    return render(
        request,
        "incident.html.j2",
        wanted=wanted,
        totals=found,
        rows=rows,
        shown=rows[:SHOWN],
        names={row["id"]: row["request_id"] or _name(row, console.source.words) for row in rows},
    )


def _name(row: sqlite3.Row, words: Words) -> str:
    """How the image is found again: a quarantine's key, a scored file's name without the folders of this machine."""
    if words is CALLERS:
        return str(row["key"])
    return os.path.basename(bytes(row["image"])).decode("utf-8", "backslashreplace")
