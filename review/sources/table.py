"""A Delta table of scores: of the rows that hold, those flagged and some others; told again after another run."""

from collections.abc import Iterator
from pathlib import Path

from bundle import Bundle
from bundle.errors import FieldmarkError, ReviewError
from review.sources.scores import COLUMNS, DRAWN, ScoredFiles, kept
from review.sources.source import FOLDERS, Stamp
from review.store.item import Item
from scoring.columns import arrow
from scoring.table.current import Current, last_begun
from scoring.table.delta import ScoreTable
from scoring.table.place import Place
from scoring.table.runs import Begun


class TableSource:
    """Tells of a table whose last run was made with this bundle."""

    words, whole = FOLDERS, False

    def __init__(self, given: str, bundle: Bundle, images: Path | None) -> None:
        self.given, self.bundle = given, bundle
        self.place = Place(given).url
        self.totals: dict[str, int] = {}
        self.notices: list[str] = []
        self._run = self.tellings = 0
        self._files = ScoredFiles(self._last().source, images)

    def news(self) -> Iterator[Item]:
        """Every row that holds, if the table has had another run since the last time."""
        last = self._last()
        if last.number == self._run:
            return
        current = Current.read(self.given)
        self.totals, self.whole = {last.network: len(current.ids)}, len(current.ids) <= DRAWN
        found = [table for _, table in current.batches(COLUMNS)]
        yield from kept(arrow().concat_tables(found), current.begun, self._files)
        self._run = last.number
        self.tellings += 1

    def forget(self) -> None:
        """Tell of every row again."""
        self._run = 0

    def read(self, image: str, most: int, was: Stamp) -> bytes:
        """The file's bytes, if they are what was scored."""
        return self._files.read(image, most, was)

    def _last(self) -> Begun:
        """The last run; raises ReviewError for a table of another bundle, or that cannot be reached."""
        try:
            table = ScoreTable(Place(self.given))
            last = last_begun(table) if table.exists() else None
        except FieldmarkError as problem:
            raise ReviewError(problem.what, hint=problem.hint or "What was decided is safe. Bring it back.") from None
        if last is None:
            raise ReviewError(
                f"{self.place} is a table of something else", hint="Give one that 'fieldmark score' made."
            )
        if last.bundle_id != self.bundle.bundle_id:
            raise ReviewError(
                f"{self.place} was scored with bundle {last.bundle_id[:12]}, and {self.bundle.path} is "
                f"{self.bundle.bundle_id[:12]}",
                hint="Give the bundle that scored it.",
            )
        return last
