"""The state of a scoring job, in `_fieldmark.json`: what it is pinned to, what is finished, and who may write now."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from bundle.errors import ScoringError
from bundle.files import full_disk, lock_for_this_process, write_text
from bundle.records import from_plain, to_plain

STATE = "_fieldmark.json"
LOCK = ".fieldmark.lock"
FORMAT = 2
ANOTHER = "Use another --out, or pass --restart to throw away what is there and score everything again."
_WORDS = {
    "source": "SOURCE",
    "source_at": "SOURCE's place",
    "bundle_id": "bundle",
    "network": "network",
    "alpha": "alpha",
    "shard_rows": "number of rows a shard",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a score folder is pinned to. `source` is as given; `source_at` is where that is, from the root."""

    source: str
    source_at: str
    bundle_id: str
    network: str
    alpha: float
    shard_rows: int


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard: the number in its file's name, the file's SHA-256, and what its rows are.

    `first` is the path of its first file; `paths` and `stamps` are the SHA-256 of its files' paths, and of their sizes
    and times of change.
    """

    number: int
    sha256: str
    rows: int
    errors: int
    flagged: int
    first: str
    paths: str
    stamps: str


@dataclass(frozen=True, kw_only=True)
class State:
    """The state file. The totals are set when the job is complete."""

    format: int
    version: str
    job: Job
    shards: tuple[ShardRecord, ...] = ()
    complete: bool = False
    rows: int | None = None
    errors: int | None = None
    flagged: int | None = None

    def total(self, what: str) -> int:
        """Sum of `rows`, `errors` or `flagged` over the finished shards."""
        return sum(getattr(record, what) for record in self.shards)

    def safe_in(self, out: Path) -> str:
        """What is finished, as a half sentence."""
        count = len(self.shards)
        return f"{self.total('rows'):,} files in {count:,} shard{'s' * (count != 1)} are safe in {out}"


def read_state(out: Path) -> State:
    """The state of a score folder; raises ScoringError when there is none, or it cannot be understood."""
    path = out / STATE
    try:
        plain = json.loads(path.read_text("utf-8"))
        found = plain.get("format") if isinstance(plain, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise ScoringError(
                f"{out} was scored by another version of fieldmark: its format is {found}, and this one reads {FORMAT}",
                hint=ANOTHER,
            )
        state = from_plain(State, plain)
    except FileNotFoundError:
        raise ScoringError(
            f"{out} holds no scores", hint="Give the folder that 'fieldmark score --out' wrote."
        ) from None
    except (ValueError, RecursionError) as problem:
        raise ScoringError(f"{path} is damaged ({problem})", hint=ANOTHER) from None
    return state


def write_state(out: Path, state: State) -> None:
    """Replace the state file. It is ASCII, because a source's name may hold bytes that are not UTF-8."""
    path = out / STATE
    with disk_errors(path):
        write_text(path, json.dumps(to_plain(state), indent=1, ensure_ascii=True) + "\n")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk says while `path` is written into DiskFull or ScoringError."""
    try:
        with full_disk(path):
            yield
    except OSError as problem:
        raise ScoringError(
            f"cannot write {path} ({problem.strerror or problem})",
            hint="What was finished before is safe; run the same command again to continue, or use another --out.",
        ) from None


def refuse_other_job(path: Path, old: Job, new: Job) -> None:
    """Raise ScoringError when the folder at `path` is pinned to `old` and the run asks for `new`."""
    for field in fields(Job):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now:
            raise ScoringError(
                f"{path} holds scores of another job: its {_WORDS[field.name]} is {before!r}, and this run has {now!r}",
                hint=ANOTHER,
            )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Make the folder and hold its lock; raises ScoringError when another process holds it."""
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        stream = (path / LOCK).open("ab")
    with stream:
        busy = ScoringError(f"another process is scoring into {path}", hint="Wait until it ends, or use another --out.")
        with disk_errors(path):
            lock_for_this_process(stream.fileno(), busy)
        yield
