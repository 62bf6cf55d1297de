"""A decided item as one flat record, for tables; the same columns in CSV and in Parquet."""

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.errors import printable
from review.store.database import Database
from review.store.queue import Filter
from scoring.columns import arrow

TEXTS = ("key", "image", "received", "label", "reason", "origin", "network", "bundle_id", "layer", "sha256",
         "request_id", "decision", "reviewers", "decided", "note")  # fmt: skip
NUMBERS = ("probability", "score", "p_value", "alpha")
COLUMNS = (*TEXTS, *NUMBERS, "copies_of", "layers")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


def records(database: Database, wanted: Filter) -> Iterator[dict[str, Any]]:
    """A record for each wanted item, most suspicious first: `decision` is what all reviewers say, or `disputed`."""
    for item, decisions in decided(database, wanted):
        yield {
            **{name: item[name] for name in (*TEXTS[:11], *NUMBERS) if name != "image"},
            "image": printable(item["image"].decode("utf-8", "backslashreplace")),
            "decision": item["state"],
            "reviewers": "; ".join(f"{each['reviewer']}: {each['verdict']}" for each in decisions),
            "decided": max((each["at"] for each in decisions), default=""),
            "note": "; ".join(each["note"] for each in decisions if each["note"]),
            "copies_of": item["copies"],
            "layers": json.loads(item["layers"]),
        }


def decided(database: Database, wanted: Filter) -> Iterator[tuple[sqlite3.Row, list[sqlite3.Row]]]:
    """Wanted items, each with its standing decisions, from one state of the database."""
    condition, values = wanted.where()
    with database.reading() as connection:
        said: dict[int, list[sqlite3.Row]] = {}
        for row in connection.execute(
            "SELECT decisions.* FROM standing JOIN decisions ON decisions.id = standing.decision ORDER BY decisions.id"
        ):
            said.setdefault(row["item"], []).append(row)
        rows = connection.execute(
            f"SELECT * FROM items WHERE {condition} ORDER BY p_value, calm, id", values
        ).fetchall()
    for row in rows:
        yield row, said.get(row["id"], [])


def write_csv(path: Path, database: Database, wanted: Filter) -> None:
    """A line an item, in UTF-8. A cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(record[name]) for name in COLUMNS] for record in records(database, wanted))


def write_parquet(path: Path, database: Database, wanted: Filter) -> None:
    """A row an item."""
    pa = arrow()
    kinds = {
        **{name: pa.string() for name in TEXTS},
        **{name: pa.float64() for name in NUMBERS},
        "copies_of": pa.int64(),
        "layers": pa.list_(pa.field("element", pa.float32())),
    }
    schema = pa.schema([pa.field(name, kinds[name]) for name in COLUMNS])
    rows = list(records(database, wanted))
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _cell(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return "" if value is None else value
