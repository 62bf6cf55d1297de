"""Until when certificates hold, for the metrics: one that is over shuts the door to everybody."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def note_expiry(metrics: Any, files: Iterable[Path]) -> None:
    """Have a gateway's metrics show when each certificate of the Envoy before it is over; of one name, the first end.

    A whole path would tell them apart, and tell of this machine.
    """
    ends: dict[str, float] = {}
    for file in files:
        if (seconds := expires(file)) is not None:
            ends[file.name] = min(seconds, ends.get(file.name, seconds))
    for name, seconds in ends.items():
        metrics.certificate_expires.labels(name).set(seconds)


def expires(file: Path) -> float | None:
    """Seconds of the epoch at which the first of a PEM file's certificates is over, of a whole chain.

    None, where they cannot be read: what starts Envoy says what is wrong with a file.
    """
    try:
        from cryptography import x509

        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (ImportError, OSError, ValueError):
        return None
    return min(each.not_valid_after_utc.timestamp() for each in found)
