"""Kill a scoring process at one chosen line after another, for real, and let the next one continue.

Run by tests as: python kill_points.py BUNDLE SOURCE FOLDER POINTS [SCORED]. Each attempt is a forked process that
scores SOURCE into a folder of its own, a copy of SCORED where that is given, and sends itself SIGKILL at the n-th line
of the code that touches the disk.
A second process then finishes the job. Prints one JSON list: for each attempt its line and whether the second one
finished; the caller compares the folders.
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
import scoring.local.jobs
import scoring.local.shards
from bundle import Bundle
from scoring.columns import arrow
from scoring.local.score import ScoreOptions, score_source
from serving.client.local import LocalInference

WATCHED = {str(module.__file__) for module in (bundle.files, scoring.local.jobs, scoring.local.shards)}
SKIPPED = {"to_table", "schema", "path_columns", "digest_of", "part_name", "<listcomp>", "<genexpr>", "total", "part"}


class Killer:
    """Counts lines that touch the disk; at line `fatal` the process is gone."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.lines = fatal, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in WATCHED or code.co_name in SKIPPED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.fatal:
                sys.stdout.write(f"{Path(code.co_filename).name}:{frame.f_lineno} ")
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def attempt(opened: Bundle, source: Path, out: Path, fatal: int) -> int:
    """Fork, score, and perhaps die; returns the exit status, or minus the signal."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    killer = Killer(fatal)
    sys.settrace(killer)
    score_source(source, LocalInference(opened, threads=1), out, ScoreOptions(shard_rows=4, batch=3, workers=1))
    sys.settrace(None)
    if fatal < 0:
        (out / "lines").write_text(str(killer.lines))
    os._exit(0)


def main() -> None:
    opened, source, folder, points = Bundle.open(Path(sys.argv[1])), *map(Path, sys.argv[2:4]), int(sys.argv[4])
    arrow()
    scored = Path(sys.argv[5]) if len(sys.argv) > 5 else None

    def begun(out: Path) -> Path:
        return out if scored is None else Path(shutil.copytree(scored, out))

    assert attempt(opened, source, begun(folder / "whole"), -1) == 0
    lines = int((folder / "whole" / "lines").read_text())
    results = []
    for fatal in sorted(random.Random(7).sample(range(1, lines + 1), points)):
        out = begun(folder / f"killed-{fatal}")
        killed = attempt(opened, source, out, fatal)
        results.append({"out": out.name, "killed": killed, "finished": attempt(opened, source, out, 0)})
    sys.stdout.write("\n" + json.dumps({"lines": lines, "attempts": results}) + "\n")


if __name__ == "__main__":
    main()
