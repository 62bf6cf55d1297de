"""Trainers on the tiny set, and a way to stop them in the middle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_trainer(tiny_birds: Path, tmp_path: Path) -> Callable[..., Any]:
    """`make_trainer(config)` is a run on `tiny_birds` that has yet to be trained. `every` 4 trains on each fourth
    image, for tests that do not mind what is learnt.
    """
    from rich.console import Console

    from training.data import open_dataset
    from training.fit import Trainer
    from training.parallel import Devices
    from training.run import Run

    def make(
        config: Any, path: Path | None = None, *, data: Path | None = None, every: int = 1, precision: str = "32-true"
    ) -> Trainer:
        dataset = open_dataset(data or tiny_birds, seed=config.seed)
        dataset = replace(dataset, parts={**dataset.parts, "train": dataset.parts["train"][::every]})
        devices = Devices(accelerator="cpu", precision=precision)
        return Trainer(Run(path or tmp_path / "run"), dataset, config, devices, Console(quiet=True))

    return make


@pytest.fixture
def stopping_before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`with stopping_before(2):` training dies when two epochs are done."""
    from training import fit

    class Stop(Exception):
        pass

    @contextmanager
    def stopping(last: int) -> Iterator[None]:
        def train_epoch(learner: Any, hardening: Any, feed: Any, epoch: int, advance: Any) -> Any:
            if epoch == last:
                raise Stop
            return whole(learner, hardening, feed, epoch, advance)

        whole = fit.train_epoch
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(fit, "train_epoch", train_epoch)
            yield

    return stopping
