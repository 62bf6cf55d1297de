"""Callers who may not come in, who ask for what is not there, or speak the protocol to no good end."""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.reliability.deployment import KEY, Deployment, Door
from benchmarks.reliability.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    headers_of,
    literal,
)
from benchmarks.reliability.rows import KEPT_MB, Ground, Outcome, Row, beside_neighbours, tally
from benchmarks.reliability.wire import Heard, exchange, outcome
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

FLOOD = 20_000  # frames of each kind
_GREETING = PREFACE + frame(SETTINGS, 0, 0, b"")


def _bad_input(ground: Ground) -> Outcome:
    good = ground.known.files[0]
    key = (("x-api-key", KEY.secret),)

    def ask(stub: Any, *, metadata: Any = key, timeout: float = 20.0, **fields: Any) -> Any:
        return stub.Classify(v1.ClassifyRequest(**{"image": good, **fields}), metadata=metadata, timeout=timeout)

    def cut_stream(stub: Any) -> Any:
        def requests() -> Iterator[v1.ClassifyStreamRequest]:
            yield v1.ClassifyStreamRequest(id="one", request=v1.ClassifyRequest(image=good[: len(good) // 2]))

        return next(iter(stub.ClassifyStream(requests(), metadata=key, timeout=20))).error

    expected: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "no key": ("UNAUTHENTICATED", lambda stub: ask(stub, metadata=())),
        "wrong key": ("UNAUTHENTICATED", lambda stub: ask(stub, metadata=(("x-api-key", "z" * 34),))),
        "unknown network": ("NOT_FOUND NETWORK_UNKNOWN", lambda stub: ask(stub, network="resnet")),
        "alpha below what the bundle supports": (
            "INVALID_ARGUMENT ALPHA_OUT_OF_RANGE",
            lambda stub: ask(stub, alpha=1e-9),
        ),
        "empty image": ("INVALID_ARGUMENT IMAGE_EMPTY", lambda stub: ask(stub, image=b"")),
        "65 MB image": ("RESOURCE_EXHAUSTED", lambda stub: ask(stub, image=b"\xff" * 65_000_000)),
        "wrong format": ("INVALID_ARGUMENT IMAGE_REFUSED", lambda stub: ask(stub, image=b"%PDF-1.7\n" * 50)),
        "deadline of 0": ("DEADLINE_EXCEEDED", lambda stub: ask(stub, timeout=0)),
    }

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = {}
        with deployment.envoy.channel() as channel:
            stub: Any = FieldmarkStub(channel)
            for name, (_, call) in expected.items():
                found[name] = outcome(heard, call, stub)[1]
            error = cut_stream(stub)
            heard.note(error.message)
            found["truncated image in a stream"] = error.reason
        wanted = {name: status for name, (status, _) in expected.items()}
        wanted["truncated image in a stream"] = "IMAGE_REFUSED"
        # A deadline of 0 ends at the caller, or at the service, which names its reason: both are the documented status.
        held = all(found[name].startswith(status) for name, status in wanted.items())
        return ", ".join(f"{name}: {status}" for name, status in found.items()), held

    return beside_neighbours(ground, attack)


def _certificates(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = {}
        late = {"certificate": ground.folder / "late.pem", "certificate_key": ground.folder / "late.key"}
        with deployment.another_envoy(**late) as door, door.channel() as channel:
            found["the service's is over"] = describe(door, channel, heard)
        with deployment.another_envoy(client_ca=ground.folder / "ca.pem") as door:
            for name in ("client", "late"):
                pair = ((ground.folder / f"{name}.key").read_bytes(), (ground.folder / f"{name}.pem").read_bytes())
                with door.channel(client=pair) as channel:
                    found["the caller's is over" if name == "late" else "the caller's is good"] = describe(
                        door, channel, heard
                    )
            with door.channel() as channel:
                found["the caller has none"] = describe(door, channel, heard)
        expected = {name: "OK" if name == "the caller's is good" else "UNAVAILABLE" for name in found}
        return ", ".join(f"{name}: {status}" for name, status in found.items()), found == expected

    return beside_neighbours(ground, attack)


def _not_http(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = Counter[str]()
        for door in deployment.doors:
            for data in (bytes(100_000), b"\xff" * 100_000, _GREETING + b"\xff" * 50_000, b"GET / HTTP/1.1\r\n\r\n"):
                found[exchange(door, [data], heard)] += 1
        return tally(found), not {"200"} & set(found)

    return beside_neighbours(ground, attack)


def _floods(ground: Ground) -> Outcome:
    """What HTTP/2 lets a caller do without ever finishing a request."""
    count = ground.many(FLOOD)
    head = headers_of("Classify", x_api_key=KEY.secret)
    reset, more = struct.pack(">I", 8), literal("x", "y" * 100) * 10  # 8 is CANCEL
    floods = {
        "streams begun and reset": b"".join(
            frame(HEADERS, END_HEADERS, stream, head) + frame(RST_STREAM, 0, stream, reset)
            for stream in range(1, 2 * count, 2)
        ),
        "pings": frame(PING, 0, 0, bytes(8)) * count,
        "settings": frame(SETTINGS, 0, 0, b"") * count,
        "headers without an end": frame(HEADERS, 0, 1, head) + frame(CONTINUATION, 0, 1, more) * count,
        "empty pieces of a body": frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, 0, 1, b"") * count,
    }

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        cut = Counter[str]()
        for door in deployment.doors:
            for name, flood in floods.items():
                with contextlib.closing(door.connect("h2")) as line, contextlib.suppress(OSError):
                    threading.Thread(target=_read_all, args=(line,), daemon=True).start()
                    line.settimeout(10)
                    line.sendall(_GREETING + flood)
                    time.sleep(0.5)
                    cut[name] += ended(line)
        return "cut off: " + ", ".join(f"{name} at {cut[name]} of 2 doors" for name in floods), True

    result = beside_neighbours(ground, attack)
    result.held &= result.numbers["memory_grown_mb"] < KEPT_MB
    return result


def _read_all(line: socket.socket) -> None:
    """Take what comes, so that nobody waits for the attacker."""
    with contextlib.suppress(OSError, ValueError):
        while line.recv(65536):
            pass


def describe(door: Door, channel: Any, heard: Heard) -> str:
    """Status of a call that costs nobody anything."""
    stub: Any = FieldmarkStub(channel)
    return outcome(heard, stub.Describe, v1.DescribeRequest(), metadata=door.metadata, timeout=10)[1]


def ended(line: socket.socket) -> bool:
    """Whether the other end has closed the connection, or refuses."""
    line.setblocking(False)
    try:
        while data := line.recv(65536):
            if b"HTTP/1.1 4" in data:
                return True
        return True
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            line.settimeout(10)


ROWS = (
    Row(
        name="bad-input",
        tried="No key, a wrong one, an unknown network, an alpha that the bundle cannot give, an empty image, 65 MB, "
        "another format, half an image in a stream, a deadline of 0",
        must="Each its documented status and one sentence",
        run=_bad_input,
    ),
    Row(
        name="certificates",
        tried="Expired certificates: the service's own, a caller's; a caller without one where one is asked for",
        must="UNAVAILABLE; who has a good one is answered",
        run=_certificates,
    ),
    Row(
        name="not-http",
        tried="Bytes that are no HTTP, at both doors",
        must="The connection ends",
        run=_not_http,
    ),
    Row(
        name="http2-floods",
        tried=f"{FLOOD:,} streams begun and reset, pings, settings, headers without an end, empty pieces of a body",
        must=f"Others notice nothing, and less than {KEPT_MB:g} MB of it kept",
        run=_floods,
    ),
)
