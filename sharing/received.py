"""Check a package wherever it lies: a stranger may have written it, so nothing in it is followed, run or trusted."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_mod.raw_dataset import LABELS, PNG, dataset_json
from sharing.card import render_card
from sharing.errors import (
    ASK,
    MAX_REASONS,
    SAME_RELEASE,
    SEND_AGAIN,
    PackageError,
    Reason,
    RefusedFileError,
    said,
    shown,
)
from sharing.folder import MANIFEST_BYTES_PER_FILE, Blocks, Stamp, examine, list_package, read_document, typed
from sharing.pictures import check_volume, read_png
from sharing.schema import (
    CARD,
    DATASET,
    DOCUMENTS,
    FIGURES,
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    PrivacyFigures,
    faults_of_figures,
    faults_of_manifest,
    is_case_name,
    telling_texts,
)
from sharing.shared_audit import Fault, SharedAudit
from sharing.strict_json import MAX_JSON_BYTES

NAMES_OF_MANY = ("root", "localhost")  # of users and machines; an anatomical label may be a root as well
MIN_NAME_CHARS = 3  # a machine called "a" is in every text


@dataclass(frozen=True)
class Package:
    """A package that was checked; only the files that its manifest names may be read."""

    folder: Path
    manifest: Manifest
    n_bytes: int
    audit: SharedAudit


def verify_package(folder: Path, *, written_here: bool = False) -> Package:
    """Check a package: its folder, its JSON, its list of files, then every file; each step trusts only those before.

    Args:
        written_here: it was written on this machine, so no text may name the machine or its user.

    Raises:
        PackageError: what the first step that found something has found.
    """
    here = _names_of_here() if written_here else ()

    def refuse(reasons: Iterable[Reason]) -> None:
        """A stranger's package is not searched for thousands of reasons."""
        found = list(islice(reasons, MAX_REASONS))
        if found:
            raise PackageError(folder, found)

    # the folder: names, kinds and sizes of its files; nothing is followed, and none is opened
    stamps = list_package(folder)

    # the manifest: its schema, the bounds of its values, and no text that tells of a machine or a file
    max_bytes = MAX_JSON_BYTES + MANIFEST_BYTES_PER_FILE * len(stamps)
    content = read_document(folder, MANIFEST, stamps[MANIFEST], max_bytes=max_bytes)
    if content.get("schema_version") != SCHEMA_VERSION:
        problem = f"has schema_version {shown(content.get('schema_version'))}, not {SCHEMA_VERSION}"
        raise PackageError.of(folder, MANIFEST, problem, SAME_RELEASE)
    manifest = typed(Manifest, content, folder, MANIFEST)
    refuse(_reasons(MANIFEST, faults_of_manifest(manifest)))
    refuse(_telling(MANIFEST, {**content, "files": {}}, here))

    # the list of files: those that follow from the manifest, no more and no fewer
    refuse(_wrong_names(manifest, stamps))

    # the figures of the filter and the audit
    figures = read_document(folder, FIGURES, stamps[FIGURES], manifest.files[FIGURES])
    typed_figures = typed(PrivacyFigures, figures, folder, FIGURES)
    refuse(_reasons(FIGURES, faults_of_figures(typed_figures, manifest.n_images)))
    refuse(_telling(FIGURES, figures, here))

    # two texts follow from manifest and figures, so any difference is refused
    dataset = read_document(folder, DATASET, stamps[DATASET], manifest.files[DATASET])
    expected = dataset_json(manifest.channel_names, manifest.labels, manifest.n_cases, manifest.file_ending)
    for key in sorted({*dataset, *expected}):
        if dataset.get(key) != expected.get(key):
            said, wanted = shown(dataset.get(key)), shown(expected.get(key))
            raise PackageError.of(folder, DATASET, f"has {shown(key)} {said}; the manifest says {wanted}")
    card = _card(folder, stamps[CARD], manifest)
    if card != render_card(manifest, figures).encode():
        raise PackageError.of(folder, CARD, "says something else than the manifest and the figures", SAME_RELEASE)

    # images and labels: checksum, size, type, values, and no byte besides
    refuse(_wrong_pictures(folder, stamps, manifest))

    if list_package(folder) != stamps:
        raise PackageError.of(folder, "", "changed while it was checked", SEND_AGAIN)
    return Package(folder, manifest, sum(stamp.n_bytes for stamp in stamps.values()), typed_figures.audit)


def _wrong_names(manifest: Manifest, present: Mapping[str, Stamp]) -> Iterator[Reason]:
    """Names follow from site, case numbers, channels and file ending, so none can lead elsewhere or carry a message."""
    cases = [case for case in manifest.cases if is_case_name(case, manifest.site)]
    of_cases = {name for case in cases for name in (*manifest.images_of(case), manifest.labels_of(case))}
    possible = of_cases | set(DOCUMENTS)
    for name in sorted({*manifest.files, *possible, *(present.keys() - {MANIFEST})}):
        if name in manifest.files and name not in possible:
            yield Reason(name, f"is in the manifest and no file of a package of site {manifest.site}")
        elif name not in manifest.files:
            yield Reason(name, "is not in the manifest")
        elif name not in present:
            yield Reason(name, "is missing", SEND_AGAIN)
    if len(cases) != manifest.n_cases:
        yield Reason(MANIFEST, f"has n_cases {manifest.n_cases}; {LABELS} has {len(cases)}")


def _card(folder: Path, stamp: Stamp, manifest: Manifest) -> bytes:
    try:
        return examine(folder, CARD, stamp, manifest.files[CARD], b"".join)
    except RefusedFileError as error:
        raise PackageError.of(folder, CARD, error.problem, error.fix) from error


def _wrong_pictures(folder: Path, stamps: Mapping[str, Stamp], manifest: Manifest) -> Iterator[Reason]:
    n_images = 0
    for case in manifest.cases:
        n_slices: dict[str, int] = {}
        for name in (*manifest.images_of(case), manifest.labels_of(case)):
            check = partial(_count_slices, name=name, manifest=manifest)
            try:
                n_slices[name] = examine(folder, name, stamps[name], manifest.files[name], check)
            except RefusedFileError as error:
                yield Reason(name, error.problem, error.fix)
        labels = manifest.labels_of(case)
        for name, n in n_slices.items():
            if n != n_slices.get(labels, n):
                yield Reason(labels, f"has {n_slices[labels]} slices; {name} has {n}")
        n_images += max(n_slices.values(), default=0)
    if n_images != manifest.n_images:
        yield Reason(MANIFEST, f"has n_images {manifest.n_images}; the files hold {n_images}")


def _count_slices(blocks: Blocks, name: str, manifest: Manifest) -> int:
    """Check one picture; returns how many slices it has."""
    is_label = name.startswith(f"{LABELS}/")
    dtype = "uint8" if is_label else manifest.dtype
    check_values = partial(_check_labels, labels=manifest.labels) if is_label else _check_finite
    if manifest.file_ending != PNG:
        return check_volume(blocks, manifest.image_size_px, dtype, manifest.spacing_mm, check_values)
    n_channels = 3 if manifest.rgb and not is_label else 1
    check_values(read_png(blocks, manifest.image_size_px, dtype, n_channels))
    return 1


def _check_labels(values: np.ndarray, labels: Mapping[str, int]) -> None:
    unknown = set(np.unique(values).tolist()) - {0, *labels.values()}
    if unknown:
        raise RefusedFileError(f"holds the label {min(unknown)}; the manifest names {shown(sorted(labels.values()))}")


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise RefusedFileError("holds a value that is not finite")


def _reasons(name: str, faults: Iterable[Fault]) -> Iterator[Reason]:
    return (Reason(name, said(fault), ASK) for fault in faults)


def _telling(name: str, content: Mapping[str, Any], here: Sequence[str]) -> Iterator[Reason]:
    return (Reason(name, f"holds {what}: {shown(text)}") for text, what in telling_texts(content, here))


def _names_of_here() -> tuple[str, ...]:
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = ""
    names = {host, host.split(".")[0], user}
    return tuple(sorted(name for name in names if len(name) >= MIN_NAME_CHARS and name not in NAMES_OF_MANY))
