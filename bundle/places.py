"""Addresses of files, a path of this machine or a URL of an object store, and the clients that reach the stores.

What a store's client logs is not shown: it logs warnings of tries that it repeats, and tracebacks of errors that it
raises as well.
"""

import functools
import logging
import os
import re
import threading
from dataclasses import dataclass
from typing import Any

from bundle.errors import MissingExtra

CONNECTIONS = 100  # to S3 at a time, as the clients of the other stores have
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# fsspec's other names of the same places.
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "local": "file"}
# gcsfs reads it when it is imported: it would ask another API, with rights of its own, what kind of bucket each is.
_ONE_API = ("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
_opening = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object store: the extra that brings its client, the variables in which that looks for credentials, and
    the names it logs under."""

    extra: str
    variables: str
    loggers: tuple[str, ...]


KINDS = {
    "s3": Kind(
        extra="s3",
        variables="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL",
        loggers=("s3fs", "botocore"),
    ),
    "gs": Kind(
        extra="gs",
        variables="GOOGLE_APPLICATION_CREDENTIALS",
        loggers=("gcsfs", "google"),
    ),
    "az": Kind(
        extra="az",
        variables="AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_CONNECTION_STRING",
        loggers=("adlfs", "azure"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds to be connected within, and to wait for a store that says nothing."""

    connect: float
    read: float


def scheme_of(text: str) -> str:
    """The scheme of a URL, one for each kind of store, however it is written; empty for a path."""
    found = _URL.match(text)
    scheme = found.group(1).lower() if found else ""
    return _ALIASES.get(scheme, scheme)


def below(url: str) -> str:
    """What a URL names in its store: all behind `://`."""
    return url.partition("://")[2]


def store_url(url: str) -> str:
    """A URL as its store's client takes it: in the one scheme of its kind."""
    return f"{scheme_of(url)}://{below(url)}"


def local_path(text: str) -> str | None:
    """The path that a plain path or a file:// URL means on this machine; None for an object store's."""
    scheme = scheme_of(text)
    if scheme == "file":
        return below(text) or "/"
    return None if scheme else text


def connect(url: str, patience: Patience) -> tuple[Any, str]:
    """fsspec's file system of a URL, opened anew, and the place in it; nothing is asked yet.

    Raises MissingExtra, or what fsspec raises on a URL that it does not like.
    """
    scheme = scheme_of(url)
    kind = KINDS.get(scheme)
    for name in kind.loggers if kind else ():
        if not (logger := logging.getLogger(name)).handlers:
            logger.addHandler(logging.NullHandler())
    try:
        import fsspec

        # Else a listing could be an old one, and the file system that of an earlier opening, with its address and keys.
        anew = {"use_listings_cache": False, "skip_instance_cache": True}
        files, root = fsspec.url_to_fs(store_url(url), **anew, **_options(scheme, patience))
    except ImportError as problem:
        raise MissingExtra.named(kind.extra if kind else "s3", f"{scheme}://", problem) from None
    return files, str(root)


def file_system(scheme: str, patience: Patience) -> Any:
    """fsspec's file system of a scheme, the same one for as long as the environment of this process is the same."""
    environment = frozenset(os.environ.items() - {_ONE_API})  # which opening a first one of Google's sets
    with _opening:  # else threads that come first together would each open one, with connections of its own
        return _kept(scheme, patience, os.getpid(), environment)


@functools.lru_cache(maxsize=8)
def _kept(scheme: str, patience: Patience, process: int, environment: frozenset[tuple[str, str]]) -> Any:
    return connect(f"{scheme}://", patience)[0]


def google_emulator() -> str:
    """The address of an emulator of Google's store; empty where there is none, as gcsfs sees it."""
    address = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if not address or address == "default":
        return ""
    return address if "://" in address else f"http://{address}"


def _options(scheme: str, patience: Patience) -> dict[str, Any]:
    """What the client of a store is told of patience, each in its own words."""
    if scheme == "s3":
        seconds = {"connect_timeout": patience.connect, "read_timeout": patience.read}
        return {"config_kwargs": seconds | {"retries": {"max_attempts": 2}, "max_pool_connections": CONNECTIONS}}
    if scheme == "gs":
        import aiohttp

        os.environ.setdefault(*_ONE_API)
        within = aiohttp.ClientTimeout(sock_connect=patience.connect, sock_read=patience.read)
        nobody = {"token": "anon"} if google_emulator() else {}  # an emulator asks for no rights
        return {"requests_timeout": within, **nobody}
    if scheme == "az":
        return {"connection_timeout": patience.connect, "read_timeout": patience.read}
    return {}
