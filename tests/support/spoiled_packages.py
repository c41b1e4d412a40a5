"""Ways to spoil a good package, one at a time: what a hostile or broken sender might hand over."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
from support.packages import GENERATOR, audit_of, chunk, edit, png, put, replace_text

from common.settings import from_dict
from sharing.card import render_card
from sharing.schema import Manifest

IMAGE, LABEL, VOLUME, STACK = (
    "imagesTr/A_syn_1_0000.png",
    "labelsTr/A_syn_1.png",
    "imagesTr/A_syn_1_0000.nii.gz",
    "labelsTr/A_syn_1.nii.gz",
)
ROWS = bytes(12 * 21)  # 12 rows of a filter and 20 pixels
BOMB_BYTES = 2**28

Mutation = Callable[[Path], object]


def manifest(**changes: object) -> Mutation:
    return lambda folder: edit(folder, "manifest.json", lambda content: content.update(changes))


def generator(**changes: object) -> Mutation:
    return manifest(generator={**GENERATOR, **changes})


def external(**changes: object) -> Mutation:
    """A generator that the receiver does not have."""
    return manifest(generator={"name": "mine", "external": True, "n_steps": 5, **changes})


def figures(**changes: object) -> Mutation:
    return lambda folder: edit(folder, "privacy.json", lambda content: content.update(changes))


def audit(**changes: object) -> Mutation:
    return figures(audit={**audit_of(), **changes})


def audit_without(key: str) -> Mutation:
    return figures(audit={name: value for name, value in audit_of().items() if name != key})


def figure(position: int = 1, **changes: object) -> Mutation:
    """Of leakage; the second is a share."""
    whole = audit_of()["figures"]
    return audit(figures=[one | (changes if i == position else {}) for i, one in enumerate(whole)])


def planted(**changes: object) -> Mutation:
    return audit(planted={**audit_of()["planted"], **changes})


def gate(position: int = 2, **changes: object) -> Mutation:
    """The third is one of leakage, the second that of planted copies, the first the share dropped."""
    whole = audit_of()["gates"]
    return audit(gates=[one | (changes if i == position else {}) for i, one in enumerate(whole)])


def text(name: str, old: str, new: str) -> Mutation:
    return lambda folder: replace_text(folder, name, old, new)


def listed(name: str) -> Mutation:
    """The manifest names one file more."""
    return lambda folder: edit(folder, "manifest.json", lambda content: content["files"].update({name: "0" * 64}))


def with_file(name: str, data: bytes) -> Mutation:
    """Signed: only the content can give it away."""
    return lambda folder: put(folder, name, data)


def slipped_in(name: str, data: bytes = b"") -> Mutation:
    """Not signed."""

    def mutate(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return mutate


def changed_bytes(name: str, change: Callable[[bytes], bytes]) -> Mutation:
    return lambda folder: put(folder, name, change((folder / name).read_bytes()))


def linked(name: str, link: Callable[[Path, Path], object]) -> Mutation:
    """The file lies outside, and what lies in the package leads to it."""

    def mutate(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        link(outside, folder / name)

    return mutate


def pipe(folder: Path) -> None:
    (folder / IMAGE).unlink()
    os.mkfifo(folder / IMAGE)


def listening_socket(folder: Path) -> None:
    (folder / LABEL).unlink()
    with contextlib.chdir(folder / "labelsTr"), socket.socket(socket.AF_UNIX) as end:  # such names must be short
        end.bind("A_syn_1.png")


def sparse(name: str, n_bytes: int) -> Mutation:
    return lambda folder: os.truncate(folder / name, n_bytes)


def volume_with(name: str = VOLUME, **fields: object) -> Mutation:
    """Signed, with other fields in the header."""

    def mutate(folder: Path) -> None:
        data = gzip.decompress((folder / name).read_bytes())
        header = nibabel.Nifti1Header(data[:348], check=False)
        for field, value in fields.items():
            header[field] = value
        put(folder, name, gzip.compress(header.binaryblock + data[348:], mtime=0))

    return mutate


def volume_data(change: Callable[[bytes], bytes], name: str = VOLUME) -> Mutation:
    return changed_bytes(name, lambda data: gzip.compress(change(gzip.decompress(data)), mtime=0))


def compressed_zeros(n_bytes: int, before: bytes = b"", wrapper: int = zlib.MAX_WBITS) -> bytes:
    stream = zlib.compressobj(9, wbits=wrapper)
    start = stream.compress(before)
    return b"".join([start, *(stream.compress(bytes(2**20)) for _ in range(n_bytes >> 20)), stream.flush()])


def png_bomb(folder: Path) -> None:
    whole = png(20, 12, b"")
    start = whole.index(b"IDAT") - 4
    put(folder, IMAGE, whole[:start] + chunk(b"IDAT", compressed_zeros(BOMB_BYTES)) + chunk(b"IEND", b""))


def volume_bomb(folder: Path) -> None:
    head = gzip.decompress((folder / VOLUME).read_bytes())[:352]
    put(folder, VOLUME, compressed_zeros(BOMB_BYTES, head, zlib.MAX_WBITS | 16))


def dicom(folder: Path) -> None:
    stored = chunk(b"IDAT", bytes(128 - 8 - 25 - 8) + b"DICM")
    put(folder, IMAGE, png(20, 12, ROWS).replace(chunk(b"IDAT", zlib.compress(ROWS)), stored))


def more_images(folder: Path) -> None:
    """Every text says so; only the files do not."""
    figures(n_kept=9, n_sampled=10, audit=audit_of(share=0.1))(folder)
    manifest(n_images=9)(folder)
    told, counted = (json.loads((folder / name).read_text()) for name in ("manifest.json", "privacy.json"))
    put(folder, "CARD.md", render_card(from_dict(Manifest, told), counted).encode())


def relabelled(folder: Path) -> None:
    put(folder, LABEL, png(20, 12, b"".join(b"\0" + bytes([7] * 20) for _ in range(12))))


def added_slice(data: bytes) -> bytes:
    header = nibabel.Nifti1Header(data[:348], check=False)
    header["dim"][3] += 1
    return header.binaryblock + data[348:] + bytes(12 * 20)
