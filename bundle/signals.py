"""Ctrl-C and SIGTERM, where they must wait."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_postponed() -> Iterator[list[int]]:
    """Keep Ctrl-C and SIGTERM until the end of the block, and list them meanwhile. An exception out of a handler would
    leave half undone what cleans up, and abort a process that is in a library's callback.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # no handler ever runs here
        yield stopped
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {
        number: handler for number, handler in handlers.items() if callable(handler)
    }  # not those that are ignored
    for number in before:
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stopped:
            signal.raise_signal(stopped[0])
