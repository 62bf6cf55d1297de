"""Stages that run once: a stage whose inputs have not changed is reused, and its first duration stays in the report."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bundle.errors import FieldmarkError, Interrupted, Terminated
from bundle.files import write_text


class StageFailed(FieldmarkError):
    """A verb ended with an error, which it has printed itself."""


class Stages:
    """Remembers, in OUT/stages.json, what each stage was made from and how long it took."""

    def __init__(self, out: Path, console: Console) -> None:
        self.path, self.console = out / "stages.json", console
        try:
            self.done: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.done = {}
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []

    def run(self, name: str, key: str, product: Path, action: Callable[[], None]) -> None:
        """Run `action`, which makes `product`, unless it was made from the same `key` before."""
        known = self.done.get(name)
        if known is not None and known["key"] == key and product.exists():
            self.seconds[name] = known["seconds"]
            self.reused.append(name)
            self.console.rule(f"[dim]{name}: reused {escape(str(product))}[/]", align="left", style="dim")
            return
        self.console.rule(f"[bold]{name}[/]", align="left")
        self.done[f"{name} begun"] = {"key": key}
        self._save()
        with self.timed(name):
            action()
        del self.done[f"{name} begun"]
        self.done[name] = {"key": key, "seconds": self.seconds[name], "made": time.time()}
        self._save()

    def _save(self) -> None:
        write_text(self.path, json.dumps(self.done, indent=2) + "\n")

    def interrupted(self, name: str, key: str) -> bool:
        """Whether this stage was begun with this very key and did not end."""
        return self.done.get(f"{name} begun", {}).get("key") == key

    def stamp(self, name: str) -> float:
        """When a stage's product was made; part of the key of what is made from it."""
        stamp: float = self.done[name]["made"]
        return stamp

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a stage that always runs."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


def contents(data: Path, *, without: Path) -> str:
    """A digest over name, size and time of every file below a folder, or beside a manifest: a dataset that changed is
    trained on anew.
    """
    digest, left_out = hashlib.sha256(), without.resolve()
    folder = data.parent if data.is_file() else data
    for place, folders, files in os.walk(folder.resolve(), followlinks=False):
        folders[:] = sorted(name for name in folders if Path(place, name) != left_out)
        for name in sorted(files):
            path = Path(place, name)
            with contextlib.suppress(OSError):
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


_running: set[subprocess.Popen[bytes]] = set()


def fieldmark(*arguments: str | Path, threads: int | None = None) -> None:
    """Run one verb as a user would, output and all; with so many `threads`, where others run beside it."""
    command = [sys.executable, "-m", "fieldmark", *map(str, arguments)]
    shared = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=os.environ | {"FIELDMARK_NEXT": "no"} | shared)
    _running.add(process)
    try:
        code = process.wait()
    except (KeyboardInterrupt, Terminated) as stop:
        if isinstance(stop, Terminated):  # of Ctrl-C the terminal has told the verb too
            process.terminate()
        process.wait()
        raise Interrupted.by(stop, "stopped", hint="Run the same command again; finished stages are kept.") from None
    finally:
        _running.discard(process)
        if process.poll() is None:  # somebody stops us: let the verb put its temporary files away
            process.terminate()
            process.wait()
    if code:
        raise StageFailed(f"'fieldmark {arguments[0]}' ended with exit code {code}", hint="Its message stands above.")


def side_by_side(at_once: int, works: Sequence[Callable[[], None]]) -> None:
    """Do these, in their order, so many at once. The first that fails ends it when those beside it are done; who stops
    this stops the verbs that it runs.
    """
    if at_once == 1:
        for work in works:
            work()
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        try:
            for each in as_completed([pool.submit(work) for work in works]):
                each.result()
        except Exception:
            pool.shutdown(cancel_futures=True)  # here, where who stops this meanwhile still stops the verbs
            raise
    except (KeyboardInterrupt, Terminated) as stop:
        pool.shutdown(wait=False, cancel_futures=True)  # nothing begins when a verb below ends
        if isinstance(stop, Terminated):  # of Ctrl-C the terminal has told the verbs too
            for process in list(_running):
                process.terminate()
        raise Interrupted.by(stop, "stopped", hint="The same command again goes on.") from None
    finally:
        pool.shutdown(cancel_futures=True)
