"""Kill a writer of a model repository before each change that it makes on the disk, and let the next one finish.

Run by test_repository.py as: python repository_kill_points.py FOLDER OLD NEW NEXT. Each attempt has a copy of a
repository that holds OLD and NEW and serves NEW; a forked process rolls NEXT out with keep=1 and sends itself SIGKILL
just before its n-th change (a file opened to be written, a name made, exchanged or removed); a second one then does the
same to its end. Copies of what the first and the second left stay as killed-N and finished-N. Prints one JSON list of
(n, the change, exit status of both).
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from bundle import Bundle
from serving.triton.rollout import roll_out

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"}


class Killer:
    """Counts changes below `folder`; before change `fatal` the process is gone."""

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.changes, self.last = str(folder), fatal, 0, ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        # shutil.rmtree names what it removes by an open folder; nothing else here does
        if event not in ("os.remove", "os.rmdir") and not str(arguments[0]).startswith(self.folder):
            return
        self.changes += 1
        if self.changes == self.fatal:
            os.write(1, f"{event} {Path(str(arguments[0])).name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(out: Path, opened: Bundle, fatal: int) -> tuple[int, str]:
    """Fork, roll out, and perhaps die; returns the exit status, or minus the signal, and what was said of it."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as stream:
            said = stream.read().strip()
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said
    os.dup2(writing, 1)
    killer = Killer(out, fatal)
    sys.addaudithook(killer)
    roll_out(out, opened, {}, keep=1)
    os.write(1, str(killer.changes).encode())
    os._exit(0)


def main() -> None:
    folder = Path(sys.argv[1])
    os.fsync = lambda _: None  # a power cut needs it; of a killed process the kernel keeps what it wrote
    old, new, following = (Bundle.open(Path(path)) for path in sys.argv[2:])
    for opened in (old, new):  # which loads every library before the forks, too
        roll_out(folder / "before", opened, {"cores": 2})
    shutil.copytree(folder / "before", folder / "whole")
    status, said = attempt(folder / "whole", following, 0)
    assert status == 0
    results = []
    for fatal in range(1, int(said) + 1):
        work = folder / "work"
        shutil.copytree(folder / "before", work)
        killed, change = attempt(work, following, fatal)
        shutil.copytree(work, folder / f"killed-{fatal}")
        finished, _ = attempt(work, following, 0)
        work.rename(folder / f"finished-{fatal}")
        results.append([fatal, change, killed, finished])
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
