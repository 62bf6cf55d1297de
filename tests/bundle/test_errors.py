"""Errors that users see: what a missing package is called, and what is none."""

import pytest

from bundle.errors import MissingExtra, Terminated


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
