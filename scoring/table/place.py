"""A folder that a job reads and writes, on this machine or in a bucket, whose every failure is one sentence.

bundle/places.py knows what an address means and opens the clients; what a job does there, and says, is here.

A name is a path below the place, with slashes. Whatever is written is there whole or not at all: a local file takes its
name when it is on the disk, and an object store shows an object only when all of it has come.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bundle.errors import InputError, MissingExtra, OptionError, ScoringError, first_line
from bundle.files import atomic_file
from bundle.places import KINDS, Patience, below, file_system, local_path, scheme_of, store_url
from scoring.local.jobs import disk_errors

PATIENCE = Patience(connect=10, read=30)
T = TypeVar("T")


def filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme; raises MissingExtra, or OptionError for one that nothing is known about."""
    if scheme not in KINDS:
        known = ", ".join(f"{name}://" for name in (*KINDS, "file"))
        raise OptionError(f"{scheme}:// is no place that is known here", hint=f"Known are {known} and paths.")
    try:
        return file_system(scheme, PATIENCE)
    except MissingExtra:
        raise
    except Exception as problem:  # a client that wants an account before it is asked for anything
        raise InputError(f"{scheme}:// cannot be used ({first_line(problem)[:200]})", hint=_looked_at(scheme)) from None


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
    return f"Credentials are looked for in {KINDS[scheme].variables}." if scheme in KINDS else "Check the rights."


class Place:
    """A folder at `url`: a path, or a URL of a bucket. Nothing is looked at before it is asked for."""

    def __init__(self, url: str) -> None:
        local = local_path(url)
        self.local = None if local is None else Path(os.path.abspath(local))
        self.scheme = "" if self.local is not None else scheme_of(url)
        self.url = store_url(url).rstrip("/") if self.local is None else os.fspath(self.local)
        if self.local is None:
            filesystem(self.scheme)  # whether it is known here at all
            self._root = below(self.url)
            if not self._root.strip("/"):
                raise OptionError(f"{url} names no bucket", hint=f"Give {self.scheme}://BUCKET/FOLDER.")

    @property
    def _store(self) -> Any:
        return filesystem(self.scheme)

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

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all it holds."""
        if self.local is not None:
            try:
                (self.local / name).unlink()
            except OSError:  # a folder, or nothing
                shutil.rmtree(self.local / name, ignore_errors=True)
        elif self.names(name):
            reached(self.url, lambda: self._store.rm(f"{self._root}/{name}", recursive=True))
