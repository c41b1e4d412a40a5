"""A stranger's pictures: PNG and compressed NIfTI with what our writer makes, the size that was declared, and no more.

Nothing is inflated before a header has said what was expected, and never more than that.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sharing.errors import SEND_AGAIN, RefusedFileError, shown

ZLIB, GZIP = zlib.MAX_WBITS, zlib.MAX_WBITS | 16  # the wrappers of PNG and of .gz
PIECE_BYTES = 2**20  # memory for inflated bytes, whatever a file inflates to

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_OVERHEAD_BYTES = 12  # length, name and CRC
PNG_KINDS = {(8, 0): ("uint8", 1), (16, 0): ("uint16", 1), (8, 2): ("uint8", 3)}  # bits, colour type: dtype, channels

HEADER_BYTES = 352  # NIfTI's 348 and the four that say: no extensions
MAX_VOLUME_PX = 2**28  # 256 slices of 1024 x 1024; whoever trains on it loads 1 GiB as float32
GZIP_HEAD = b"\x1f\x8b\x08" + bytes(5)  # deflate; no name, comment or other field, no time
FREE_FIELDS = ("regular",)  # "r" by tradition, or nothing
MILLIMETRES_AND_SECONDS, SCANNER = 10, 1


def read_png(blocks: Iterator[bytes], size_px: tuple[int, int], dtype: str, n_channels: int) -> np.ndarray:
    """Pixels (height, width[, 3]) of a PNG of the three chunks that our writer makes.

    Raises:
        RefusedFileError: no PNG, other chunks than IHDR, IDAT and IEND, another size or kind, or bytes too many.
    """
    from PIL import Image

    data = b"".join(blocks)
    if not data.startswith(PNG_SIGNATURE):
        raise RefusedFileError(f"is no PNG; it starts with {data[:8]!r}")
    header, *parts = _chunks(data)

    # the header: size, bits and colours of the manifest
    if len(header) != 13:
        raise RefusedFileError(f"has a header of {len(header)} bytes")
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", header)
    if (height, width) != size_px:
        raise RefusedFileError(f"is {height} x {width} pixels; the manifest says {size_px[0]} x {size_px[1]}")
    if PNG_KINDS.get((bits, colour)) != (dtype, n_channels) or any(methods):
        said = f"{bits} bits of colour type {colour}, methods {methods}"
        raise RefusedFileError(f"holds {said}; the manifest says {dtype} with {n_channels} channels in a file")

    # the rows, each of which names its filter first: as many bytes as the header declares
    n_row_bytes = 1 + width * n_channels * np.dtype(dtype).itemsize
    for _ in _exactly(_inflated(iter(parts), ZLIB), height * n_row_bytes):
        continue
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    except (OSError, SyntaxError, ValueError) as error:
        raise RefusedFileError(f"cannot be decoded ({shown(str(error))})", SEND_AGAIN) from error


def check_volume(
    blocks: Iterator[bytes],
    size_px: tuple[int, int],
    dtype: str,
    spacing_mm: Sequence[float],
    check_voxels: Callable[[np.ndarray], None],
) -> int:
    """The number of slices, each of ``size_px``; ``check_voxels`` sees the voxels piece by piece.

    Raises:
        RefusedFileError: no such file, a header with anything of its own, or more or fewer voxels than it declares.
    """
    first = next(blocks, b"")
    if not first.startswith(GZIP_HEAD):
        raise RefusedFileError(f"is no gzip file without a name and a time; it starts with {first[:8]!r}")
    pieces = _inflated(itertools.chain([first], blocks), GZIP)
    head = b""
    while len(head) < HEADER_BYTES and (piece := next(pieces, b"")):
        head += piece
    if len(head) < HEADER_BYTES:
        raise RefusedFileError(f"inflates to {len(head)} bytes, less than the header of a NIfTI file")

    # the header: every field is what our writer writes for this size, type and spacing
    from nibabel.nifti1 import header_dtype

    header = np.frombuffer(head[: header_dtype.itemsize], header_dtype.newbyteorder("<"))[0]
    n_slices = int(header["dim"][3])
    if n_slices < 1 or n_slices * math.prod(size_px) > MAX_VOLUME_PX:
        raise RefusedFileError(f"declares {n_slices} slices; at least 1, and {MAX_VOLUME_PX} voxels in all")
    expected = _expected_header(n_slices, size_px, np.dtype(dtype), spacing_mm)
    for field in header_dtype.names or ():
        if field not in FREE_FIELDS and not _same(header[field], expected[field]):
            said, wanted = shown(header[field].tolist()), shown(expected[field].tolist())
            raise RefusedFileError(f"has {said} in the header's field {field}, not {wanted}")
    if any(head[header_dtype.itemsize : HEADER_BYTES]):
        raise RefusedFileError("has header extensions")

    # the voxels: as many bytes as the header declares, in pieces of whole voxels
    n_bytes = n_slices * math.prod(size_px) * np.dtype(dtype).itemsize
    rest = b""
    for piece in _exactly(itertools.chain([head[HEADER_BYTES:]], pieces), n_bytes):
        rest += piece
        n_whole = len(rest) - len(rest) % np.dtype(dtype).itemsize
        check_voxels(np.frombuffer(rest[:n_whole], dtype))
        rest = rest[n_whole:]
    return n_slices


def _chunks(data: bytes) -> list[bytes]:
    """Contents of IHDR and of every IDAT."""
    contents: list[bytes] = []
    at, name = len(PNG_SIGNATURE), b""
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


def _same(value: np.ndarray, expected: np.ndarray) -> bool:
    if expected.dtype.kind == "f":
        return bool(np.allclose(value, expected, rtol=1e-5, atol=0))
    return bool(np.array_equal(value, expected))


def _expected_header(n_slices: int, size_px: tuple[int, int], dtype: np.dtype, spacing_mm: Sequence[float]) -> np.void:
    """What SimpleITK writes for an array in no patient's coordinates: NIfTI's x and y point the other way."""
    from nibabel import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape((size_px[1], size_px[0], n_slices))
    through_mm, row_mm, column_mm = spacing_mm
    header.set_sform(np.diag([-column_mm, -row_mm, through_mm, 1.0]), SCANNER)
    header.set_qform(np.diag([-column_mm, -row_mm, through_mm, 1.0]), SCANNER)
    header["pixdim"][4:] = 0
    header["xyzt_units"] = MILLIMETRES_AND_SECONDS
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = HEADER_BYTES
    fields: np.void = header.structarr[()]
    return fields


def _inflated(blocks: Iterator[bytes], wrapper: int) -> Iterator[bytes]:
    """Inflated pieces of at most ``PIECE_BYTES``, made as the reader asks for them.

    Raises:
        RefusedFileError: a broken or truncated stream, or bytes after its end.
    """
    stream = zlib.decompressobj(wrapper)
    for block in blocks:
        if stream.eof:
            raise RefusedFileError("has bytes after the end of its compressed data")
        left = block
        while left or not stream.eof:
            try:
                piece = stream.decompress(left, PIECE_BYTES)
            except zlib.error as error:
                raise RefusedFileError(f"is compressed wrongly ({error})", SEND_AGAIN) from error
            left = stream.unconsumed_tail
            if piece:
                yield piece
            elif not left:
                break
        if stream.unused_data:
            raise RefusedFileError("has bytes after the end of its compressed data")
    if not stream.eof:
        raise RefusedFileError("ends in the middle of its compressed data", SEND_AGAIN)


def _exactly(pieces: Iterator[bytes], n_bytes: int) -> Iterator[bytes]:
    """The pieces, which must have ``n_bytes`` together.

    Raises:
        RefusedFileError: as soon as there are more, or when there are fewer.
    """
    n_seen = 0
    for piece in pieces:
        n_seen += len(piece)
        if n_seen > n_bytes:
            raise RefusedFileError(f"inflates to more than the {n_bytes} bytes that its header declares")
        yield piece
    if n_seen < n_bytes:
        raise RefusedFileError(f"inflates to {n_seen} bytes; its header declares {n_bytes}")
