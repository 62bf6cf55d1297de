"""What an Envoy stands before: a gateway (`serving.envoy.gateway`), or a console (`serving.envoy.console`)."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What the door leads to: the filters that ask who somebody is and what he may, the routes, Envoy's cluster behind
    them, and what those read who are refused.
    """

    filters: list[dict[str, Any]] = field(repr=False)  # keys stand in them
    routes: dict[str, Any]
    cluster: dict[str, Any]
    replies: dict[str, Any]
