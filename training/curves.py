"""A run's curves as TensorBoard shows them: `tensorboard --logdir RUN`."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from bundle.errors import MissingExtra

FOLDER = "tensorboard"


class Curves(Protocol):
    """Where an epoch's figures go."""

    def add_scalar(self, name: str, value: float, step: int) -> Any:
        """One point of the curve `name` at epoch `step`."""


class Silent:
    """No curves: for all processes but the first."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Nothing."""


@contextmanager
def curves(run: Path, *, done: int) -> Iterator[Curves]:
    """A writer below the run's folder; points after epoch `done`, which a resumed run repeats, are purged."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise MissingExtra.named("training", "fieldmark train", problem) from None
    with closing(SummaryWriter(run / FOLDER, purge_step=done + 1)) as writer:
        yield writer
