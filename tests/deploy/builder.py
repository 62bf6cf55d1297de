"""Builds the Dockerfile with buildah on this machine, over a Debian that debootstrap makes, and enters the result."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.manifests import ROOT

SUITE = "bookworm"  # the Debian of the Dockerfile's own base
PACKAGES = ("python3", "python3-venv", "libpython3.11")  # what that base has beside Debian
PYTHON = "3.11"
SECONDS = 600
ENTER = Path(__file__).with_name("enter.sh")


@dataclass(frozen=True, kw_only=True)
class Image:
    """A built image: its files, and what it says about how it is started (Docker's own names)."""

    root: Path
    config: dict[str, Any] = field(repr=False)

    def start(self, command: Sequence[str] | None = None, *, tmpfs: str = "exec", **options: Any) -> Any:
        """Start it as `docker run --read-only --tmpfs /tmp:TMPFS IMAGE` would, or another command in it; a Popen."""
        command = [*self.config["Entrypoint"], *self.config["Cmd"]] if command is None else command
        entered = ["env", "-i", *self.config["Env"], "sh", "-c", 'cd "$0" && exec "$@"', self.config["WorkingDir"]]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        words = [*spaces, "sh", str(ENTER), str(self.root), self.config["User"], tmpfs, *entered, *command]
        return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Start another command in it and wait for its end."""
        with self.start(command, **options) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Everything lies in `folder`, storage and all: who removes it has removed everything. `prepare` comes first."""

    folder: Path

    def prepare(self) -> None:
        """Make the Debian, of this machine's mirror, and fetch the wheels."""
        self._make_base()
        self._fetch_wheels()

    def build(self, target: str, *, bundle: Path) -> Image:
        """Build a target with a bundle baked in. Both stand on the Debian: the gpu image has no Triton then."""
        arguments = [f"{base}=localhost/python" for base in ("PYTHON_IMAGE", "TRITON_IMAGE")]
        arguments.append(f"RUNTIME={target}")
        # pip is set up by a secret, as for whoever has a mirror: here by a folder of wheels.
        pip = self.folder / "pip.conf"
        pip.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        tag = f"localhost/{target}"
        self._buildah(
            *("build", "--isolation", "chroot", "--format", "docker", "--target", "baked", "--tag", tag),
            *(f"--build-arg={each}" for each in arguments),
            *(f"--secret=id=pip,src={pip}", f"--volume={self.folder / 'wheels'}:/wheels:ro"),
            *(f"--build-context=bundle={bundle}", str(ROOT)),
        )
        container = self._buildah("from", tag)
        described = json.loads(self._buildah("inspect", "--type", "image", tag))
        return Image(root=Path(self._buildah("mount", container)), config=described["Docker"]["config"])

    def _make_base(self) -> None:
        base = self.folder / "base"
        include = f"--include={','.join(PACKAGES)}"
        _run(["debootstrap", "--variant=minbase", include, SUITE, base, mirror()])
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(base), "/")
        self._buildah("commit", "--quiet", "--rm", container, "localhost/python")

    def _fetch_wheels(self) -> None:
        """By this machine's pip, as it is set up here; the hashes are looked at again inside."""
        flags = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={PYTHON}"]
        for lock in ("server.lock", "gateway.lock"):
            into = ["--requirement", ROOT / "requirements" / lock, "--dest", self.folder / "wheels"]
            _run([sys.executable, "-m", "pip", "download", *flags, *into])

    def _buildah(self, *arguments: str) -> str:
        storage = ["--storage-driver", "vfs", "--root", self.folder / "storage", "--runroot", self.folder / "run"]
        return _run(["buildah", *storage, *arguments]).strip()


def mirror() -> str:
    """Where this machine's apt has that Debian from; empty if nowhere."""
    lines = _run(["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)"]).splitlines()
    found = [line.split(" ", 2)[2] for line in lines if line.startswith(f"{SUITE} main ")]
    return found[0] if found else ""


def missing(tools: Iterable[str]) -> list[str]:
    """Those of the programs that this machine lacks, and the rights of root."""
    from shutil import which

    return [each for each in tools if which(each) is None] + ([] if os.geteuid() == 0 else ["root"])


def _run(command: Sequence[Any]) -> str:
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))}: {run.stdout[-2000:]}\n{run.stderr[-4000:]}")
    return run.stdout
