"""Items that no source has told of."""

from typing import Any

from review.store.database import Database
from review.store.item import Item
from review.store.queue import Filter


def make_item(number: int, **changes: Any) -> Item:
    """A flagged image, the more suspicious the smaller its number."""
    fields: dict[str, Any] = {
        "key": f"key-{number}",
        "image": f"{number}.png",
        "received": "2026-11-24T06:00:00.000+00:00",
        "label": "Dusky Lark",
        "probability": 0.9,
        "score": 1000.0 - number,
        "p_value": min(1.0, number / 100_000),
        "alpha": 0.05,
        "reason": "flagged",
        "drawn": True,
        "origin": "shop",
        "network": "full",
        "bundle_id": "b",
        "layers": (1.0, 2.0),
    }
    return Item(**fields | changes)


def make_items(count: int, **changes: Any) -> list[Item]:
    return [make_item(number, **changes) for number in range(1, count + 1)]


def members(database: Database, wanted: Filter) -> list[int]:
    """The numbers of all items that are wanted, most suspicious first."""
    condition, values = wanted.where()
    with database.reading() as connection:
        rows = connection.execute(f"SELECT id FROM items WHERE {condition} ORDER BY p_value, calm, id", values)
        return [row["id"] for row in rows]
