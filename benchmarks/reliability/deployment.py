"""What is attacked: `fieldmark serve` as anybody starts it, and an Envoy before its gateway as strangers meet it."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.certificates import make_certificate
from bundle.errors import ServerError
from serving.envoy.keys import Key
from serving.envoy.options import EnvoyOptions
from serving.envoy.process import EnvoyServer
from serving.gateway.server import free_port
from serving.processes import command_of, group

ROOT = Path(__file__).parents[2]
KEY = Key(name="neighbour", secret="neighbour-" + "k3y" * 8)
STALL_SECONDS, IDLE_SECONDS, TIMEOUT = 8.0, 12.0, 20.0  # shorter than by default, so that patience is seen to end
WAIT_SECONDS = 90.0
ENVOY, GATEWAY, TRITON = "Envoy", "the gateway", "tritonserver"
_FREE = ("--port", "0", "--metrics-port", "0", "--gateway-metrics-port", "0")
_OPEN = ("--rate", "100000", "--burst", "100000")  # neighbours and attackers share one key
_PATIENCE = ("--stall-seconds", STALL_SECONDS, "--idle-seconds", IDLE_SECONDS, "--timeout", TIMEOUT)
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Door:
    """An address of fieldmark.v1. With `ca`, its certificate, it speaks TLS and asks for the key."""

    name: str
    url: str
    ca: bytes | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a caller who may come in sends along."""
        return (("x-api-key", KEY.secret),) if self.ca else ()

    def channel(self, *options: tuple[str, Any], client: tuple[bytes, bytes] | None = None) -> Any:
        """A channel of its own, with no limits but those of the service; `client` is a (key, certificate) to show."""
        settings = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *options]
        if self.ca is None:
            return grpc.insecure_channel(self.url, options=settings)
        credentials = grpc.ssl_channel_credentials(self.ca, *(client or ()))
        return grpc.secure_channel(self.url, credentials, options=settings)

    def connect(self, *protocols: str) -> socket.socket:
        """A connection to write bytes into, over TLS where the door speaks it."""
        plain = socket.create_connection(self.address, timeout=30)
        if self.ca is None:
            return plain
        context = ssl.create_default_context(cadata=self.ca.decode())
        context.set_alpn_protocols(list(protocols) or ["http/1.1"])
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    @property
    def address(self) -> tuple[str, int]:
        """As sockets take it."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])


class Deployment:
    """One `fieldmark serve` and one Envoy, started by `start`; certificates and keys lie in `folder`.

    `options` are those of `fieldmark gateway`. Where `serve` starts no Envoy itself, one is started here, and then
    nobody keeps it up.
    """

    def __init__(self, bundle: Path, folder: Path, *options: str) -> None:
        self.bundle, self.folder = bundle, folder
        self.facts: dict[str, Any] = {}
        self.lines: list[str] = []
        self._options = (*_PATIENCE, *options)
        self._open = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start both and wait until every network has answered; raises ServerError with its last words."""
        command = [sys.executable, "-m", "fieldmark", "serve", str(self.bundle), "--json", "--log", *_FREE]
        pair = ("--certificate", f"{self.folder / 'server.pem'}", "--certificate-key", f"{self.folder / 'server.key'}")
        guard = (*pair, "--keys", f"{self.folder / 'keys'}", *_OPEN)
        process = subprocess.Popen(
            [*command, "--drain-seconds", "2", *guard, "--", *map(str, self._options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._process = process
        self._open.callback(self._end, process)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            reader.join(timeout=5)
            raise ServerError(f"the service did not start: {' '.join(self.lines[-3:])}")
        self.facts = json.loads(line)

    def stop(self) -> None:
        """End all of it; safe to call twice."""
        self._open.close()
        self._process = None

    def __enter__(self) -> "Deployment":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def gateway(self) -> Door:
        """Where this machine's own callers come in."""
        return Door(name=GATEWAY, url=self.facts.get("gateway_url", self.facts["url"]))

    @property
    def envoy(self) -> Door:
        """Where strangers come in."""
        return self._guarded(self.facts["url"])

    @contextlib.contextmanager
    def another_envoy(self, **changes: Any) -> Iterator[Door]:
        """A second Envoy before the same gateway, with other options."""
        with EnvoyServer(self._envoy_options(changes), on_log=self.lines.append) as envoy:
            yield self._guarded(envoy.url)

    @property
    def doors(self) -> tuple[Door, Door]:
        """Both."""
        return self.gateway, self.envoy

    @property
    def alive(self) -> bool:
        """Whether `fieldmark serve` itself runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of `fieldmark serve`."""
        return int(self.facts["pid"])

    def pids(self) -> dict[str, int]:
        """Processes by name, as they are now: the networks' workers, tritonserver, the gateway, Envoy."""
        below = {pid: command_of(pid) for pid in _descendants(self.pid)}
        found = {}
        for pid, command in below.items():
            if "/tritonserver" in command.split(" ")[0]:
                found[TRITON] = pid
                for member in group(pid):
                    for network in self.facts["networks"]:
                        if f"/models/{network}/" in command_of(member):
                            found[f"worker {network}"] = member
            elif " gateway " in command:
                found[GATEWAY] = pid
            elif Path(command.split(" ")[0]).name == "envoy":
                found[ENVOY] = pid
        return found

    def memory(self) -> dict[str, float]:
        """Resident megabytes by name."""
        return {name: _resident(pid) for name, pid in self.pids().items()}

    def events(self, name: str) -> list[dict[str, Any]]:
        """What has been logged under this name so far."""
        found = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [each for each in found if each.get("event") == name]

    def metrics(self) -> str:
        """The gateway's page for Prometheus."""
        from urllib.request import urlopen

        with urlopen(self.facts["gateway_metrics_url"], timeout=10) as answer:
            return str(answer.read().decode())

    def _guarded(self, url: str) -> Door:
        return Door(name=ENVOY, url=url, ca=(self.folder / "ca.pem").read_bytes())

    def _envoy_options(self, changes: dict[str, Any]) -> EnvoyOptions:
        given: dict[str, Any] = {
            "certificate": self.folder / "server.pem",
            "certificate_key": self.folder / "server.key",
            "keys": (KEY,),
            "host": "127.0.0.1",
            "port": free_port("127.0.0.1"),
            "gateway": self.gateway.url,
            "rate": 100_000,
            "burst": 100_000,
            "stall_seconds": STALL_SECONDS,
            "idle_seconds": IDLE_SECONDS,
            "timeout": TIMEOUT,
        }
        return EnvoyOptions(**given | changes)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        with contextlib.suppress(ValueError):
            for line in process.stderr or ():
                self.lines.append(line.rstrip())

    @staticmethod
    def _end(process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_certificates(folder: Path) -> None:
    """An authority, certificates that it has signed for the service and a caller, also such as are over, and a key."""
    (folder / "keys").touch(mode=0o600)
    (folder / "keys").write_text(f"{KEY.name}:{KEY.secret}\n", encoding="utf-8")
    authority = make_certificate(folder, "ca", hours=48)
    for name, hours in (("server", 48.0), ("client", 48.0), ("late", -1.0)):
        make_certificate(folder, name, authority, hours=hours)


def wait_until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> float:
    """Seconds until the condition held; raises TimeoutError if it does not."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"waited {seconds:g} seconds in vain")
        time.sleep(0.05)
    return time.monotonic() - began


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text(encoding="utf-8").split()):
                yield child
                yield from _descendants(child)


def _resident(pid: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE / 1e6
    return 0.0
