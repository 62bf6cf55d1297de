"""HTTP/2 written byte by byte, for callers that no library would play."""

import re
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9  # kinds of frames
END_STREAM, END_HEADERS = 1, 4  # flags


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header as HPACK writes it when it remembers nothing; both shorter than 127 bytes."""
    return b"\x10" + b"".join(bytes([len(each)]) + each.encode() for each in (name, value))


def read_frame(line: socket.socket) -> tuple[int, int, int, bytes] | None:
    """(kind, flags, stream, payload) of the next frame; None where there is no other."""

    def read(count: int) -> bytes:
        data = b""
        while len(data) < count and (more := line.recv(count - len(data))):
            data += more
        return data

    if len(head := read(9)) < 9:
        return None
    payload = read(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big"), payload


def headers_of(method: str, **more: str) -> bytes:
    """The headers of a call of fieldmark.v1, as HPACK writes them; `more` are others, with _ for -."""
    head = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/fieldmark.v1.Fieldmark/{method}",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return b"".join(literal(name, value) for name, value in head.items())


def call(line: socket.socket, method: str, data: bytes, *, end: bool = True, **more: str) -> tuple[int, str]:
    """(gRPC's status, its sentence) of a call of fieldmark.v1 whose body is these bytes; `more` are other headers.

    -1 where the stream is reset or the connection ends without a status.
    """
    line.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, headers_of(method, **more)))
    line.sendall(frame(DATA, END_STREAM if end else 0, 1, data))
    while (found := read_frame(line)) is not None:
        kind, flags, _, payload = found
        if kind == RST_STREAM:
            break
        if kind == HEADERS and flags & END_STREAM:
            status = re.search(rb"grpc-status.(\d+)", payload, re.DOTALL)
            sentence = re.search(rb"grpc-message.([ -~]*)", payload, re.DOTALL)
            return int(status[1]) if status else -1, sentence[1].decode() if sentence else ""
    return -1, ""
