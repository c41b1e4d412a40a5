"""A stranger's compressed NIfTI: a header that says size, type and spacing and nothing else, then voxels, streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import nibabel
import numpy as np
from nibabel.nifti1 import header_dtype

from sharing.inflate import GZIP, exactly, inflated
from sharing.refusal import RefusedFileError, shown

HEADER_BYTES = 352  # NIfTI's 348 and the four that say: no extensions
MAX_VOLUME_PX = 2**28  # 256 slices of 1024 x 1024; whoever trains on it loads 1 GiB as float32
GZIP_HEAD = b"\x1f\x8b\x08" + bytes(5)  # deflate; no name, comment or other field, no time
FREE_FIELDS = ("regular",)  # "r" by tradition, or nothing
MILLIMETRES_AND_SECONDS, SCANNER = 10, 1


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
    pieces = inflated(_after(first, blocks), GZIP)
    head = b""
    while len(head) < HEADER_BYTES and (piece := next(pieces, b"")):
        head += piece
    n_slices = _check_header(head[:HEADER_BYTES], size_px, np.dtype(dtype), spacing_mm)
    n_bytes = n_slices * math.prod(size_px) * np.dtype(dtype).itemsize
    for voxels in _whole_voxels(exactly(_after(head[HEADER_BYTES:], pieces), n_bytes), np.dtype(dtype)):
        check_voxels(voxels)
    return n_slices


def _after(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _whole_voxels(pieces: Iterator[bytes], dtype: np.dtype) -> Iterator[np.ndarray]:
    rest = b""
    for piece in pieces:
        rest += piece
        n_whole = len(rest) - len(rest) % dtype.itemsize
        yield np.frombuffer(rest[:n_whole], dtype)
        rest = rest[n_whole:]


def _check_header(head: bytes, size_px: tuple[int, int], dtype: np.dtype, spacing_mm: Sequence[float]) -> int:
    if len(head) < HEADER_BYTES:
        raise RefusedFileError(f"inflates to {len(head)} bytes, less than the header of a NIfTI file")
    header = np.frombuffer(head[: header_dtype.itemsize], header_dtype.newbyteorder("<"))[0]
    n_slices = int(header["dim"][3])
    if n_slices < 1 or n_slices * math.prod(size_px) > MAX_VOLUME_PX:
        raise RefusedFileError(f"declares {n_slices} slices; at least 1, and {MAX_VOLUME_PX} voxels in all")
    expected = _expected_header(n_slices, size_px, dtype, spacing_mm)
    for field in header_dtype.names or ():
        if field not in FREE_FIELDS and not _same(header[field], expected[field]):
            said, wanted = shown(header[field].tolist()), shown(expected[field].tolist())
            raise RefusedFileError(f"has {said} in the header's field {field}, not {wanted}")
    if any(head[header_dtype.itemsize :]):
        raise RefusedFileError("has header extensions")
    return n_slices


def _same(value: np.ndarray, expected: np.ndarray) -> bool:
    if expected.dtype.kind == "f":
        return bool(np.allclose(value, expected, rtol=1e-5, atol=0))
    return bool(np.array_equal(value, expected))


def _expected_header(n_slices: int, size_px: tuple[int, int], dtype: np.dtype, spacing_mm: Sequence[float]) -> np.void:
    """What SimpleITK writes for an array in no patient's coordinates: NIfTI's x and y point the other way."""
    header = nibabel.Nifti1Header()
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
