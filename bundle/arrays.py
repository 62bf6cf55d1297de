"""NumPy's .npz archives from strangers: nothing is unpickled, and nothing takes more memory than its file has bytes.

`np.load` believes what a file says of itself: a few kilobytes that unpack to gigabytes, or an array of 10^12 numbers
that are not there.
"""

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import first_line
from bundle.files import open_regular

SUFFIX = ".npy"
KINDS = "biufU"  # what an array may hold: truth values, integers, floating-point numbers, text


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an archive by its name; raises ValueError for anything but what `np.savez` writes, or OSError."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
                _check(members, size)
                return {member.filename.removesuffix(SUFFIX): _array(archive.read(member)) for member in members}
        except OSError:
            raise
        except Exception as problem:  # both parsers raise whatever they meet on damaged data
            raise ValueError(first_line(problem)) from None


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("a name appears twice")
    for member in members:
        if not member.filename.endswith(SUFFIX):
            raise ValueError(f"{member.filename[:80]!r} is no array")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename[:80]!r} is compressed")
    if (total := sum(member.file_size for member in members)) > size:
        raise ValueError(f"its {size:,} bytes are said to hold {total:,}")


def _array(data: bytes) -> npt.NDArray[Any]:
    stream = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"an array has the unknown format {version}")
    shape, _, dtype = readers[version](stream)
    if dtype.kind not in KINDS or not dtype.itemsize:
        raise ValueError(f"an array has the type {str(dtype)[:80]!r}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array has not the size that its shape says")
    stream.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array
