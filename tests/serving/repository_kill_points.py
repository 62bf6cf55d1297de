"""Kill a writer of a model repository at one chosen line after another, for real, and let the next one finish.

Run by test_repository.py as: python repository_kill_points.py FOLDER POINTS OLD NEW NEXT. Each attempt has a copy of a
repository that holds OLD and NEW and serves NEW; a forked process rolls NEXT out with keep=1 and sends itself SIGKILL
at the n-th line of the code that touches the disk; a second one then does the same to its end. Copies of what the first
and the second left stay as killed-N and finished-N. Prints one JSON list of (n, line, exit status of both).
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import bundle.files
import serving.repository
import serving.rollout
from bundle import Bundle
from serving.rollout import roll_out
from serving.triton_config import config_text

WATCHED = {str(module.__file__) for module in (bundle.files, serving.repository, serving.rollout)}


class Killer:
    """Counts lines; at line `fatal` the process is gone."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.lines = fatal, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.fatal:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                Path(os.environ["KILLED_AT"]).write_text(where)
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def attempt(out: Path, opened: Bundle, fatal: int) -> int:
    """Fork, roll out, and perhaps die; returns the exit status, or minus the signal."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    killer = Killer(fatal)
    sys.settrace(killer)
    roll_out(out, opened, {}, keep=1)
    sys.settrace(None)
    Path(os.environ["KILLED_AT"]).write_text(str(killer.lines))
    os._exit(0)


def main() -> None:
    folder, points = Path(sys.argv[1]), int(sys.argv[2])
    old, new, following = (Bundle.open(Path(path)) for path in sys.argv[3:])
    note = folder / "note"
    os.environ["KILLED_AT"] = str(note)
    for opened in (old, new):
        roll_out(folder / "before", opened, {"cores": 2})
    assert config_text  # imported, so that its libraries are loaded before the fork
    shutil.copytree(folder / "before", folder / "whole")
    assert attempt(folder / "whole", following, -1) == 0
    lines = int(note.read_text())
    results = []
    for fatal in sorted(random.Random(7).sample(range(1, lines + 1), min(points, lines))):
        work = folder / "work"  # one name for all, since a configuration may hold it
        shutil.copytree(folder / "before", work)
        killed = attempt(work, following, fatal)
        where = note.read_text()
        shutil.copytree(work, folder / f"killed-{fatal}")
        finished = attempt(work, following, 0)
        work.rename(folder / f"finished-{fatal}")
        results.append([fatal, where, killed, finished])
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
