"""Callers who may not come in, who ask for what is not there, and who hold a place and do nothing with it."""

import contextlib
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.reliability.deployment import IDLE_SECONDS, KEY, Deployment, Door, wait_until
from benchmarks.reliability.rows import Ground, Outcome, Row, beside_neighbours, tally
from benchmarks.reliability.wire import Heard, exchange, outcome
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

SLOW, HALF_OPEN, IDLE, UNREAD = 50, 100, 1000, 20  # callers of each kind
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))  # a caller's window, so that it fills soon
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


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
        return ", ".join(f"{name}: {status}" for name, status in found.items()), found == wanted

    return beside_neighbours(ground, attack)


def _certificates(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = {}
        late = {"certificate": ground.folder / "late.pem", "certificate_key": ground.folder / "late.key"}
        with deployment.another_envoy(**late) as door, door.channel() as channel:
            found["the service's is over"] = _describe(door, channel, heard)
        with deployment.another_envoy(client_ca=ground.folder / "ca.pem") as door:
            for name in ("client", "late"):
                pair = ((ground.folder / f"{name}.key").read_bytes(), (ground.folder / f"{name}.pem").read_bytes())
                with door.channel(client=pair) as channel:
                    found["the caller's is over" if name == "late" else "the caller's is good"] = _describe(
                        door, channel, heard
                    )
            with door.channel() as channel:
                found["the caller has none"] = _describe(door, channel, heard)
        expected = {name: "OK" if name == "the caller's is good" else "UNAVAILABLE" for name in found}
        return ", ".join(f"{name}: {status}" for name, status in found.items()), found == expected

    return beside_neighbours(ground, attack)


def _slow(ground: Ground) -> Outcome:
    """A byte a second: of headers, and of a body; and a gRPC connection that begins like that."""

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        body = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY.secret}\r\ncontent-length: 1000\r\n\r\n"
        starts = (b"POST /v1/cl", body.encode(), _PREFACE[:10])
        doors = (deployment.envoy, deployment.envoy, deployment.gateway)
        seconds = 6.0 if ground.quick else 40.0
        lines = [door.connect() for door, _ in zip(doors * SLOW, range(SLOW), strict=False)]
        for number, line in enumerate(lines):
            with contextlib.suppress(OSError):
                line.sendall(starts[number % len(starts)])
        cut, ends = 0, time.monotonic() + seconds
        while time.monotonic() < ends and lines:
            time.sleep(1.0)
            kept = [line for line in lines if _drips(line)]
            cut, lines = cut + len(lines) - len(kept), kept
        for line in lines:
            line.close()
        return f"{cut} of {SLOW} cut off within {seconds:g} s", True

    return beside_neighbours(ground, attack)


def _half_open(ground: Ground) -> Outcome:
    """Connections that say nothing, half a handshake, a preface and no more; some are torn down in the middle."""

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        held: list[socket.socket] = []
        for door in deployment.doors:
            for number in range(HALF_OPEN):
                line = socket.create_connection(door.address, timeout=10)
                with contextlib.suppress(OSError):
                    line.sendall((b"", b"\x16\x03\x01\x02\x00\x01", _PREFACE, b"GET / HT")[number % 4])
                if number % 8 > 3:  # RST instead of an end
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    line.close()
                else:
                    held.append(line)
        time.sleep(3.0 if ground.quick else 12.0)
        open_still = sum(not _ended(line) for line in held)
        for line in held:
            line.close()
        return f"{2 * HALF_OPEN} connections, {len(held)} of them held; {open_still} are not cut off yet", True

    return beside_neighbours(ground, attack)


def _unread(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found, enough = Counter[str](), threading.Event()
        request = v1.ClassifyRequest(image=ground.known.files[0], explain=True)

        def endless() -> Iterator[v1.ClassifyStreamRequest]:
            while not enough.is_set():
                yield v1.ClassifyStreamRequest(id="one", request=request)

        with contextlib.ExitStack() as opened:
            streams = []
            for door in deployment.doors:
                for _ in range(ground.many(UNREAD)):
                    stub: Any = FieldmarkStub(opened.enter_context(door.channel(*NARROW)))
                    streams.append(stub.ClassifyStream(endless(), metadata=door.metadata))
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: _open_streams(deployment) == 0, 60.0)
            left = _open_streams(deployment)
            enough.set()
            for stream in streams:
                found[outcome(heard, list, stream)[1]] += 1
        return f"{tally(found)}; {left} of {len(streams)} were not given up", "OK" not in found and left == 0

    return beside_neighbours(ground, attack)


def _open_streams(deployment: Deployment) -> int:
    """Streams that the gateway works on now."""
    found = re.search(r"^fieldmark_gateway_streams (\S+)", deployment.metrics(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def _idle(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * IDLE)), hard))
        found = {}
        for door in deployment.doors:
            held = []
            for _ in range(ground.many(IDLE)):
                with contextlib.suppress(OSError):
                    held.append(door.connect("h2"))
            with door.channel() as channel:
                found[f"a new caller at {door.name} beside {len(held):,}"] = _describe(door, channel, heard)
            if door.ca:
                time.sleep(IDLE_SECONDS + 2.0)
                with door.channel() as channel:
                    found[f"after {IDLE_SECONDS:g} s without a word"] = _describe(door, channel, heard)
            for line in held:
                line.close()
        told = ", ".join(f"{name}: {status}" for name, status in found.items())
        return told, list(found.values())[-1] == "OK"

    return beside_neighbours(ground, attack)


def _not_http(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = Counter[str]()
        for door in deployment.doors:
            for data in (bytes(100_000), b"\xff" * 100_000, _PREFACE + b"\xff" * 50_000, b"GET / HTTP/1.1\r\n\r\n"):
                found[exchange(door, [data], heard)] += 1
        return tally(found), not {"200"} & set(found)

    return beside_neighbours(ground, attack)


def _describe(door: Door, channel: Any, heard: Heard) -> str:
    stub: Any = FieldmarkStub(channel)
    return outcome(heard, stub.Describe, v1.DescribeRequest(), metadata=door.metadata, timeout=10)[1]


def _drips(line: socket.socket) -> bool:
    """Send one more byte; whether the other end still takes it."""
    try:
        if _ended(line):
            return False
        line.sendall(b"x")
    except OSError:
        return False
    return True


def _ended(line: socket.socket) -> bool:
    """Whether the other end has said that it is over."""
    line.setblocking(False)
    try:
        while data := line.recv(65536):
            if b"HTTP/1.1 4" in data:
                return True
        return True
    except (BlockingIOError, OSError) as problem:
        return (
            not isinstance(problem, BlockingIOError)
            and "want" not in str(problem).lower()
            and "complete" not in str(problem).lower()
        )
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
        name="slow-callers",
        tried=f"{SLOW} callers who send a byte a second: of headers, of a body, of a handshake",
        must="Others notice nothing",
        run=_slow,
    ),
    Row(
        name="half-open",
        tried=f"{2 * HALF_OPEN} connections without a word, with half a handshake, or torn down in it",
        must="Others notice nothing",
        run=_half_open,
    ),
    Row(
        name="never-reads",
        tried=f"{2 * UNREAD} streams of requests whose answers are never read",
        must="Not read either, given up, ended with a status; others notice nothing",
        run=_unread,
    ),
    Row(
        name="idle-connections",
        tried=f"{IDLE:,} idle connections at each door; Envoy's limit is as many",
        must="Who is in goes on; who comes new is let in once the idle ones are cut off",
        run=_idle,
    ),
)
