"""Where a run stands, and how it is resumed: state.pt, written after every epoch.

A process may be killed at any point. Files are replaced whole, so what is found is the state after the last epoch that
was complete, and all random draws depend on the epoch alone: a resumed run ends with the weights of one that was never
stopped. Killed between best.pt and state.pt, it repeats the epoch and writes the same best.pt once more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.errors import CheckpointError, first_line
from training.config import TrainingConfig
from training.data import Dataset
from training.hardening import Hardening
from training.learner import Learner
from training.outcome import Row
from training.run import Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STATE = "state.pt"
_UNFIT = (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError)  # a state of another network


@dataclass(kw_only=True)
class Standing:
    """What a run knows of itself, beside its weights."""

    history: list[Row] = field(default_factory=list)  # the figures of every epoch so far
    warmed: Row = field(default_factory=dict)  # validation at the end of the warm-up, by head
    best: float = -1.0  # sum of shares of the epoch that is kept; below 0: none yet

    @property
    def done(self) -> int:
        """Epochs so far."""
        return len(self.history)


class Checkpoint:
    """The whole state of one run."""

    def __init__(self, run: Run, learner: Learner, hardening: Hardening, standing: Standing) -> None:
        self.run, self.learner, self.hardening, self.standing = run, learner, hardening, standing

    def save(self) -> None:
        """Make this the point from which the run goes on."""
        learner, standing = self.learner, self.standing
        state = {
            "epoch": standing.done,
            "learner": learner.loss.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "history": standing.history,
            "warmed": standing.warmed,
            "best": standing.best,
            "caution": self.hardening.caution,
        }
        if learner.average is not None:
            state["average"] = learner.average.state_dict()
        write_together(self.run, learner.fabric, STATE, state)

    def resume(self, config: TrainingConfig, dataset: Dataset) -> bool:
        """Go on from the last save; false if there is none. Raises CheckpointError where it is of another run."""
        if not (self.run.path / STATE).is_file():
            return False
        self.run.check_settings(config)
        if self.run.read_record().dataset.digest != dataset.digest:
            raise CheckpointError(
                f"{self.run.path} was trained on other data than {dataset.root} now holds",
                hint="Restore the dataset, or start a new run with another --out.",
            )
        state, learner, standing = self.run.read_state(STATE), self.learner, self.standing
        with of_this_run(self.run.path / STATE, hint="Start anew with --force or another --out."):
            learner.loss.load_state_dict(state["learner"])
            learner.optimizer.load_state_dict(state["optimizer"])
            if learner.average is not None:
                learner.average.load_state_dict(state["average"])
            standing.history, standing.best = list(state["history"]), float(state["best"])
            standing.warmed = dict(state["warmed"])
            self.hardening.caution = float(state["caution"])
        return True


def write_together(run: Run, fabric: "Fabric", name: str, state: dict[str, Any]) -> None:
    """One process writes; the others go on when the file is there."""
    if fabric.global_rank == 0:
        run.write_state(name, state)
    fabric.barrier()


@contextmanager
def of_this_run(path: Path, *, hint: str = "") -> Iterator[None]:
    """Turns what goes wrong while a state is loaded that does not fit into a CheckpointError."""
    try:
        yield
    except _UNFIT as problem:
        raise CheckpointError(f"{path} is not of this run ({first_line(problem)})", hint=hint) from None
