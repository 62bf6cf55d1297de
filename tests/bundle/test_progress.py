"""Long work is seen: a bar on a terminal, plain lines elsewhere, and nothing on standard output."""

import io
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from bundle.progress import Work, duration, shown


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def work(total: int | None, clock: Clock, **more: object) -> Work:
    return Work("full: attacks", total, clock=clock, console=Console(quiet=True), **more)  # type: ignore[arg-type]


def test_a_line_says_what_how_far_and_how_long_still() -> None:
    clock = Clock()
    with work(300, clock) as running:
        clock.now += 30
        assert str(running) == "full: attacks 0/300 images, 30 s so far"
        clock.now += 130
        running.advance(120)
        assert str(running) == "full: attacks 120/300 images, about 4 min left"
        clock.now += 120  # inside one long step: what is left goes down all the same
        assert str(running) == "full: attacks 120/300 images, about 2 min left"
        clock.now += 4000
        assert str(running) == "full: attacks 120/300 images, 1 h 11 min so far"
        running.what = "full: more"
        running.advance(180)
        assert str(running) == "full: more 300/300 images"


def test_what_was_finished_before_does_not_make_the_estimate_rosy() -> None:
    clock = Clock()
    with work(1000, clock, rated=True) as running:
        running.at(800, 0)
        clock.now += 10
        assert str(running) == "full: attacks 800/1,000 images, 10 s so far"
        running.at(850, 50)
        assert str(running) == "full: attacks 850/1,000 images, 5.0 images/s, about 30 s left"


def test_what_nobody_has_counted_is_told_as_far_as_it_is_known() -> None:
    clock = Clock()
    with work(None, clock) as running:
        clock.now += 200
        assert str(running) == "full: attacks, 3 min so far"
        running.advance(7)
        assert str(running) == "full: attacks 7 images, 3 min so far"
        running.total = 14
        assert str(running) == "full: attacks 7/14 images, about 3 min left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.6, "1 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_off_a_terminal_lines_come_while_one_step_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    before, clock = threading.active_count(), Clock()
    told: list[str] = []
    with Work("proving the graph [full]", every=0.01, clock=clock):
        wait(lambda: told.append(capsys.readouterr().err) or "".join(told).count("\n") > 1)
    assert set("".join(told).splitlines()) == {"proving the graph [full], 0 s so far"}
    assert capsys.readouterr().out == ""
    assert threading.active_count() == before


def test_short_work_says_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown(["a", "b"], "letters", unit="letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_a_quiet_console_keeps_the_work_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Work("training", 10, console=Console(quiet=True), every=0.001) as running:
        running.advance()
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_printing_makes_room_for_it() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Work("training [1/2]", 2, unit="steps", console=console) as running:
        running.advance()
        console.print("epoch one")
        running.advance()
    text = screen.getvalue()
    assert "training [1/2]" in text
    assert "2/2 steps" in text
    assert "epoch one\n" in text


def test_a_bar_that_may_wait_does_not_flicker(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with Work("decoding", 2, console=console, after=60) as running:
        running.advance(2)
    assert screen.getvalue() == ""
    with Work("decoding", 2, console=console, after=0.01):
        wait(lambda: "decoding" in screen.getvalue())


def test_results_go_to_standard_output_and_progress_never_does(capsys: pytest.CaptureFixture[str]) -> None:
    """The console of a verb writes to standard output; off a terminal its progress still goes to stderr."""
    with Work("training", 2, console=Console(), every=0.01):
        wait(lambda: "training 0/2" in capsys.readouterr().err)


def wait(until: Callable[[], bool]) -> None:
    for _ in range(3000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")
