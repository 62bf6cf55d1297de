"""A Triton that is looked after: every network is asked for a real answer, a silent one is loaded anew alone.

| what happened | how it shows | what is done |
|---|---|---|
| a worker process died | the kernel says so | Triton loads that network anew; the other one goes on answering |
| a network answers nobody | no probe answered, no batch run for `patience` s | its workers are killed, then the same |
| loading it anew does not help | it does not answer within `RELOAD_SECONDS` | the whole server is replaced |
| tritonserver died | the kernel says so | the whole server is replaced, at the same ports |
| tritonserver hangs | it does not even say that it lives for `PATIENCE_SECONDS` | the same |

A busy network is no hung one: a probe that waits behind others counts as answered as long as batches are being run.
"""

import contextlib
import time

from bundle.errors import EndpointError, ServerError
from serving.client import TritonInference
from serving.probe import ask
from serving.processes import kill, stopped
from serving.server import TritonServer
from serving.triton_config import MAX_BATCH_SIZE
from serving.upkeep.keeper import PATIENCE_SECONDS, STEP_SECONDS, Stopped, Trouble

PROBE_SECONDS = 2.0  # for each probe
RELOAD_SECONDS = 20.0  # at least, for one network to answer again
SERVER = "tritonserver"


class TritonWatch:
    """Looks after a started TritonServer. It is a `Service`."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self._networks = tuple(server.bundle.manifest.networks)
        self._connection: TritonInference | None = None
        self._fastest: dict[str, float] = {}  # seconds of the fastest probe
        self._executed: dict[str, int] = {}  # batches, at the last look that needed to know
        self._heard: dict[str, float] = {}
        self._forget()

    def look(self) -> list[Trouble]:
        """The server's trouble, or that of its networks."""
        if cause := self.server.ended():
            return [Trouble(who=SERVER, cause=cause, mend=self._restart)]
        silent = []
        for network in self._networks:
            if not self.server.worker_ended(network) and self._answers(network):
                self._heard[network] = time.monotonic()
            else:
                silent.append(network)
        if silent and not self._lives():
            seconds = time.monotonic() - self._heard[SERVER]
            if seconds < PATIENCE_SECONDS:
                return []
            return [Trouble(who=SERVER, cause=f"no answer for {seconds:.0f} s", mend=self._restart)]
        self._heard[SERVER] = time.monotonic()
        return [trouble for network in silent if (trouble := self._trouble(network))]

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _trouble(self, network: str) -> Trouble | None:
        who = f"network {network!r}"
        if cause := self.server.worker_ended(network):
            cause = f"its worker process: {cause}"
            return Trouble(who=who, cause=cause, mend=lambda stopped: self._reload(network, set(), stopped))
        with contextlib.suppress(EndpointError):  # of a server that has ended meanwhile, the next look tells
            executed = self._ask().executed(network)
            if executed != self._executed.get(network):  # it has answered somebody
                self._executed[network], self._heard[network] = executed, time.monotonic()
        seconds = time.monotonic() - self._heard[network]
        if seconds < patience(self._fastest.get(network, 0.0)):
            return None
        workers = self.server.workers(network)
        halted = {pid for pid in workers if stopped(pid)}
        cause = f"no answer for {seconds:.0f} s" + (" (its worker process is stopped)" if halted else "")
        return Trouble(who=who, cause=cause, mend=lambda stopped: self._reload(network, halted or workers, stopped))

    def _answers(self, network: str) -> bool:
        try:
            seconds = ask(self._ask(), network)
        except EndpointError:
            self.close()  # a new connection sees a new server at once
            return False
        self._fastest[network] = min(seconds, self._fastest.get(network, seconds))
        return True

    def _lives(self) -> bool:
        try:
            self._ask()
        except EndpointError:
            return False
        return True

    def _ask(self) -> TritonInference:
        if self._connection is None:
            self._connection = TritonInference.connect(
                self.server.grpc_url, timeout=PROBE_SECONDS, expect_bundle=self.server.bundle.bundle_id
            )
        return self._connection

    def _reload(self, network: str, hung: set[int], stopped: Stopped) -> str:
        """Have Triton load one network anew, and wait for a new worker's answer; else replace the whole server."""
        before = self.server.workers(network)
        kill(hung)
        self.server.reload(network)
        deadline = time.monotonic() + max(RELOAD_SECONDS, patience(self._fastest.get(network, 0.0)))
        while not stopped() and not self.server.ended() and time.monotonic() < deadline:
            if self.server.workers(network) - before and self._answers(network):
                self.server.note_workers()
                self._heard[network] = time.monotonic()
                return ""
            time.sleep(STEP_SECONDS)
        return "" if stopped() else self._restart(stopped)

    def _restart(self, stopped: Stopped) -> str:
        """Replace the whole server, at the same ports. There is nothing to wait for: it is dead, or does not listen."""
        self.close()
        self.server.stop(0)
        try:
            self.server.start(cancelled=stopped)
        except EndpointError as problem:
            raise ServerError(problem.what) from None
        self._forget()
        return "the whole server, with every network"

    def _forget(self) -> None:
        """Everything has just answered."""
        self._executed.clear()
        self._heard = dict.fromkeys((SERVER, *self._networks), time.monotonic())


def patience(seconds: float) -> float:
    """How long a network may answer nobody, if it takes `seconds` for one image: twice as long as its largest batch."""
    return max(PATIENCE_SECONDS, 2 * MAX_BATCH_SIZE * seconds)
