"""Networks to transfer attacks from."""

from dataclasses import replace

import pytest

from bundle.errors import OptionError
from training.attacks.transfer import open_sources
from training.run import Run


def test_sources_must_take_the_same_images_and_know_the_same_classes(tiny_run, substitute):
    record, _ = Run(tiny_run).load_network()
    assert set(open_sources((f"twin={substitute.path}",), record)) == {"twin"}
    for change in ({"labels": ("a", "b", "c")}, {"config": replace(record.config, image_size=48)}):
        with pytest.raises(OptionError, match="takes other images or knows other classes"):
            open_sources((f"twin={substitute.path}",), replace(record, **change))
    with pytest.raises(OptionError, match="two sources are named 'twin'"):
        open_sources((f"twin={substitute.path}",) * 2, record)
    for text in ("twin", "=run", "a@b=run"):
        with pytest.raises(OptionError, match="is not NAME=RUN"):
            open_sources((text,), record)
