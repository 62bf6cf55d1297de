"""A real Envoy before a gateway, and callers who speak to it over TLS."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from serving.envoy.keys import Key
from serving.envoy.options import SHARED, EnvoyOptions
from serving.envoy.process import EnvoyServer
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub
from serving.gateway.server import Gateway, free_port

ANN, BOB = (Key(name=name, secret=f"{name}-" + "k3y" * 10) for name in ("ann", "bob"))


class Door:
    """An Envoy, the folder of its certificates, and the lines of its log."""

    def __init__(self, folder: Path, options: EnvoyOptions) -> None:
        self.folder, self.options, self.lines = folder, options, list[str]()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.options.port

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.options.port}"

    @property
    def accesses(self) -> list[dict[str, Any]]:
        """The access log."""
        return [line for line in map(json.loads, self.lines) if line["event"] == "access"]

    @contextlib.contextmanager
    def stub(self, client: str = "") -> Iterator[Any]:
        """A stub on a channel of its own; `client` names the certificate that it shows."""
        with grpc.secure_channel(
            self.url, self.credentials(client), [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            yield FieldmarkStub(channel)

    def credentials(self, client: str = "") -> Any:
        read = [self.folder / name for name in ("ca.pem", f"{client}.key", f"{client}.pem")[: 3 if client else 1]]
        return grpc.ssl_channel_credentials(*(file.read_bytes() for file in read))

    def connect(self, *protocols: str) -> ssl.SSLSocket:
        """A TLS connection to write bytes into."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        context.set_alpn_protocols(list(protocols))
        return context.wrap_socket(socket.create_connection(self.address, timeout=30), server_hostname="127.0.0.1")


@contextlib.contextmanager
def before(gateway: Gateway, folder: Path, /, **settings: Any) -> Iterator[Door]:
    """An Envoy with `server.pem` of the folder before a gateway, with its limits unless told otherwise."""
    given: dict[str, Any] = {
        "certificate": folder / "server.pem",
        "certificate_key": folder / "server.key",
        "keys": (ANN, BOB),
        "host": "127.0.0.1",
        "port": free_port("127.0.0.1"),
        "gateway": gateway.url,
        "connections": 100,
    }
    shared = {name: getattr(gateway.options, name) for name in SHARED}
    door = Door(folder, EnvoyOptions(**shared | given | settings))
    with EnvoyServer(door.options, on_log=door.lines.append):
        yield door


def metadata(key: Key | None, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """What a caller with this key sends along."""
    return ((("x-api-key", key.secret),) if key else ()) + more


def refusal(call: Any, request: Any = None, **arguments: Any) -> tuple[str, str]:
    """(status, sentence) that a call is refused with."""
    try:
        call(request if request is not None else v1.DescribeRequest(), timeout=30, **arguments)
    except grpc.RpcError as problem:
        return problem.code().name, problem.details()  # type: ignore[attr-defined]
    return "OK", ""
