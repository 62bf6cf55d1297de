"""Which Fieldmark this is."""

import functools
import importlib.metadata


@functools.cache
def version() -> str:
    """Fieldmark's version, or `unknown` when it runs from a folder that was never installed."""
    try:
        return importlib.metadata.version("fieldmark")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
