"""Where files are: a folder of this machine, or of a bucket, through fsspec.

A name is a path below the place, with slashes. Whatever is written is there whole or not at all: a local file takes its
name when it is on the disk, and an object store shows an object only when all of it has come.
"""

import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bundle.errors import InputError, MissingExtra, OptionError, ScoringError, first_line
from bundle.files import atomic_file
from scoring.local.jobs import disk_errors

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# scheme -> the extra that brings it, and the variables that its credentials are looked for in
STORES: dict[str, tuple[str, str]] = {
    "s3": ("s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL"),
    "gs": ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("az", "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_CONNECTION_STRING"),
}
CONNECT_SECONDS, READ_SECONDS = 10, 30  # after which an object store counts as silent
T = TypeVar("T")


def scheme_of(text: str) -> str:
    """The scheme of a URL; empty for a path."""
    found = URL.match(text)
    return found.group(1).lower() if found else ""


def local_path(text: str) -> str | None:
    """The path that a plain path or a file:// URL means on this machine; None for an object store's."""
    scheme = scheme_of(text)
    if scheme == "file":
        return text[len("file://") :] or "/"
    return None if scheme else text


@functools.cache
def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme; raises MissingExtra, or OptionError for one that nothing is known about."""
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in (*STORES, "file"))
        raise OptionError(f"{scheme}:// is no place that is known here", hint=f"Known are {known} and paths.")
    try:
        import fsspec

        if scheme == "s3":  # no cache of listings: a job looks at what is there now
            patience = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
            return fsspec.filesystem(
                scheme, use_listings_cache=False, config_kwargs=patience | {"retries": {"max_attempts": 2}}
            )
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as problem:
        raise MissingExtra.named(STORES[scheme][0], f"{scheme}://", problem) from None


def reached(url: str, action: Callable[[], T], kind: type[InputError] | type[ScoringError] = ScoringError) -> T:
    """What `action` gives; whatever an object store answers instead is one sentence about `url`."""
    scheme = scheme_of(url)
    try:
        return action()
    except (InputError, ScoringError, MissingExtra):
        raise
    except FileNotFoundError:
        hint = "Check the name, and AWS_ENDPOINT_URL if it is set." if scheme == "s3" else "Check the name."
        raise kind(f"there is no bucket or prefix {url}", hint=hint) from None
    except PermissionError as problem:
        raise kind(f"{url} may not be read or written ({first_line(problem)[:200]})", hint=_looked_at(scheme)) from None
    except Exception as problem:  # each store's client has errors of its own, without a common base
        name, said = type(problem).__name__, first_line(problem)[:200]
        if "Credential" in name or "credentials" in said.lower():
            raise kind(f"there are no credentials for {url} ({said})", hint=_looked_at(scheme)) from None
        raise kind(
            f"{url} cannot be reached ({name}: {said})",
            hint="What was finished before is safe; run the same command again to continue.",
        ) from None


def _looked_at(scheme: str) -> str:
    return f"Credentials are looked for in {STORES[scheme][1]}." if scheme in STORES else "Check the rights."


class Place:
    """A folder at `url`: a path, or a URL of a bucket. Nothing is looked at before it is asked for."""

    def __init__(self, url: str) -> None:
        local = local_path(url)
        self.local = None if local is None else Path(os.path.abspath(local))
        self.url = url.rstrip("/") if self.local is None else os.fspath(self.local)
        if self.local is None:
            filesystem(scheme_of(url))  # whether it is known here at all
            self._root = self.url[len(scheme_of(url)) + 3 :]
            if not self._root.strip("/"):
                raise OptionError(f"{url} names no bucket", hint=f"Give {scheme_of(url)}://BUCKET/FOLDER.")

    @property
    def _store(self) -> Any:
        return filesystem(scheme_of(self.url))

    def child(self, name: str) -> "Place":
        """The folder `name` below this one."""
        return Place(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """A file's bytes; raises FileNotFoundError where there is none."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        data = reached(self.url, lambda: self._cat(name))
        if data is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        return data

    def _cat(self, name: str) -> bytes | None:
        try:
            data: bytes = self._store.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, over an older one too."""
        if self.local is None:
            reached(self.url, lambda: self._store.pipe_file(f"{self._root}/{name}", data))
            return
        with disk_errors(self.local / name), atomic_file(self.local / name) as temporary:
            temporary.write_bytes(data)

    def names(self, folder: str = "") -> list[str]:
        """What stands directly in a folder, sorted; nothing where there is no such folder. Temporary files are not."""
        if self.local is not None:
            target = self.local / folder
            return sorted(entry for entry in os.listdir(target) if entry[0] != ".") if target.is_dir() else []
        listed = reached(self.url, lambda: self._list(folder))
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in listed})

    def _list(self, folder: str) -> list[str]:
        try:
            listed: list[str] = self._store.ls(f"{self._root}/{folder}".rstrip("/"), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return listed

    def remove(self, folder: str) -> None:
        """Remove a folder with all it holds."""
        if self.local is not None:
            shutil.rmtree(self.local / folder, ignore_errors=True)
        elif self.names(folder):
            reached(self.url, lambda: self._store.rm(f"{self._root}/{folder}", recursive=True))
