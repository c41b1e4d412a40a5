"""Inflating a stranger's bytes: in pieces, never more than was declared, and nothing left behind the end."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from sharing.refusal import SEND_AGAIN, RefusedFileError

ZLIB, GZIP = zlib.MAX_WBITS, zlib.MAX_WBITS | 16  # the wrappers of PNG and of .gz
PIECE_BYTES = 2**20  # memory for inflated bytes, whatever a file inflates to


def inflated(blocks: Iterator[bytes], wrapper: int) -> Iterator[bytes]:
    """Pieces of at most ``PIECE_BYTES``; a reader that has enough stops asking.

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


def exactly(pieces: Iterator[bytes], n_bytes: int) -> Iterator[bytes]:
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
