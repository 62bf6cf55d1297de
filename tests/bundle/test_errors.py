"""Errors that users see: what a missing package is called, and what is none."""

import pytest

import fieldmark
from bundle.errors import Interrupted, MissingExtra, Terminated


@pytest.mark.parametrize("stop", [Terminated(143), KeyboardInterrupt()])
def test_a_signal_in_the_middle_of_an_import_is_no_missing_package(stop: BaseException) -> None:
    """A compiled library tells what a handler raised as an ImportError."""
    with pytest.raises(type(stop)) as caught:
        try:
            raise ImportError("initialization failed") from stop
        except ImportError as problem:
            raise MissingExtra.named("scoring", "inference", problem) from None
    assert caught.value is stop


def test_a_missing_package_is_named_with_what_brings_it() -> None:
    problem = MissingExtra.named("scoring", "inference", ImportError("no", name="onnxruntime"))
    assert "inference needs the 'scoring' extra (onnxruntime is not installed)" in str(problem)


@pytest.mark.parametrize("name", ["training.curves_of_nobody", "bundle.nothing"])
def test_a_missing_piece_of_what_is_installed_is_brought_by_no_extra(name: str) -> None:
    problem = MissingExtra.named("training", "fieldmark train", ImportError("no", name=name))
    assert str(problem).startswith(f"fieldmark train: {name} is missing from what is installed")
    assert problem.hint == "Install it again."


@pytest.mark.parametrize("name", ["google.cloud_of_nobody", "matplotlib.figure_of_nobody"])
def test_a_piece_of_another_package_is_brought_by_the_extra(name: str) -> None:
    problem = MissingExtra.named("scoring", "gs://", ImportError("no", name=name))
    assert f"({name} is not installed)" in str(problem)


@pytest.mark.parametrize(("told", "advised"), [("no", False), ("", True)])
def test_how_to_go_on_is_said_once_by_who_was_asked(
    told: str, advised: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo has no --resume of its own, and says itself what to run again."""

    def stopped() -> None:
        raise Interrupted("stopped after 7 of 16 epochs", hint="The same command with --resume goes on.")

    monkeypatch.setenv("FIELDMARK_NEXT", told)
    with pytest.raises(SystemExit) as ended:
        fieldmark.guarded(stopped)
    assert ended.value.code == 130
    told_by_us = capsys.readouterr().err
    assert "stopped after 7 of 16 epochs" in told_by_us
    assert ("--resume" in told_by_us) == advised
