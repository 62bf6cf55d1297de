"""What the decisions say: how often two reviewers agree, and how often a flag was worth it."""

from collections import Counter
from dataclasses import dataclass

from bundle.false_alarms import wilson
from review.store.database import Database
from review.store.decisions import ATTACK, CLEAN, FAULT, VERDICTS
from serving.quarantine.entry import FLAGGED


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two reviewers on the `both` items that both have decided; `table` counts (first's verdict, second's verdict).

    `kappa` is Cohen's (1960): agreement beyond chance, 1 is all of it; None where chance alone would agree.
    """

    first: str
    second: str
    both: int
    agreed: int
    kappa: float | None
    table: dict[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Of a day's flagged images that were decided, how many were attacks; `interval` is Wilson's, of 95 %."""

    day: str
    flagged: int
    decided: int
    attacks: int

    @property
    def share(self) -> float:
        """Attacks among the decided."""
        return self.attacks / self.decided if self.decided else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share."""
        return wilson(self.attacks, self.decided)


def agreements(database: Database) -> list[Agreement]:
    """Every two reviewers who have looked at the same items, those with the most in common first."""
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT a.reviewer, b.reviewer, x.verdict, y.verdict, count(*) FROM standing a JOIN standing b"
            " ON a.item = b.item AND a.reviewer < b.reviewer JOIN decisions x ON x.id = a.decision"
            " JOIN decisions y ON y.id = b.decision GROUP BY 1, 2, 3, 4"
        ).fetchall()
    tables: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for first, second, one, other, count in map(tuple, rows):
        tables.setdefault((first, second), {})[one, other] = count
    found = [_agreement(*pair, table) for pair, table in tables.items()]
    return sorted(found, key=lambda each: (-each.both, each.first, each.second))


def precisions(database: Database) -> list[Precision]:
    """Day by day. Decided is what everybody calls an attack, clean or a camera fault; unsure is not."""
    decided = f"state IN ('{ATTACK}', '{CLEAN}', '{FAULT}')"
    with database.reading() as connection:
        rows = connection.execute(
            f"SELECT day, count(*) AS flagged, sum({decided}) AS decided, sum(state = '{ATTACK}') AS attacks FROM items"
            " WHERE reason = ? GROUP BY day ORDER BY day",
            [FLAGGED],
        ).fetchall()
    return [Precision(**dict(row)) for row in rows]


def _agreement(first: str, second: str, table: dict[tuple[str, str], int]) -> Agreement:
    both = sum(table.values())
    agreed = sum(count for (one, other), count in table.items() if one == other)
    ones, others = Counter[str](), Counter[str]()
    for (one, other), count in table.items():
        ones[one] += count
        others[other] += count
    chance = sum(ones[verdict] * others[verdict] for verdict in VERDICTS) / both**2
    kappa = None if chance == 1 else (agreed / both - chance) / (1 - chance)
    return Agreement(first=first, second=second, both=both, agreed=agreed, kappa=kappa, table=table)
