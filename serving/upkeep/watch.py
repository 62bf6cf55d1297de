"""A Triton that is looked after: every network is asked for a real answer, a silent one is loaded anew alone.

| what happened | how it shows | what is done |
|---|---|---|
| a worker process died | the kernel says so | Triton loads that network anew; the other one goes on answering |
| a worker process is halted | the kernel says so for `PATIENCE_SECONDS` | it is killed, then the same |
| a network answers nobody | no probe answered, no batch run for `patience` s | its workers are killed, then the same |
| loading it anew does not help | it does not answer within `RELOAD_SECONDS` | the whole server is replaced |
| tritonserver died | the kernel says so | the whole server is replaced, at the same ports |
| tritonserver hangs | it does not even say that it lives for `PATIENCE_SECONDS` | the same |

A busy network is no hung one: while batches are being run, a probe that comes too late says nothing. And where others
(the gateway's prober, callers) get answers, a probe of its own is only made now and then: a large network is dear.
"""

import contextlib
import time

from bundle.errors import EndpointError, ServerError
from serving.client.remote import TritonInference
from serving.processes import kill
from serving.triton.config import MAX_BATCH_SIZE
from serving.triton.probe import ask
from serving.triton.server import TritonServer
from serving.upkeep.keeper import PATIENCE_SECONDS, STEP_SECONDS, Stopped, Trouble

PROBE_SECONDS = 2.0  # for each probe
OWN_SECONDS = 10.0  # between two probes of a network that answers others
RELOAD_SECONDS = 20.0  # at least, for one network to answer again
SERVER = "tritonserver"


class TritonWatch:
    """Looks after a started TritonServer. It is a `Service`."""

    def __init__(self, server: TritonServer, *, of: str = "") -> None:
        self.server, self._of = server, of  # `of` stands before the names of what is in trouble
        self._networks = tuple(server.bundle.manifest.networks)
        self._connection: TritonInference | None = None
        self._fastest: dict[str, float] = {}  # seconds of the fastest probe
        self._executed: dict[str, int] = {}  # batches, at the last look
        self._heard: dict[str, float] = {}  # when it last answered anybody
        self._probed: dict[str, float] = {}  # when it was last asked from here
        self._late: dict[str, bool] = {}  # whether that was not answered in time, instead of with an error
        self._forget()

    def look(self) -> list[Trouble]:
        """The server's trouble, or that of its networks."""
        if cause := self.server.ended():
            return [Trouble(who=self._of + SERVER, cause=cause, mend=self._restart)]
        if not self._lives():
            seconds = time.monotonic() - self._heard[SERVER]
            if seconds < PATIENCE_SECONDS:
                return []
            return [Trouble(who=self._of + SERVER, cause=f"no answer for {seconds:.0f} s", mend=self._restart)]
        self._heard[SERVER] = time.monotonic()
        silent = []
        for network in self._networks:
            well = not self.server.worker_ended(network) and not self.server.halted(network)
            if well and self._answers(network):
                self._heard[network] = time.monotonic()
            else:
                silent.append(network)
        return [trouble for network in silent if (trouble := self._trouble(network))]

    def move(self, server: TritonServer) -> TritonServer:
        """Look after another server, every network of which has just answered; returns the one of before."""
        self.close()
        before, self.server = self.server, server
        self._networks = tuple(server.bundle.manifest.networks)
        for known in (self._fastest, self._late):
            known.clear()
        self._forget()
        return before

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _trouble(self, network: str) -> Trouble | None:
        who = self._of + network_called(network)
        if cause := self.server.worker_ended(network):
            cause = f"its worker process: {cause}"
            return Trouble(who=who, cause=cause, mend=lambda stopped: self._reload(network, set(), stopped))
        halted = self.server.halted(network)
        with contextlib.suppress(EndpointError):  # of a server that has ended meanwhile, the next look tells
            if not halted and self._late.get(network, False) and self._runs(network):
                self._heard[network] = time.monotonic()
        seconds = time.monotonic() - self._heard[network]
        if seconds < (PATIENCE_SECONDS if halted else patience(self._fastest.get(network, 0.0))):
            return None
        cause = f"its worker process is halted, for {seconds:.0f} s" if halted else f"no answer for {seconds:.0f} s"
        hung = halted or self.server.workers(network)
        return Trouble(who=who, cause=cause, mend=lambda stopped: self._reload(network, hung, stopped))

    def _answers(self, network: str) -> bool:
        """Whether the network answers: others, as far as that is known and not long ago seen from here, or a probe."""
        try:
            if time.monotonic() - self._probed.get(network, -OWN_SECONDS) < OWN_SECONDS and self._runs(network):
                return True
        except EndpointError:
            self.close()
        return self._probe(network)

    def _runs(self, network: str) -> bool:
        """Whether Triton has run a batch for the network since this was last asked; raises EndpointError."""
        executed, before = self._ask().executed(network), self._executed.get(network)
        self._executed[network] = executed
        return before is not None and executed != before

    def _probe(self, network: str) -> bool:
        """Whether the network answers a question from here."""
        self._probed[network] = began = time.monotonic()
        try:
            seconds = ask(self._ask(), network)
        except EndpointError:
            self._late[network] = time.monotonic() - began > 0.9 * PROBE_SECONDS
            self.close()  # a new connection sees a new server at once
            return False
        self._fastest[network] = min(seconds, self._fastest.get(network, seconds))
        if network in self._executed:
            self._executed[network] += 1  # that batch was ours, and tells nothing the next time
        return True

    def _lives(self) -> bool:
        try:
            self._ask().check_lives()
        except EndpointError:
            self.close()
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
            if self.server.workers(network) - before and self._probe(network):
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
        self._probed.clear()
        self._heard = dict.fromkeys((SERVER, *self._networks), time.monotonic())


def network_called(network: str) -> str:
    """Who is meant, where a network is in trouble."""
    return f"network {network!r}"


def patience(seconds: float) -> float:
    """How long a network may answer nobody, if it takes `seconds` for one image: twice as long as its largest batch."""
    return max(PATIENCE_SECONDS, 2 * MAX_BATCH_SIZE * seconds)
