"""A stranger's folder: it is listed without following links; its files are read once, within bounds, and hashed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from common.settings import from_dict
from nnunetv2_mod.raw_dataset import IMAGES, LABELS
from sharing.errors import SAME_RELEASE, SEND_AGAIN, PackageError, Reason, RefusedFileError, shown
from sharing.schema import MANIFEST, MAX_FILES
from sharing.strict_json import MAX_JSON_BYTES, parse_json

T = TypeVar("T")
Blocks = Iterator[bytes]

BLOCK_BYTES = 2**20
DICOM_AT, DICOM = 128, b"DICM"  # a preamble may be anything, so one file can be two
MAX_PNG_BYTES = 2**26  # read whole; the largest image allowed has 2**25.6 bytes before compression
MAX_VOLUME_BYTES = 2**30  # streamed; the largest volume allowed, not compressed at all
MANIFEST_BYTES_PER_FILE = 256  # a name, a checksum and what stands between; a long list needs as many real files

_NAME = re.compile(
    r"(imagesTr/[A-Za-z0-9][A-Za-z0-9_.-]{0,90}_\d{4}\.(png|nii\.gz)"
    r"|labelsTr/[A-Za-z0-9][A-Za-z0-9_.-]{0,90}\.(png|nii\.gz)|(manifest|dataset|privacy)\.json|CARD\.md)",
    re.ASCII,
)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
CHANGED = "changed while it was checked"


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was listed."""

    device: int
    inode: int
    n_bytes: int
    modified_ns: int
    changed_ns: int


def list_package(folder: Path) -> dict[str, Stamp]:
    """The files of a package by name, slashes between folders; no link is followed and no file opened.

    Raises:
        PackageError: no folder, too many files, or a file that cannot belong to a package.
    """
    stamps: dict[str, Stamp] = {}
    reasons: list[Reason] = []
    for n_entries, (name, status) in enumerate(_entries(folder)):
        if n_entries >= MAX_FILES:
            raise PackageError.of(folder, "", f"holds more than {MAX_FILES} files")
        fault = _fault(name, status)
        if fault:
            reasons.append(Reason(name, fault))
        if not stat.S_ISDIR(status.st_mode):
            stamps[name] = stamp_of(status)
    if MANIFEST not in stamps:
        reasons.append(Reason(MANIFEST, "is missing", SEND_AGAIN))
    if reasons:
        raise PackageError(folder, sorted(reasons, key=lambda reason: reason.file))
    return stamps


def read_document(
    folder: Path, name: str, stamp: Stamp, checksum: str | None = None, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The object in one of a stranger's JSON files.

    Raises:
        PackageError: see ``examine`` and ``parse_json``.
    """
    try:
        return examine(folder, name, stamp, checksum, lambda blocks: parse_json(b"".join(blocks), max_bytes))
    except RefusedFileError as error:
        raise PackageError.of(folder, name, error.problem, error.fix) from error


def typed(cls: type[T], content: Mapping[str, Any], folder: Path, name: str) -> T:
    """The object in ``name`` as the dataclass that lists its keys.

    Raises:
        PackageError: another key, or a value of another type.
    """
    try:
        return from_dict(cls, content)
    except TypeError as error:
        raise PackageError.of(folder, name, shown(str(error)), SAME_RELEASE) from error


def list_only(folder: Path, name: str, max_bytes: int) -> Stamp:
    """The one file that a folder may hold.

    Raises:
        PackageError: no folder, another file, or none that may be read.
    """
    try:
        with _opened_folder(folder, follow=True) as root:
            entries = dict(islice(_scan(root), 2))
    except OSError as error:
        raise PackageError.of(folder, "", f"cannot be read ({error.strerror})", SEND_AGAIN) from error
    status = entries.get(name)
    if status is None or len(entries) != 1:
        raise PackageError.of(folder, name, f"is missing, or {shown(sorted(entries))} lie beside it", SEND_AGAIN)
    fault = _fault_of_file(status, max_bytes)
    if fault:
        raise PackageError.of(folder, name, fault)
    return stamp_of(status)


def examine(folder: Path, name: str, stamp: Stamp, checksum: str | None, check: Callable[[Blocks], T]) -> T:
    """What ``check`` says about a file's blocks; the bytes it sees are those that are hashed.

    Raises:
        RefusedFileError: what ``check`` raises, another checksum, or a file that changes.
    """
    digest = hashlib.sha256()
    refusal: RefusedFileError | None = None
    with _opened(folder / name) as stream:
        if stamp_of(os.fstat(stream.fileno())) != stamp:
            raise RefusedFileError(CHANGED, SEND_AGAIN)
        if stream.read(DICOM_AT + len(DICOM))[DICOM_AT:] == DICOM:
            raise RefusedFileError("is a DICOM file")
        stream.seek(0)
        blocks = _hashed_blocks(stream, stamp.n_bytes, digest.update)
        try:
            answer = check(blocks)
        except RefusedFileError as error:
            refusal = error
        for _ in blocks:  # what the check left unread counts as well
            continue
        if stamp_of(os.fstat(stream.fileno())) != stamp:
            raise RefusedFileError(CHANGED, SEND_AGAIN)
    if checksum is not None and digest.hexdigest() != checksum:
        raise RefusedFileError(f"is not what its checksum {checksum} says", SEND_AGAIN)
    if refusal is not None:
        raise refusal
    return answer


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with _opened_folder(folder, follow=True) as root:
            for name, status in _scan(root):
                yield name, status
                if name in (IMAGES, LABELS) and stat.S_ISDIR(status.st_mode):
                    with _opened_folder(folder / name, follow=False) as inner:
                        yield from ((f"{name}/{file}", status) for file, status in _scan(inner))
    except OSError as error:
        raise PackageError.of(
            folder, "", f"cannot be read ({error.strerror})", "give the folder of a package"
        ) from error


@contextmanager
def _opened_folder(folder: Path, *, follow: bool) -> Iterator[int]:
    """The receivers may name the package by a link of their own; inside it none is followed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _scan(descriptor: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            yield entry.name, entry.stat(follow_symlinks=False)


def _fault(name: str, status: os.stat_result) -> str | None:
    """Why an entry of the folder cannot belong to a package, or None."""
    if stat.S_ISDIR(status.st_mode) and name in (IMAGES, LABELS):
        return None
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not _NAME.fullmatch(name):
        return "is no name of a file in a package"
    return _fault_of_file(status, _max_bytes(name))


def _fault_of_file(status: os.stat_result, max_bytes: int) -> str | None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        return f"is {_KINDS.get(kind, 'no regular file')}, which no package holds"
    if status.st_nlink > 1:
        return f"is one of {status.st_nlink} hard links to the same bytes"
    return f"has {status.st_size} bytes, more than {max_bytes}" if status.st_size > max_bytes else None


def _max_bytes(name: str) -> int:
    if name == MANIFEST:
        return MAX_JSON_BYTES + MANIFEST_BYTES_PER_FILE * MAX_FILES
    if name.endswith(".png"):
        return MAX_PNG_BYTES
    return MAX_VOLUME_BYTES if name.endswith(".nii.gz") else MAX_JSON_BYTES


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells the file of that status from another, or from a later state of itself."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, but not through a link, and without waiting for the other end of a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise RefusedFileError(f"cannot be read ({shown(error.strerror)})", SEND_AGAIN) from error
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def _hashed_blocks(stream: BinaryIO, n_bytes: int, update: Callable[[bytes], None]) -> Blocks:
    """At most ``n_bytes`` of the file, even if it grows."""
    while n_bytes > 0 and (block := stream.read(min(BLOCK_BYTES, n_bytes))):
        n_bytes -= len(block)
        update(block)
        yield block
