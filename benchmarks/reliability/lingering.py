"""Callers who hold a place and do nothing with it, or next to nothing."""

import contextlib
import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from benchmarks.reliability.deployment import IDLE_SECONDS, KEY, Deployment, wait_until
from benchmarks.reliability.http2 import PREFACE, SETTINGS, frame
from benchmarks.reliability.rows import Ground, Outcome, Row, beside_neighbours, tally
from benchmarks.reliability.strangers import describe, ended
from benchmarks.reliability.wire import Heard, outcome
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub

SLOW, HALF_OPEN, IDLE, UNREAD = 50, 100, 1000, 20  # callers of each kind
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))  # a caller's window, so that it fills soon
_GREETING = PREFACE + frame(SETTINGS, 0, 0, b"")


def _slow(ground: Ground) -> Outcome:
    """A byte a second: of headers, and of a body; and a gRPC connection that begins like that."""

    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        body = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY.secret}\r\ncontent-length: 1000\r\n\r\n"
        starts = (b"POST /v1/cl", body.encode(), _GREETING[:10])
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
                    line.sendall((b"", b"\x16\x03\x01\x02\x00\x01", _GREETING, b"GET / HT")[number % 4])
                if number % 8 > 3:  # RST instead of an end
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    line.close()
                else:
                    held.append(line)
        time.sleep(3.0 if ground.quick else 12.0)
        open_still = sum(not ended(line) for line in held)
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
                wait_until(lambda: _open_streams(deployment) > 0, 20.0)
                wait_until(lambda: _open_streams(deployment) == 0, 60.0)
            left = _open_streams(deployment)
            enough.set()
            for stream in streams:
                found[outcome(heard, list, stream)[1]] += 1
        return f"{tally(found)}; {left} of {len(streams)} were not given up", "OK" not in found and left == 0

    return beside_neighbours(ground, attack)


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
                found[f"a new caller at {door.name} beside {len(held):,}"] = describe(door, channel, heard)
            if door.ca:
                time.sleep(IDLE_SECONDS + 2.0)
                with door.channel() as channel:
                    found[f"after {IDLE_SECONDS:g} s without a word"] = describe(door, channel, heard)
            for line in held:
                line.close()
        told = ", ".join(f"{name}: {status}" for name, status in found.items())
        return told, list(found.values())[-1] == "OK"

    return beside_neighbours(ground, attack)


def _open_streams(deployment: Deployment) -> int:
    """Streams that the gateway works on now."""
    found = re.search(r"^fieldmark_gateway_streams (\S+)", deployment.metrics(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def _drips(line: socket.socket) -> bool:
    """Send one more byte; whether the other end still takes it."""
    try:
        if ended(line):
            return False
        line.sendall(b"x")
    except OSError:
        return False
    return True


ROWS = (
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
