"""A Delta table of scores: the rows of this bundle, newest version first looked at, those flagged and some others."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle import Bundle
from bundle.errors import MissingExtra, ReviewError, first_line
from review.sources.scores import COLUMNS, Images, kept
from review.store.item import Item
from scoring.rows import OK, arrow

MORE = ("network", "bundle_id")


class TableSource:
    """Tells of a table, and again when it has a new version. A row keeps the alpha of its bundle's network."""

    def __init__(self, given: str, bundle: Bundle, images: Path | None) -> None:
        self.given, self.bundle = given, bundle
        self.place = os.path.abspath(given)
        self.totals: dict[str, int] = {}
        self.notices: list[str] = []
        self._version: int | None = None
        self._images = Images(Path("/"), None, images)
        self._check(self._open())

    def news(self) -> Iterator[Item]:
        """Rows of every network of the bundle, if the table has changed since the last time."""
        table = self._open()
        if (version := int(table.version())) == self._version:
            return
        self._check(table)
        compute = arrow().compute
        rows = table.to_pyarrow_table(columns=[*COLUMNS, *MORE])
        own = compute.and_(compute.equal(rows["bundle_id"], self.bundle.bundle_id), compute.equal(rows["status"], OK))
        others = rows.num_rows - (compute.sum(compute.equal(rows["bundle_id"], self.bundle.bundle_id)).as_py() or 0)
        self.notices = [f"{others:,} rows are of other bundles and left out"] if others else []
        rows = rows.filter(own)
        self._version = version
        for network, info in self.bundle.manifest.networks.items():
            part = rows.filter(compute.equal(rows["network"], network))
            self.totals[network] = part.num_rows
            yield from kept(part, info.detector.alpha, network, self.bundle.bundle_id, self._images)

    def read(self, image: str, most: int) -> bytes:
        """The file's bytes as they are now."""
        return self._images.read(image, most)

    def _open(self) -> Any:
        try:
            from deltalake import DeltaTable
        except ImportError as problem:
            raise MissingExtra.named("scoring", "reviewing a Delta table", problem) from None
        try:
            return DeltaTable(self.given)
        except Exception as problem:  # its errors share no base class but Exception
            raise ReviewError(
                f"{self.given} cannot be read as a Delta table ({first_line(problem)[:300]})",
                hint="What was decided is safe. Bring it back, or name another.",
            ) from None

    def _check(self, table: Any) -> None:
        names = {field.name for field in table.schema().fields}
        if missing := {*COLUMNS, *MORE} - names:
            raise ReviewError(
                f"{self.given} has no column {min(missing)!r}", hint="Give a table that 'fieldmark score' wrote."
            )
        found = table.to_pyarrow_dataset().scanner(columns=["bundle_id"]).to_table()["bundle_id"].unique().to_pylist()
        if found and self.bundle.bundle_id not in found:
            raise ReviewError(
                f"{self.given} was scored with bundle {found[0][:12]}, and {self.bundle.path} is "
                f"{self.bundle.bundle_id[:12]}",
                hint="Give the bundle that scored it.",
            )
