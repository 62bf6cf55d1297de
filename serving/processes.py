"""Processes of a server, as the kernel sees them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# Run by a fresh Python, which then becomes the server. 1 is PR_SET_PDEATHSIG: end when the parent does, however it
# ends. The parent may have died before that call, so look at it once. A `preexec_fn` would fork this process with all
# its gRPC threads instead.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(
    command: Sequence[str],
    *,
    environment: dict[str, str],
    folder: Path,
    lock: int | None = None,
    errors: int = subprocess.STDOUT,
) -> "subprocess.Popen[str]":
    """Start `command` as the leader of its own group, stdout (and stderr, but for `errors`) in one pipe.

    It ends with this thread, and inherits the descriptor `lock`. In a group of its own, a server is not reached by
    Ctrl-C at the terminal; whoever started it stops it in good order.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )


def end_group(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Ask the leader to end, wait at most `seconds`, then kill whatever is left of its group."""
    _signal(os.kill, process.pid, signal.SIGTERM)
    exits_within(process.pid, seconds)
    # Until the leader is waited for, its number cannot be given to strangers, so this hits only its own group.
    _signal(os.killpg, process.pid, signal.SIGKILL)
    process.wait()


def exited(child: int) -> bool:
    """Whether a child has ended, without reaping it: its number stays ours."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def ending(child: int) -> str:
    """How a child has ended, in words; empty while it lives. It is not reaped: its number stays ours."""
    try:
        found = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "it is gone"
    if found is None:
        return ""
    return f"exit code {found.si_status}" if found.si_code == os.CLD_EXITED else _killed(found.si_status)


def ending_of_other(pid: int) -> str:
    """How a process that its own parent has not reaped yet has ended, in words, as far as the kernel tells."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().split()[-1])
    except (OSError, ValueError):
        return "it is gone"
    return _killed(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"


def halted(pid: int) -> bool:
    """Whether a process lives and does not run, as after SIGSTOP."""
    return _state(pid)[0] == "T"


def exits_within(child: int, seconds: float) -> bool:
    """Whether a child ends in the next `seconds` seconds, without reaping it."""
    deadline = time.monotonic() + seconds
    while not (ended := exited(child)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return ended


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    everyone = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in everyone if alive(pid, leader)]


def alive(pid: int, leader: int) -> bool:
    """Whether `pid` lives, and belongs to the group of `leader` (numbers are given out again)."""
    state, found = _state(pid)
    return found == leader and state not in "ZX"


def command_of(pid: int) -> str:
    """A process's command line; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, for those that are still there."""
    for pid in pids:
        _signal(os.kill, pid, signal.SIGKILL)


def _state(pid: int) -> tuple[str, int]:
    """The kernel's letter for a process's state, and its group; X and 0 where there is none."""
    try:
        state, _, found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
        return state, int(found)
    except (OSError, ValueError):
        return "X", 0


def _killed(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {number}"


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)
