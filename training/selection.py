"""Which epoch of a run is kept: the last of the best joint ones by validation alone. And the way back to it."""

from training.checkpoint import Standing, of_this_run, write_together
from training.hardening import Hardening
from training.learner import Learner
from training.outcome import Row
from training.run import Run

BEST = "best.pt"
NO_SHARES = ("loss", "seconds", "caution")  # of a row; the rest are shares of validation images


def shares_of(row: Row) -> Row:
    """By head, clean and, where the run trains on attacked images, under attack."""
    return {name: share for name, share in row.items() if name not in NO_SHARES}


class Selection:
    """Judges every epoch by its figures; the weights of the best so far are in best.pt."""

    def __init__(self, run: Run, learner: Learner, hardening: Hardening, standing: Standing, classes: int) -> None:
        self.run, self.learner, self.hardening, self.standing = run, learner, hardening, standing
        self.classes = classes

    def judge(self, row: Row) -> bool:
        """Take the next epoch's figures into the history, and keep its weights if none were better: the sum of shares
        counts. False if its robustness has collapsed (`training.hardening`).

        No warm-up epoch is kept, and none before the attacker is at full strength: those are robust to less.
        """
        standing, config = self.standing, self.hardening.config
        collapsed = standing.best >= 0 and self.hardening.collapsed(row, standing.history, self.classes)
        standing.history.append(row)
        done, score = standing.done, sum(shares_of(row).values())
        counts = done > config.warmup_epochs and self.hardening.whole(done / config.epochs)
        if counts and score >= standing.best and not collapsed:
            standing.best = score
            write_together(self.run, self.learner.fabric, BEST, self.learner.kept.state_dict())
        return not collapsed

    def return_to_best(self) -> None:
        """The response to a collapse: back to the best epoch's weights, and half the step from now on."""
        self.hardening.caution /= 2
        self.load_best()
        self.learner.begin_average()
        self.learner.optimizer.state.clear()  # moments that led into the collapse

    def load_best(self) -> None:
        """Give the network, not its average, the weights of the epoch that was kept."""
        state = self.run.read_state(BEST)
        with of_this_run(self.run.path / BEST):
            self.learner.network.load_state_dict(state)
