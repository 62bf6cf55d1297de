"""How large AVIF and HEIC images are to their decoders, whatever size the container gives the picture in the end.

HEIC's decoder keeps to the size that the container declares before it crops. AVIF's makes room for the frame that the
data announce, up to 16384 x 16384, before anybody can see that it is not the size in the container's header. So what is
declared or announced is looked for first: ISO/IEC 14496-12 8.11, AV1 5.3 and 5.5.
"""

from collections.abc import Iterator

SEQUENCE_HEADER = 1
MAX_ITEMS, MAX_UNITS = 1000, 1000  # encoders write fewer than a hundred of both


def coded_pixels(data: bytes) -> int:
    """Pixels of the largest frame that any item of an AVIF file announces; raises ValueError where none can be told."""
    found = 0
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind == b"moov":
            raise ValueError("it is a film")
        if kind == b"meta":
            inner = {kind: (start, stop) for kind, start, stop in _boxes(data, begin + 4, end)}
            pictures = set(_pictures(data, *inner.get(b"iinf", (0, 0))))
            for number, item in _items(data, *inner.get(b"iloc", (0, 0)), inner.get(b"idat", (0, 0))[0]):
                if number in pictures:  # others hold text, which may look like anything
                    found = max(found, _announced(item))
    if not found:
        raise ValueError("no AV1 picture is in it")
    return found


def declared_pixels(data: bytes) -> int:
    """Pixels of the largest picture that a HEIC file declares, before it is cropped; 0 where it declares none."""
    found, places = 0, [(0, len(data))]
    for name, head in ((b"meta", 4), (b"iprp", 0), (b"ipco", 0), (b"ispe", 4)):
        inner = [_boxes(data, *place) for place in places]
        places = [(begin + head, end) for boxes in inner for kind, begin, end in boxes if kind == name]
    for begin, _ in places:
        width, height = (int.from_bytes(data[place : place + 4], "big") for place in (begin, begin + 4))
        found = max(found, width * height)
    return found


def _boxes(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the content of each box between two places."""
    while place + 8 <= end:
        size, kind, head = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        stop = end if size == 0 else min(end, place + size)
        if stop < place + head:
            return
        yield kind, place + head, stop
        place = stop


def _pictures(data: bytes, place: int, end: int) -> Iterator[int]:
    """Numbers of the items with AV1 data, from the box of item information at `place`."""
    if place == end:
        return
    for _, begin, stop in _boxes(data, place + (8 if data[place] else 6), end):
        wide = 4 if data[begin : begin + 1] == b"\3" else 2
        if data[begin + 6 + wide : min(begin + 10 + wide, stop)] == b"av01":
            yield int.from_bytes(data[begin + 4 : begin + 4 + wide], "big")


def _items(data: bytes, place: int, end: int, inside: int) -> Iterator[tuple[int, memoryview]]:
    """Number and data of each item that the box at `place` locates; `inside` is where the metadata hold data."""
    view, room, reader = memoryview(data), 2 * len(data), _Bits(data[place:end])
    try:
        version = reader(8)
        reader(24)
        offset, length, base, index = (reader(4) for _ in range(4))
        for count in range(reader(32 if version == 2 else 16)):
            number = reader(32 if version == 2 else 16)
            method = reader(16) & 15 if version else 0
            reader(16)
            start = reader(8 * base) + (inside if method == 1 else 0)
            parts = []
            for _ in range(reader(16)):
                reader(8 * index if version else 0)
                begin = start + reader(8 * offset)
                parts.append(view[begin : begin + (reader(8 * length) or len(data))])
            room -= sum(map(len, parts))
            if count >= MAX_ITEMS or room < 0:
                raise ValueError("its items are too many")
            yield number, parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    except IndexError:  # it is cut off
        return


def _announced(item: memoryview) -> int:
    """Pixels of the largest frame in the sequence headers of an item's data; 0 where they are no AV1 data."""
    found, place = 0, 0
    for _ in range(MAX_UNITS):
        if place >= len(item):
            return found
        kind, extended, sized = item[place] >> 3 & 15, item[place] >> 2 & 1, item[place] >> 1 & 1
        place += 1 + extended
        end = len(item)
        if sized:
            size = shift = 0
            while place < end and shift < 56:
                byte, place = item[place], place + 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            end = min(end, place + size)
        if kind == SEQUENCE_HEADER:
            found = max(found, _frame(_Bits(bytes(item[place : min(end, place + 512)]))))
        place = end
    raise ValueError("its units are too many")


class _Bits:
    """Numbers of so many bits each, one after the other; raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def __call__(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.place >> 3] >> (7 - (self.place & 7)) & 1
            self.place += 1
        return value


def _frame(bits: _Bits) -> int:
    """Width times height of a sequence header (AV1 5.5.1); 0 where it is none."""
    try:
        if bits(3) > 2:  # a profile that there is not
            return 0
        bits(1)
        if bits(1):  # reduced header
            bits(5)
        else:
            _operating_points(bits)
        across, down = bits(4) + 1, bits(4) + 1
        return (bits(across) + 1) * (bits(down) + 1)
    except IndexError:
        return 0


def _operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits(1):  # timing information
        bits(64)
        if bits(1):  # equal picture interval
            zeros = 0
            while not bits(1):
                zeros += 1
            bits(zeros if zeros < 32 else 0)
        if bits(1):  # decoder model
            delay_bits = bits(5) + 1
            bits(42)
    display_delays = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits(1)
        if delay_bits and bits(1):
            bits(2 * delay_bits + 1)
        if display_delays and bits(1):
            bits(4)
