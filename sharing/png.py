"""A stranger's PNG: the three chunks that our writer makes, the size that was declared, and no byte more."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from sharing.inflate import ZLIB, exactly, inflated
from sharing.refusal import SEND_AGAIN, RefusedFileError, shown

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_OVERHEAD_BYTES = 12  # length, name and CRC
KINDS = {  # (bits, colour type) -> dtype and channels
    (8, 0): ("uint8", 1),
    (16, 0): ("uint16", 1),
    (8, 2): ("uint8", 3),
}


def read_png(blocks: Iterator[bytes], size_px: tuple[int, int], dtype: str, n_channels: int) -> np.ndarray:
    """Pixels (height, width[, 3]); nothing is inflated before the header has said what was expected.

    Raises:
        RefusedFileError: no PNG, other chunks than IHDR, IDAT and IEND, another size or kind, or bytes too many.
    """
    data = b"".join(blocks)
    if not data.startswith(SIGNATURE):
        raise RefusedFileError(f"is no PNG; it starts with {data[:8]!r}")
    header, *parts = _chunks(data)
    _check_header(header, size_px, dtype, n_channels)
    n_row_bytes = 1 + size_px[1] * n_channels * np.dtype(dtype).itemsize  # each row names its filter first
    for _ in exactly(inflated(iter(parts), ZLIB), size_px[0] * n_row_bytes):
        continue
    return _decoded(data)


def _chunks(data: bytes) -> list[bytes]:
    """Contents of IHDR and of every IDAT."""
    contents: list[bytes] = []
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        if at + CHUNK_OVERHEAD_BYTES > len(data):
            raise RefusedFileError("ends before its last chunk", SEND_AGAIN)
        length, name = struct.unpack_from(">I4s", data, at)
        if name not in ((b"IDAT", b"IEND") if contents else (b"IHDR",)):
            raise RefusedFileError(f"has the chunk {shown(name)}, which can hold more than pixels")
        content, at = data[at + 8 : at + 8 + length], at + CHUNK_OVERHEAD_BYTES + length
        if at > len(data) or zlib.crc32(name + content) != int.from_bytes(data[at - 4 : at], "big"):
            raise RefusedFileError(f"has a broken chunk {shown(name)}", SEND_AGAIN)
        contents.append(content)
    if at != len(data) or contents.pop():
        raise RefusedFileError(f"has {max(len(data) - at, length)} bytes after its last row")
    return contents


def _check_header(header: bytes, size_px: tuple[int, int], dtype: str, n_channels: int) -> None:
    if len(header) != 13:
        raise RefusedFileError(f"has a header of {len(header)} bytes")
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", header)
    if (height, width) != size_px:
        raise RefusedFileError(f"is {height} x {width} pixels; the manifest says {size_px[0]} x {size_px[1]}")
    if KINDS.get((bits, colour)) != (dtype, n_channels) or any(methods):
        said = f"{bits} bits of colour type {colour}, methods {methods}"
        raise RefusedFileError(f"holds {said}; the manifest says {dtype} with {n_channels} channels in a file")


def _decoded(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    except (OSError, SyntaxError, ValueError) as error:
        raise RefusedFileError(f"cannot be decoded ({shown(str(error))})", SEND_AGAIN) from error
