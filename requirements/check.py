"""Do the locks still say what pyproject.toml asks for? Works offline; `make check` runs it, `make lock` repairs it.

A lock holds names, versions and hashes and nothing else: no address of any index, so that it installs from whatever
index or mirror the machine's pip is set up with.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
# lock -> the extras of pyproject.toml that it installs beside the base (None: not even that), and dependency groups
LOCKS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...]]] = {
    "dev.lock": (("dev",), ("editable",)),
    "gateway.lock": (("gateway", "envoy", "signing"), ()),
    "policy.lock": (None, ("policy",)),
    "server.lock": (("server", "gateway", "envoy", "signing"), ("editable",)),
}

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; [^\\]+)? \\")
_HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}(?: \\)?")


def problems(project: dict[str, Any], locks: dict[str, str]) -> Iterator[str]:
    """One sentence for everything that is wrong; `locks` maps a lock's name to its text."""
    for name, (extras, groups) in LOCKS.items():
        pins: dict[str, list[Version]] = {}
        bare = ""  # a pin whose first hash has not come yet
        for number, line in enumerate([*locks[name].splitlines(), ""], start=1):
            if bare and not _HASH.fullmatch(line):
                yield f"{name}:{number - 1}: {bare} has no hash"
            bare = ""
            if match := _PIN.fullmatch(line):
                bare = match["name"]
                pins.setdefault(canonicalize_name(match["name"]), []).append(Version(match["version"]))
            elif line and not _HASH.fullmatch(line):
                yield f"{name}:{number}: neither 'name==version' nor a sha256: {line.strip()!r}"
        for requirement in direct(project, extras, groups):
            versions = pins.get(canonicalize_name(requirement.name), [])
            if not versions:
                yield f"{name}: pyproject.toml asks for {requirement}, and the lock has no {requirement.name}"
            for version in versions:
                if not requirement.specifier.contains(version, prereleases=True):
                    yield f"{name}: pyproject.toml asks for {requirement}, and the lock has {version}"


def direct(project: dict[str, Any], extras: tuple[str, ...] | None, groups: tuple[str, ...]) -> list[Requirement]:
    """What the project itself asks for with these extras; extras that name further extras are followed."""
    table = project["project"]
    texts = [text for group in groups for text in project["dependency-groups"][group]]
    texts += [] if extras is None else table["dependencies"]
    waiting, seen = list(extras or ()), set[str]()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for text in table["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) == canonicalize_name(table["name"]):
                waiting.extend(requirement.extras)
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def main() -> None:
    """Print every problem and exit 1, or say that the locks agree."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    found = list(problems(project, {name: (HERE / name).read_text(encoding="utf-8") for name in LOCKS}))
    for problem in found:
        sys.stderr.write(f"{problem}\n")
    if found:
        sys.exit("The locks do not fit pyproject.toml. Run: make lock")
    sys.stdout.write(f"{len(LOCKS)} locks agree with pyproject.toml\n")


if __name__ == "__main__":
    main()
