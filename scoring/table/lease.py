"""Who may write into a table: one job at a time, as far as that can be known.

On this machine's disk the kernel knows, by a lock that goes with the process. In a bucket nobody knows whether a job on
another machine is alive, so a job leaves a sign of life there, a count that rises every few seconds; who comes second
watches whether it rises. A sign that stands still belongs to a dead job and is taken over. If two jobs believe that
they are alone, the table's one guarded commit lets only one of them in (scoring/table/delta.py).
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator

from bundle.errors import FieldmarkError, ScoringError
from scoring.local.jobs import lock
from scoring.table.place import Place

STATE = "_fieldmark"
SIGN = "_fieldmark/alive"
BEAT_SECONDS, STILL_SECONDS = 5.0, 20.0


@contextlib.contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the table at a place; raises ScoringError when another job does."""
    if place.local is not None:
        with lock(place.local / STATE):
            yield
        return
    _wait(place, STILL_SECONDS)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(place, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(FieldmarkError):  # the next job then waits for it to stand still
            place.remove(SIGN)


def _wait(place: Place, seconds: float) -> None:
    """Return when nobody is alive; raises ScoringError as soon as somebody shows that he is."""
    first = _sign(place)
    end = time.monotonic() + seconds
    while (now := _sign(place)) is not None and time.monotonic() < end:
        if now != first:
            raise ScoringError(
                f"another job is scoring into {place.url}", hint="Wait until it ends, or use another table."
            )
        time.sleep(1.0)


def _sign(place: Place) -> bytes | None:
    try:
        return place.read(f"{SIGN}/beat")
    except FileNotFoundError:
        return None


def _beat(place: Place, over: threading.Event) -> None:
    name, count = secrets.token_hex(8), 0
    while True:
        count += 1
        with contextlib.suppress(FieldmarkError):  # a store that is away for a while: the commit decides
            place.write(f"{SIGN}/beat", f"{name} {count}\n".encode())
        if over.wait(BEAT_SECONDS):
            return
