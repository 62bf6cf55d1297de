"""Requests that are too large, too deep, too small in too many pieces, or not what they say."""

import itertools
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.reliability.deployment import GATEWAY, KEY, TRITON, Deployment
from benchmarks.reliability.rows import KEPT_MB, Ground, Outcome, Row, beside_neighbours, tally
from benchmarks.reliability.wire import Heard, exchange, outcome, post
from bundle import tensors
from serving.gateway.generated import fieldmark_pb2 as v1
from serving.gateway.generated.fieldmark_pb2_grpc import FieldmarkStub
from serving.processes import command_of, group

PATHS = ("/v1/classify", "/v1/describe", "/metrics", "/", "/v2/models/full/infer", "/v2/repository/index")
CHUNKS = 600_000
_MIB = 1 << 20
_WITH_KEY = f"x-api-key: {KEY.secret}"


def _large_bodies(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        body, found = b"x" * (30 * _MIB), Counter[str]()
        for path, key in itertools.product(PATHS[:1] if ground.quick else PATHS, ((), (_WITH_KEY,))):
            found[exchange(deployment.envoy, [post(path, body, *key)], heard)] += 1
        port = int(deployment.facts["gateway_metrics_url"].split(":")[2].split("/")[0])
        metrics = _plain(deployment, port, post("/metrics", body), heard)
        http = "http_url" not in deployment.facts
        open_ports = sorted(_listening_elsewhere(deployment))
        happened = (
            f"Envoy: {tally(found)}; the gateway's metrics port: {metrics}; Triton's HTTP is {'off' if http else 'on'}"
        )
        if open_ports:
            happened += f"; ports that others reach: {open_ports}"
        return happened, http and not open_ports and not {"200", "500"} & set(found)

    return beside_neighbours(ground, attack)


def _deep_json(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        nested = b"[" * 40_000 + b"]" * 40_000
        deep = exchange(deployment.envoy, [post("/v1/classify", nested, _WITH_KEY)], heard)
        fields = "\r\n".join(("host: x", "content-type: application/json", _WITH_KEY, "transfer-encoding: chunked"))
        head = f"POST /v1/classify HTTP/1.1\r\n{fields}\r\n\r\n".encode()
        count = ground.many(CHUNKS)
        pieces: Iterator[bytes] = itertools.chain(
            (head,), (b"1\r\n[\r\n" * 1000 for _ in range(count // 1000)), (b"0\r\n\r\n",)
        )
        cut = exchange(deployment.envoy, pieces, heard)
        return f"nested: {deep}; {count:,} chunks: {cut}", {deep, cut} <= {"400", "413"}

    return beside_neighbours(ground, attack)


def _lying_shape(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        image, found = ground.known.manifest.image, Counter[str]()
        pixels = bytes(image.height * image.width * 3)
        request = service_pb2.ModelInferRequest(model_name="full", raw_input_contents=[pixels])
        request.inputs.add(name=tensors.IMAGE, datatype="UINT8", shape=(2**32, image.height, image.width, 3))
        for door in deployment.doors:
            with door.channel() as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for _ in range(ground.many(200)):
                    _, status = outcome(heard, stub.ModelInfer, request, timeout=10, metadata=door.metadata)
                    found[status] += 1
        return tally(found), set(found) == {"UNIMPLEMENTED"}

    return beside_neighbours(ground, attack)


def _huge_messages(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = Counter[str]()
        size = ground.many(200) * 1_000_000
        for door in deployment.doors:
            plain, packed = grpc.Compression.NoCompression, grpc.Compression.Gzip
            for image, more, compression in (
                (ground.known.files[0], (("x-request-id", "i" * size),), plain),
                (b"\xff" * (size * 3 // 2), (), plain),
                (bytes(size), (), packed),
            ):
                one, sent = (
                    v1.ClassifyRequest(image=image),
                    {"metadata": (*door.metadata, *more), "compression": compression},
                )
                with door.channel(("grpc.max_metadata_size", 2**31 - 1)) as channel:
                    stub: Any = FieldmarkStub(channel)
                    _, status = outcome(heard, stub.Classify, one, timeout=60, **sent)
                    found[status] += 1
        refused = set(found) <= {
            "RESOURCE_EXHAUSTED",
            "UNIMPLEMENTED",
            "UNAVAILABLE",
            "INTERNAL",
            "UNKNOWN",
            "CANCELLED",
        }
        return tally(found), refused and "OK" not in found

    result = beside_neighbours(ground, attack)
    result.held &= result.numbers["memory_grown_mb"] < KEPT_MB
    return result


def _bombs(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        found = Counter[str]()
        for door in deployment.doors:
            with door.channel() as channel:
                stub: Any = FieldmarkStub(channel)
                for image in bombs():
                    request = v1.ClassifyRequest(image=image)
                    for _ in range(ground.many(20)):
                        _, status = outcome(heard, stub.Classify, request, timeout=20, metadata=door.metadata)
                        found[status] += 1
                packed = v1.ClassifyRequest(image=bytes(12 * _MIB))
                gzip = {"metadata": door.metadata, "compression": grpc.Compression.Gzip}
                _, status = outcome(heard, stub.Classify, packed, timeout=20, **gzip)
                found[status] += 1
        squeezed = zlib.compress(bytes(100 * _MIB), 9)
        found[
            exchange(deployment.envoy, [post("/v1/classify", squeezed, _WITH_KEY, "content-encoding: deflate")], heard)
        ] += 1
        expected = {"INVALID_ARGUMENT IMAGE_REFUSED", "UNIMPLEMENTED", "400"}
        return tally(found), set(found) <= expected

    result = beside_neighbours(ground, attack)
    result.held &= result.numbers["memory_grown_mb"] < KEPT_MB
    return result


def _seen_by_strangers(ground: Ground) -> Outcome:
    def attack(deployment: Deployment, heard: Heard) -> tuple[str, bool]:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        request, found = service_pb2.ModelConfigRequest(name="full"), Counter[str]()
        for door in deployment.doors:
            with door.channel() as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                _, status = outcome(heard, stub.ModelConfig, request, timeout=10, metadata=door.metadata)
                found[status] += 1
        with grpc.insecure_channel(deployment.facts["grpc_url"]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            config, status = outcome(heard, stub.ModelConfig, request, timeout=10)
        place = config is not None and str(ground.bundle.path.absolute()) in str(config)
        listed = [pid for pid in _everyone(deployment) if KEY.secret in command_of(pid)]
        happened = (
            f"model configuration at both doors: {tally(found)}; at Triton's own address: {status}, "
            f"{'with' if place else 'without'} the bundle's path; keys in {len(listed)} process arguments"
        )
        return happened, set(found) == {"UNIMPLEMENTED"} and not place and not listed

    return beside_neighbours(ground, attack)


def bombs() -> list[bytes]:
    """Files of a few bytes that say they are enormous, and one that unpacks a text of 200 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def picture(side: int, *more: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + rows + chunk(b"IEND", b"")

    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200 * _MIB), 9))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    bitmap = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return [picture(60_000), picture(400, text), gif, bitmap]


def _plain(deployment: Deployment, port: int, data: bytes, heard: Heard) -> str:
    from dataclasses import replace

    return exchange(replace(deployment.gateway, url=f"127.0.0.1:{port}"), [data], heard)


def _everyone(deployment: Deployment) -> set[int]:
    pids = deployment.pids()
    return {deployment.pid, *pids.values(), *group(pids[TRITON]), *group(pids[GATEWAY])}


def _listening_elsewhere(deployment: Deployment) -> set[str]:
    """Addresses beside loopback at which a process of the service listens."""
    owned = set()
    for pid in _everyone(deployment):
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                owned.add(entry.readlink().name)
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned and not host.endswith("0100007F"):
                found.add(f"{host}:{int(port, 16)}")
    return found


ROWS = (
    Row(
        name="large-bodies",
        tried="A body of 30 MB to six paths of Envoy, with a key and without, and to the gateway's metrics port",
        must="Refused. Triton's HTTP is off, and no port of Triton or the gateway is open to other machines",
        run=_large_bodies,
    ),
    Row(
        name="deep-json",
        tried="80 KB of nested JSON; 600,000 chunks of one byte",
        must="Refused with 400 or 413",
        run=_deep_json,
    ),
    Row(
        name="lying-shape",
        tried="ModelInfer with shape 2**32 and one image's bytes, in a loop, at the gateway and at Envoy",
        must="UNIMPLEMENTED: nothing that a caller sends reaches Triton",
        run=_lying_shape,
    ),
    Row(
        name="huge-messages",
        tried="A request id of 200 MB, a message of 300 MB, 200 MB in gzip, at both doors",
        must=f"Refused, and less than {KEPT_MB:g} MB of it kept",
        run=_huge_messages,
    ),
    Row(
        name="bombs",
        tried="Images of 60,000 x 60,000 pixels in a few bytes (PNG, GIF, BMP), a PNG with 200 MB of packed text, gzip",
        must=f"Refused, and less than {KEPT_MB:g} MB of it kept",
        run=_bombs,
    ),
    Row(
        name="seen-by-strangers",
        tried="Triton's model configuration asked for; the process list read",
        must="No path of the bundle, no key",
        run=_seen_by_strangers,
    ),
)
