"""Ctrl-C and SIGTERM, between two pieces of work."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt, with the signal's number, once a signal has come.

    A job calls it between two batches, so it is never stopped inside a write; a second signal stops it at once.
    """
    caught: list[int] = []

    def remember(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt(number)
        caught.append(number)

    def stop_or_go_on() -> None:
        if caught:
            raise KeyboardInterrupt(caught[0])

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_or_go_on
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
