"""JSON that says one thing to every reader: one text for a value, and none that two readers could take differently."""

import json
import math
from typing import Any

MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 32


def canonical_json(plain: Any) -> str:
    """Sorted keys, no spaces, UTF-8, a newline at the end: one text for one value."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def read_json(text: str) -> Any:
    """JSON that every reader understands alike: no key twice, no number that is not finite or beyond 64 bits, not too
    deep; raises ValueError or RecursionError.
    """
    document = json.loads(
        text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_float
    )
    _check_depth(document)
    return document


def _check_depth(document: Any) -> None:
    """Documents that one reader can follow and another cannot are none."""
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _integer(text: str) -> int:
    number = int(text) if len(text) < 32 else MAX_INTEGER + 1
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"the number {text[:32]} does not fit in 64 bits")
    return number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:32]} is not finite")
    return number
