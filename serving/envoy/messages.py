"""Envoy's messages as they are written here: dictionaries that become JSON."""

from typing import Any

FILTERS = "envoy.extensions.filters.http"  # where the types of HTTP filters are


def seconds(value: float) -> str:
    """A duration as Envoy writes it, to the millisecond."""
    return f"{value:.3f}s"


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    """A message of one of Envoy's extensions."""
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def address(host: str, port: int) -> dict[str, Any]:
    """A place as Envoy writes it."""
    return {"socket_address": {"address": host, "port_value": port}}
