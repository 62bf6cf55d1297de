"""What `fieldmark serve` runs: a Triton, the gateway before it, Envoy before that if asked for, and what moves them.

callers --> [Envoy] --> gateway --private sockets--> Triton
                           `---- orders ----- roller --> the next Triton
"""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle import Bundle
from bundle.errors import BundleError, ServerError
from serving.client.remote import UNIX
from serving.control import Control, check_free
from serving.gateway.tally import Tally
from serving.triton.command import GRPC_SOCKET, METRICS_SOCKET
from serving.triton.server import TritonServer
from serving.upkeep.gateway import WHO, GatewayProcess
from serving.upkeep.keeper import Service, Stopped
from serving.upkeep.options import DEFAULT_TRITON_PORT, ServeOptions
from serving.upkeep.place import control_path, leave, prepare
from serving.upkeep.roller import Means, Roller, Tell
from serving.upkeep.source import Source
from serving.upkeep.store import Store
from serving.upkeep.triton_metrics import TritonMetrics
from serving.upkeep.watch import SERVER, TritonWatch, network_called

if TYPE_CHECKING:
    from serving.envoy.process import EnvoyServer

ENVOY = "Envoy"
OnLog = Callable[[str], None] | None
_IDLE_SECONDS = 1.0  # for a server without work to end by itself
_TRITON = "triton"  # the link to the folder of the sockets of the Triton that answers


class Serving:
    """Start it and stop it in one thread, which outlives it. `folder` is this user's alone.

    `on_log` gets the lines of the gateway's and Envoy's logs, `on_triton_log` those of Triton's.
    """

    def __init__(self, options: ServeOptions, folder: Path, tell: Tell, *, on_log: OnLog, on_triton_log: OnLog) -> None:
        self.options, self._folder, self._tell = options, folder, tell
        self._on_log, self._on_triton_log = on_log, on_triton_log
        self._numbers = itertools.count(1)
        self._tally: Tally | None = None
        self._control: Control | None = None
        self._watch: TritonWatch | None = None
        self._envoy: EnvoyServer | None = None
        self._metrics: TritonMetrics | None = None
        self.roller: Roller | None = None
        self.gateway: GatewayProcess | None = None
        self.services: list[Service] = []

    def start(self, stopped: Stopped, show: Callable[[str], None]) -> None:
        """Start all of it; raises a FieldmarkError, returns early if `stopped` says so. `show` hears of each step."""
        options, source = self.options, Source(self.options.path)
        if options.control is not None and options.rolls:
            prepare(options.control, ours=False)
            check_free(options.control)
        store = Store(self._folder / "bundles", options.key) if options.rolls else None
        bundle = self._first(source, store)
        whos = (SERVER, WHO, *([ENVOY] if options.door else ()), *map(network_called, bundle.manifest.networks))
        self._tally = Tally(self._folder / "replaced.json", whos)
        server = self._triton(bundle)
        self._watch = TritonWatch(server)
        show("starting Triton")
        server.start(cancelled=stopped)
        if options.rolls:
            self._link(server)
            self._forward_metrics()
        self.services.append(self._watch)
        if options.gateway and not stopped():
            show("starting the gateway")
            self._start_gateway(server, stopped)
            if not stopped():
                self._start_envoy()
        if self.gateway is not None and store is not None and not stopped():
            self._take_orders(self._watch, self.gateway, store, source if options.watch else None)

    def tell(self, event: str, facts: dict[str, object]) -> None:
        """Count what was replaced, and let whoever listens know."""
        if event == "replaced" and self._tally is not None:
            self._tally.count(str(facts["who"]))
        self._tell(event, facts)

    @property
    def server(self) -> TritonServer:
        """The Triton that answers now; raises ServerError before `start`."""
        if self._watch is None:
            raise ServerError("the server is not running")
        return self._watch.server

    def stop(self) -> None:
        """Answer what is in work, then end everything; safe to call twice."""
        if self._control is not None:
            self._control.close()
            if self.options.control is None:
                leave(self._control.path)
        if self.roller is not None:
            self.roller.close()
        if self.gateway is not None:
            self.gateway.stop()  # Triton goes on until it has its last answer, and Envoy, through which that goes
        for part in (self._envoy, self.roller):
            if part is not None:
                part.stop()
        if self._metrics is not None:
            self._metrics.close()
        if self._watch is not None:
            self._watch.close()
            self._watch.server.stop()

    def facts(self) -> dict[str, Any]:
        """Addresses and ids, for a person or a machine."""
        server, rolls = self.server, self.options.rolls
        facts: dict[str, Any] = {
            "grpc_url": f"{UNIX}{self._folder / _TRITON / GRPC_SOCKET}" if rolls else server.grpc_url,
            "metrics_url": server.metrics_url if self._metrics is None else self._metrics.url,
            "networks": list(server.bundle.manifest.networks),
            "bundle_id": server.bundle.bundle_id,
            "triton_version": server.triton_version,
            "pid": os.getpid(),
            "triton_pid": server.pid,
        }
        if server.http_url:
            facts["http_url"] = server.http_url
        if self.gateway is not None:
            inner = self.gateway.facts["url"]
            facts |= {"url": inner, "gateway_metrics_url": self.gateway.facts["metrics_url"]}
            facts["gateway_pid"] = self.gateway.pid
        if self._envoy is not None:
            facts |= {"url": self._envoy.url, "gateway_url": facts["url"], "envoy_pid": self._envoy.pid}
        if self._control is not None:
            facts["control"] = str(self._control.path)
        return facts

    def _first(self, source: Source, store: Store | None) -> Bundle:
        """The bundle to begin with: of a folder, the last good one; raises BundleError where there is none."""
        source.note()
        if store is None:
            return Bundle.open(self.options.path, key=self.options.key)
        if not self.options.watch:
            return store.take(self.options.path)
        refused: BundleError | None = None
        for path in source.candidates():
            try:
                return store.take(path)
            except BundleError as problem:
                self._tell("refused", {"bundle": str(path), "cause": problem.what})
                refused = refused or problem
        raise refused or BundleError(f"{self.options.path} holds no bundle")

    def _triton(self, bundle: Bundle) -> TritonServer:
        """A server that has not started. Where bundles roll, it has sockets of its own, at no port."""
        options, sockets = self.options, None
        if options.rolls:
            sockets = self._folder / f"triton-{next(self._numbers)}"
            sockets.mkdir()
        grpc_port = DEFAULT_TRITON_PORT if options.grpc_port is None else options.grpc_port
        return TritonServer(
            bundle,
            grpc_port=grpc_port,
            http_port=options.http_port,
            metrics_port=options.metrics_port,
            sockets=sockets,
            triton_python=options.triton_python,
            start_seconds=options.start_seconds,
            traces=options.traces,
            on_log=self._on_triton_log,
        )

    def _link(self, server: TritonServer) -> None:
        """Let whoever asks Triton find the one that answers now at the same place."""
        if server.sockets is not None:
            made = self._folder / "next"
            made.symlink_to(server.sockets.name)
            made.replace(self._folder / _TRITON)

    def _forward_metrics(self) -> None:
        self._metrics = TritonMetrics(self._folder / _TRITON / METRICS_SOCKET, self.options.metrics_port)
        self._metrics.open()

    def _start_gateway(self, server: TritonServer, stopped: Stopped) -> None:
        options = self.options
        quiet = [] if options.log else ["--quiet"]
        place = ["--host", options.host, *(["--insecure"] if options.insecure else ())]
        if self._tally is not None:
            place += ["--replaced", str(self._tally.path)]
        ports = (options.port, options.gateway_metrics_port)
        if options.door is not None:  # only Envoy is to reach it
            callers = options.door.options
            place = [*place, "--host", "127.0.0.1", "--rate", str(callers.rate), "--burst", str(callers.burst)]
            for file in callers.certificates:
                place += ["--expiry", str(file.absolute())]
            ports = (0, options.gateway_metrics_port)
        self.gateway = GatewayProcess(
            server.grpc_url,
            server.bundle.path,
            [*place, *options.gateway_options, *quiet],
            control=self._folder / "gateway" if options.rolls else None,
            ports=ports,
            drain_seconds=options.drain_seconds,
            on_log=self._on_log,
        )
        self.gateway.start(stopped=stopped)
        self.services.append(self.gateway)

    def _start_envoy(self) -> None:
        if (door := self.options.door) is None or self.gateway is None:
            return
        from serving.envoy.process import EnvoyServer
        from serving.upkeep.envoy_watch import EnvoyWatch

        behind = door.before(self.gateway.facts["url"], self.gateway.facts["limits"])
        self._envoy = EnvoyServer(behind, binary=door.binary, on_log=self._on_log if self.options.log else None)
        self._envoy.start()
        self.services.append(EnvoyWatch(self._envoy))

    def _take_orders(self, watch: TritonWatch, gateway: GatewayProcess, store: Store, source: Source | None) -> None:
        place = self.options.control or control_path(int(self.facts()["url"].rpartition(":")[2]))
        prepare(place, ours=self.options.control is None)
        means = Means(store=store, make=self._triton, end=_end, moved=self._link, tell=self._tell)
        self.roller = Roller(watch, gateway, means, source=source, other_labels=self.options.other_labels)
        self._control = Control(place, self.roller.obey)
        self._control.open()
        self.roller.start()
        self.services.append(self.roller)


def _end(server: TritonServer) -> None:
    """End a server that nobody asks any more."""
    server.stop(_IDLE_SECONDS)
    if server.sockets is not None:
        shutil.rmtree(server.sockets, ignore_errors=True)
