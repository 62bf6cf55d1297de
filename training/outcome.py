"""What a run's own figures say against it: said after the epoch that shows it, at the end, and as a gate."""

from collections.abc import Sequence

EXPLODED = 10.0  # times the smallest loss so far, above it where that lies below zero, as separation makes it
SMALL = 0.1  # a loss near zero is no measure
SLACK = 0.02  # of validation images, by which a head may end below its warm-up
DIP = 0.5  # of what the warm-up reached; what is above after the first joint epochs comes back by itself
CHANCE = 0.01  # probability of doing as well by guessing

Row = dict[str, float]  # figures by name: of an epoch, or the shares of validation that heads get right


def exploded(history: Sequence[Row], joint_from: int) -> str | None:
    """Whether the loss of the last epoch is far above that of an earlier one under the same objective."""
    losses = [row["loss"] for row in history[joint_from:]]
    if len(losses) < 2:
        return None
    least = min(losses[:-1])
    if losses[-1] <= least + (EXPLODED - 1) * max(abs(least), SMALL):
        return None
    return (
        f"the loss rose from {least:.4g} to {losses[-1]:.4g}: lower the rates "
        "(--set learning_rate_heads=..., --set learning_rate_backbone=...), or bound the steps (--set clip=1)"
    )


def fallen(warmed: Row, now: Row, *, ended: bool) -> list[str]:
    """Heads whose validation accuracy is below that at the end of their warm-up; far below, as long as the run has not
    `ended`.
    """
    return [
        f"{head} got worse than its warm-up ({now[head]:.1%} of validation after {share:.1%}): the backbone learns too "
        "fast (--set learning_rate_backbone=...), the heads warmed up for too short a time, or what regularises them "
        "begins too early (--set regularise_from=0.5)"
        for head, share in warmed.items()
        if head in now and now[head] < (share - SLACK if ended else DIP * share)
    ]


def guessing(shares: Row, images: int, classes: int) -> list[str]:
    """Heads that answer no more of `images` rightly than guessing among `classes` would, by an exact binomial test."""
    from scipy.stats import binom

    found = []
    for head, share in shares.items():
        right = round(share * images)
        if images and binom.sf(right - 1, images, 1 / classes) > CHANCE:
            found.append(
                f"{head} answers {right} of {images} validation images rightly, no better than guessing among "
                f"{classes} classes"
            )
    return found
