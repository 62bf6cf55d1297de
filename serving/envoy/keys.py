"""Keys of callers, from a file of NAME:KEY lines.

Envoy compares keys as they are and knows no digests of them, so the file holds the keys themselves and must be kept
like a password: what others can read is refused.
"""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bundle.errors import OptionError
from bundle.files import open_regular

# Names the caller whose key was checked, never the key. Envoy removes what a caller sends under it.
KEY_NAME = "x-fieldmark-key-name"
SHORTEST, LONGEST = 24, 256  # characters of a key
LONGEST_NAME = 64  # characters of a name; the review console keeps as many, so no two keys become one reviewer
MAX_BYTES = 1 << 20
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
_KEY = re.compile(r"[!-~]+")
_OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO  # a group may read: so a cluster mounts its secrets
_MAKE_ONE = "Make a key: openssl rand -hex 24"


@dataclass(frozen=True, kw_only=True)
class Key:
    """One caller's key. Logs and limits go by the name; a name may have two keys while one replaces the other."""

    name: str
    secret: str = field(repr=False)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Every key of the file; raises OptionError, which never shows one. Empty lines and those with # are skipped."""
    try:
        with open_regular(path) as stream:
            mode, data = stat.S_IMODE(path.stat().st_mode), stream.read(MAX_BYTES + 1)
    except OSError as problem:
        raise OptionError(f"{path}: {(problem.strerror or 'cannot be read').lower()}") from None
    if mode & _OPEN_TO_OTHERS:
        raise OptionError(f"{path} holds keys, and others may read or change it", hint=f"chmod 600 {path}")
    if len(data) > MAX_BYTES:
        raise OptionError(f"{path} is larger than {MAX_BYTES} bytes", hint="One line NAME:KEY for each key.")
    keys = tuple(_parse(path, data.decode("ascii", errors="replace")))
    if not keys:
        raise OptionError(f"{path} holds no key", hint="One line NAME:KEY for each. " + _MAKE_ONE)
    return keys


def _parse(path: Path, text: str) -> Iterator[Key]:
    seen = set[str]()
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        name, separator, secret = line.partition(":")
        # What stands where a name should may be a key, so no sentence shows it.
        if not separator or not _NAME.fullmatch(name):
            raise OptionError(
                f"{path}:{number}: no line NAME:KEY",
                hint=f"A name has up to {LONGEST_NAME} letters, digits and . _ - in it.",
            )
        if not SHORTEST <= len(secret) <= LONGEST or not _KEY.fullmatch(secret):
            raise OptionError(
                f"{path}:{number}: the key is not {SHORTEST} to {LONGEST} visible ASCII characters",
                hint=_MAKE_ONE,
            )
        if secret in seen:
            raise OptionError(f"{path}:{number}: this key stands there twice", hint=_MAKE_ONE)
        seen.add(secret)
        yield Key(name=name, secret=secret)
