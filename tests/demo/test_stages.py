"""Stages run once, begin anew when what they were made from changes, and say when they were interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from rich.console import Console

from bundle.console import advise
from demo.stages import StageFailed, Stages, contents, fieldmark, side_by_side


@pytest.fixture
def run(tmp_path):
    product, calls = tmp_path / "product", []

    def run(key, *, fail=False):
        def action():
            calls.append(key)
            if fail:
                raise StageFailed("broken")
            product.write_text(key)

        stages = Stages(tmp_path, Console(quiet=True))
        stages.run("stage", key, product, action)
        return stages

    run.calls, run.product, run.folder = calls, product, tmp_path
    return run


def test_a_stage_is_reused_until_its_key_changes_or_its_product_is_gone(run):
    first = run("a")
    again = run("a")
    assert run.calls == ["a"]
    assert again.reused == ["stage"]
    assert again.seconds == first.seconds
    run("b")
    run.product.unlink()
    run("b")
    assert run.calls == ["a", "b", "b"]


def test_a_failed_stage_is_not_taken_for_done_and_is_known_as_interrupted(run):
    with pytest.raises(StageFailed):
        run("a", fail=True)
    assert Stages(run.folder, Console(quiet=True)).interrupted("stage", "a")
    assert not Stages(run.folder, Console(quiet=True)).interrupted("stage", "b")
    run("a")
    assert run.calls == ["a", "a"]
    assert not Stages(run.folder, Console(quiet=True)).interrupted("stage", "a")


def test_a_damaged_memory_means_everything_is_made_again(run):
    run("a")
    (run.folder / "stages.json").write_text("{ not json")
    run("a")
    assert run.calls == ["a", "a"]


def test_a_failing_verb_stops_the_demo_with_its_name(capfd):
    with pytest.raises(StageFailed, match="'fieldmark bundle' ended with exit code 1"):
        fieldmark("bundle", "verify", "nowhere")
    assert "there is no bundle at nowhere" in capfd.readouterr().err


def test_a_verb_of_the_demo_says_nothing_of_what_is_next(tmp_path, monkeypatch, capfd):
    """The demo goes on by itself."""
    advise(Console(), "fieldmark serve BUNDLE")
    assert capfd.readouterr().out == "next: fieldmark serve BUNDLE\n"
    verb = tmp_path / "python"
    verb.write_text('#!/bin/sh\necho "$FIELDMARK_NEXT"\n')
    verb.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(verb))
    fieldmark("export", "RUN")
    told = capfd.readouterr().out.strip()
    monkeypatch.setenv("FIELDMARK_NEXT", told)
    advise(Console(), "fieldmark serve BUNDLE")
    assert (told, capfd.readouterr().out) == ("no", "")


def test_a_dataset_that_changed_has_other_contents(tmp_path):
    data, out = tmp_path / "data", tmp_path / "data" / "out"
    (data / "a").mkdir(parents=True)
    out.mkdir()
    (data / "a" / "0.png").write_bytes(b"0")
    seen = [contents(data, without=out)]
    (out / "report.json").write_text("what the demo writes is no change")
    assert contents(data, without=out) == seen[0]
    (data / "a" / "1.png").write_bytes(b"1")
    seen.append(contents(data, without=out))
    os.utime(data / "a" / "1.png", (1, 1))
    seen.append(contents(data, without=out))
    (data / "a" / "1.png").write_bytes(b"12")
    os.utime(data / "a" / "1.png", (1, 1))
    seen.append(contents(data, without=out))
    (data / "a" / "1.png").rename(data / "a" / "2.png")
    seen.append(contents(data, without=out))
    (data / "a" / "2.png").unlink()
    assert len(set(seen)) == len(seen)
    assert contents(data, without=out) == seen[0]
    assert contents(tmp_path / "nowhere", without=out)


def test_works_side_by_side_are_all_done_and_share_the_processors(capfd, monkeypatch, tmp_path):
    verb = tmp_path / "python"
    verb.write_text('#!/bin/sh\necho "$4 $OMP_NUM_THREADS"\n')  # python -m fieldmark train 0
    verb.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(verb))
    for at_once in (1, 3):
        side_by_side(at_once, [partial(fieldmark, "train", str(each), threads=5) for each in range(7)])
        told = capfd.readouterr().out.split("\n")[:-1]
        assert sorted(told) == [f"{each} 5" for each in range(7)]
        assert at_once > 1 or told == sorted(told)


def test_the_first_work_that_fails_ends_those_that_have_not_begun():
    begun, beside = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 1:
            beside.wait(10)
            raise StageFailed("broken")
        beside.set()
        time.sleep(0.5)

    with pytest.raises(StageFailed, match="broken"):
        side_by_side(2, [partial(work, each) for each in range(20)])
    assert len(begun) < 5


def broken():
    """A work beside others that fails."""
    time.sleep(0.5)
    raise StageFailed("broken")


@pytest.mark.parametrize(("at_once", "beside"), [(1, ""), (2, ""), (2, "test_stages.broken, ")])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_demo_lets_the_verb_put_its_files_away(tmp_path, number, code, at_once, beside):
    make = f"partial(fieldmark, 'data', 'make', {str(tmp_path / 'birds')!r} + str(each), '--size', '128')"
    script = (
        "from functools import partial; from demo.stages import fieldmark, side_by_side; "
        f"from tests.demo import test_stages; works = [{beside}*({make} for each in range(3))]; "
        f"from fieldmark import guarded; guarded(lambda: side_by_side({at_once}, works))"
    )
    demo = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".birds*.tmp/*")) and time.monotonic() < deadline:  # it is at work in there
        time.sleep(0.05)
    time.sleep(1.0 if beside else 0.0)  # the other has failed by now, and is waited for
    if number == signal.SIGINT:
        os.killpg(demo.pid, number)  # as a terminal does: the demo and its verb both hear it
    else:
        demo.send_signal(number)
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == code, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
