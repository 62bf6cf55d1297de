"""Until when certificates hold: one that is over shuts the door to everybody."""

from pathlib import Path


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
