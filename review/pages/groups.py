"""Groups: campaigns and near copies, each decided in one stroke; and a page of one for whoever must be told."""

import json
import os
import sqlite3
from collections import Counter

from starlette.requests import Request
from starlette.responses import Response

from bundle.errors import OptionError
from review.pages.page import console_of, render
from review.sources.source import CALLERS, Words
from review.store.decisions import STATES, WAITING, newest
from review.store.groups import CAMPAIGNS, KINDS, groups
from review.store.queue import ANY, Filter, latest, window

MOST = 100
SHOWN = 24  # pictures on an incident's page
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
    rows = window(console.database, wanted, FIRST, rows=5000)
    if not rows:
        raise OptionError("nothing belongs to this group", hint="Go back to the groups.")
    with console.database.reading() as connection:
        marks = ",".join(str(row["id"]) for row in rows)  # numbers of ours
        decisions = connection.execute(
            "SELECT decisions.* FROM standing JOIN decisions ON decisions.id = standing.decision"
            f" WHERE standing.item IN ({marks}) ORDER BY decisions.id"
        ).fetchall()
    said = Counter((row["reviewer"], row["verdict"]) for row in decisions)
    return render(
        request,
        "incident.html.j2",
        wanted=wanted,
        rows=rows,
        shown=rows[:SHOWN],
        labels=Counter(row["label"] for row in rows).most_common(8),
        origins=Counter(row["origin"] for row in rows).most_common(8),
        layers=Counter(row["layer"] for row in rows if row["layer"]).most_common(4),
        states=Counter(row["state"] for row in rows),
        by=sorted(said.items()),
        notes=list(dict.fromkeys((row["reviewer"], row["note"]) for row in decisions if row["note"])),
        bundles=sorted({row["bundle_id"] for row in rows}),
        first=min(row["received"] for row in rows),
        last=max(row["received"] for row in rows),
        expected=sum(row["alpha"] for row in rows) / len(rows),
        names={row["id"]: row["request_id"] or _name(row, console.source.words) for row in rows},
        requests=json.dumps([row["request_id"] for row in rows if row["request_id"]][:8]),
    )


def _name(row: sqlite3.Row, words: Words) -> str:
    """How the image is found again: a quarantine's key, a scored file's name without the folders of this machine."""
    if words is CALLERS:
        return str(row["key"])
    return os.path.basename(bytes(row["image"])).decode("utf-8", "backslashreplace")
