"""A gateway: one port that speaks fieldmark.v1, health and reflection; a metrics port; a Triton behind it.

async with Gateway(options, TritonAddress(url="localhost:8001")) as gateway:
    await gateway.wait()
"""

import asyncio
import contextlib
import importlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import grpc

from bundle import Bundle
from bundle.errors import MissingExtra, ServerError
from serving.client.classify import prototype_images
from serving.envoy.expiry import note_expiry
from serving.gateway.behind import Behind
from serving.gateway.handlers import SERVICE, add_service
from serving.gateway.journal import Journal
from serving.gateway.metrics import Metrics
from serving.gateway.options import METADATA_BYTES, GatewayOptions
from serving.gateway.retention import Retention, RetentionOptions
from serving.gateway.service import FieldmarkService, Served
from serving.gateway.shadow import Shadow
from serving.gateway.tally import read_tally
from serving.gateway.tracing import open_tracing
from serving.gateway.upstream import TritonAddress

EVERYTHING = ""  # health's name for the server as a whole
_EXPIRY_SECONDS = 30.0  # between two looks at certificates
_CALLS_OF_A_CONNECTION = 1024
_NO_COMPRESSION = 1  # of gRPC's algorithms, the first bit alone: images are compressed already, and bombs are
LINGER_SECONDS = 0.5  # calls that are on their way when it stops are refused by name; gRPC itself would cut them off


class Gateway:
    """Start it and stop it inside one event loop. `bundle` is where the pictures of prototypes are, if anywhere."""

    _behind: Behind
    _server: Any

    def __init__(
        self,
        options: GatewayOptions,
        triton: TritonAddress,
        *,
        bundle: Bundle | None = None,
        log: TextIO | None = None,
        retention: RetentionOptions | None = None,
    ) -> None:
        require_libraries()
        self.options, self.port, self.metrics_port = options, 0, 0
        self.manifest: Any = None
        self.metrics = Metrics()
        self._address, self._bundle, self._kept = triton, bundle, retention or RetentionOptions()
        self.journal = Journal(log, lost=self.metrics.lost_log_lines.inc)
        self._open = contextlib.AsyncExitStack()
        self._retiring: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Lock()

    @property
    def url(self) -> str:
        """HOST:PORT of fieldmark.v1."""
        return address_of(self.options.host, self.port)

    async def start(self) -> None:
        """Learn the bundle, have every network answer once, listen; raises a FieldmarkError and leaves nothing open."""
        try:
            await self._start()
        except BaseException:
            await self._open.aclose()
            raise

    async def stop(self) -> None:
        """Drain: say that it does not serve any more, let what is in work end, take nothing new."""
        self._service.stopping.set()
        for name in self._names():
            await self._health.set(name, self._not_serving)
        self.journal.write("stopping", in_work=sum(each.working for each in self._service.admissions.values()))
        await asyncio.sleep(LINGER_SECONDS)
        await self._server.stop(self.options.drain_seconds)
        await self._open.aclose()

    @property
    def stopping(self) -> bool:
        """Whether it drains, and takes nothing new."""
        return self._service.stopping.is_set()

    @property
    def death(self) -> str:
        """What has ended the prober, empty while it lives: without it nothing tells the truth about readiness."""
        return self._behind.death

    async def move(self, address: TritonAddress, bundle: Bundle) -> None:
        """Answer from another Triton from now on; raises EndpointError, and then nothing has changed.

        Every network there has answered a probe. What has begun with the old one ends with it (`settle`).
        """
        async with self._moving:
            behind = self._make_behind(address, bundle)
            try:
                await behind.start(ready=True)
                await asyncio.to_thread(self._service.drift.learn, bundle)
            except BaseException:
                await behind.retire(0)
                raise
            before, self._behind = self._behind, behind
            await behind.take_over()
            for network in set(before.manifest.networks) - set(behind.manifest.networks):
                await self._changed(network, False)
            task = asyncio.create_task(before.retire(self.options.timeout))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def settle(self) -> None:
        """Wait until no request is in work at a Triton that was moved away from."""
        await asyncio.gather(*self._retiring)

    async def start_shadow(self, address: TritonAddress, bundle: Bundle, share: float) -> None:
        """Have another Triton asked the same of a `share` of the requests; raises EndpointError."""
        async with self._moving:
            await self.stop_shadow()
            behind = Behind(address, self.options.probe_seconds, bundle=bundle, on_change=_ignore, on_bundle=_ignore)
            try:
                await behind.start(ready=True)
            except BaseException:
                await behind.retire(0)
                raise
            self._service.shadow = Shadow(behind, share, metrics=self.metrics, journal=self.journal)
            self.journal.write("shadow_started", bundle_id=bundle.bundle_id, share=share)

    async def stop_shadow(self) -> None:
        """Compare nothing any more; safe to call twice."""
        shadow, self._service.shadow = self._service.shadow, None
        if shadow is not None:
            await shadow.close()

    def facts(self) -> dict[str, Any]:
        """What answers, and what has been found of its shadow."""
        shadow = self._service.shadow
        return {"bundle_id": self.manifest.bundle_id} | ({"shadow": shadow.facts()} if shadow else {})

    async def __aenter__(self) -> "Gateway":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._open.callback(self.journal.close)
        retention = Retention(self._kept, self.metrics, self.journal)
        self._open.push_async_callback(asyncio.to_thread, retention.close)
        tracing = open_tracing(
            self.options.otlp,
            os.environ,
            made=self.metrics.spans.labels("made").inc,
            sent=self.metrics.spans.labels("sent").inc,
        )
        if tracing is not None:
            self._open.push_async_callback(asyncio.to_thread, tracing.close)
        self._service = FieldmarkService(
            self.options, metrics=self.metrics, journal=self.journal, retention=retention, tracing=tracing
        )
        self._open.callback(self._service.close)
        self._behind = self._make_behind(self._address, self._bundle)
        self._open.push_async_callback(self._close_behind)
        self._make_server()
        await self._behind.start()
        await asyncio.to_thread(self._service.drift.learn, self._bundle)
        self.metrics_port = self.metrics.listen(self.options.metrics_host, self.options.metrics_port)
        self._open.callback(self.metrics.close)
        await self._behind.take_over()
        await self._server.start()
        if self.options.replaced is not None:
            counting = asyncio.create_task(self._count_replaced(self.options.replaced))
            self._open.callback(counting.cancel)
        if self.options.expiry:
            expiring = asyncio.create_task(self._note_expiry(self.options.expiry))
            self._open.callback(expiring.cancel)
        self.journal.write("started", url=self.url, metrics_port=self.metrics_port, bundle_id=self.manifest.bundle_id)

    def _make_server(self) -> None:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        options = self.options
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", options.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_BYTES),
                ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", int(1000 * options.connection_seconds)),
                ("grpc.max_connection_age_grace_ms", int(1000 * (options.timeout + options.stall_seconds))),
                ("grpc.max_concurrent_streams", _CALLS_OF_A_CONNECTION),
                ("grpc.keepalive_time_ms", 30_000),  # a caller that is gone without a word is noticed
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
            maximum_concurrent_rpcs=options.calls,
        )
        self._health, self._not_serving = health.aio.HealthServicer(), health_pb2.HealthCheckResponse.NOT_SERVING
        self._serving = health_pb2.HealthCheckResponse.SERVING
        add_service(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        check_port(options.host, options.port)
        self.port = server.add_insecure_port(address_of(options.host, options.port))
        self._server = server
        self._open.push_async_callback(server.stop, None)

    def _make_behind(self, address: TritonAddress, bundle: Bundle | None) -> Behind:
        return Behind(
            address, self.options.probe_seconds, bundle=bundle, on_change=self._changed, on_bundle=self._learnt
        )

    async def _close_behind(self) -> None:
        await self.stop_shadow()
        await asyncio.gather(self._behind.retire(0), *self._retiring)

    def _learnt(self, behind: Behind) -> None:
        self.manifest = behind.manifest
        self._service.drift.begin(behind.manifest)
        look_up = prototype_images(behind.bundle, behind.manifest)
        self._service.serve(
            Served(manifest=behind.manifest, image=behind.manifest.image, look_up=look_up, behind=behind)
        )
        self.journal.write("bundle", bundle_id=behind.manifest.bundle_id, name=behind.manifest.name)

    async def _changed(self, network: str, serving: bool) -> None:
        if network in self.manifest.networks:
            self.metrics.serving.labels(network).set(int(serving))
        else:  # of the bundle before: its 0 would page for ever
            self.metrics.serving.remove(network)
        self.journal.write("network", network=network, serving=serving)
        state = self._serving if serving else self._not_serving
        everything = self._serving if self._behind.prober.ready else self._not_serving
        await self._health.set(f"{SERVICE}/{network}", state)
        for name in (EVERYTHING, SERVICE):
            await self._health.set(name, everything)

    async def _count_replaced(self, file: Path) -> None:
        """Have the metrics show what the supervisor has counted, until cancelled."""
        while True:
            self.metrics.replaced_so_far(await asyncio.to_thread(read_tally, file))
            await asyncio.sleep(self.options.probe_seconds)

    async def _note_expiry(self, files: Iterable[Path]) -> None:
        """Have the metrics show when certificates are over, also renewed ones, until cancelled."""
        while True:
            await asyncio.to_thread(note_expiry, self.metrics, files)
            await asyncio.sleep(_EXPIRY_SECONDS)

    def _names(self) -> list[str]:
        return [EVERYTHING, SERVICE, *(f"{SERVICE}/{network}" for network in self.manifest.networks)]


async def _ignore(*_: object) -> None:
    """A shadow's readiness is nobody's."""


def require_libraries() -> None:
    """Raise MissingExtra unless all that a gateway needs is installed; asked before anything is started."""
    try:
        for name in ("prometheus_client", "grpc_health", "grpc_reflection", "google.rpc"):
            importlib.import_module(name)
    except ImportError as problem:
        raise MissingExtra.named("gateway", "fieldmark gateway", problem) from None


def address_of(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 address wants."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def free_port(host: str) -> int:
    """A port of the address that nobody uses at the moment."""
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as listener:
        listener.bind(address)
        return int(listener.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise ServerError if nobody could listen there; gRPC would write lines of its own, and no sentence."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or "no such address"
        raise ServerError(
            f"port {port} cannot be used on {host} ({reason.lower()})",
            hint="Stop what listens there, or choose another one: --port N (0 takes any free one).",
        ) from None
