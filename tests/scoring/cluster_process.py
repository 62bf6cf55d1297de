"""A Ray cluster of this machine for tests: two cores, its processes, and what kills them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RayProcess:
    """`address` is what a job connects to."""

    address: str
    raylet: int

    def workers(self) -> list[int]:
        """Processes in which a Worker of ours lives."""
        return [pid for pid in children(self.raylet) if b"ray::Worker" in title(pid)]


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# Starts a head with all its processes as children of this one, prints its address, and waits for its input to end.
_HEAD = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
node = Node(RayParams(num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, redirect_output=True,
    temp_dir=sys.argv[1], node_ip_address="127.0.0.1", dashboard_host="127.0.0.1", no_monitor=True),
    head=True, shutdown_at_exit=True, spawn_reaper=False)
print(node.address, flush=True)
sys.stdin.read()
"""
