"""Write and verify a site's package: a valid nnU-Net raw dataset with a minimal manifest, privacy figures and a card.

The original copied a real patient's metadata into every synthetic case (D28). Here every field that leaves is listed
in ``PackageFacts`` and ``manifest.json`` and nothing else is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_path, read_json, sha256_of_file, write_json, write_text
from sharing.card import render_card

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_KEYS = {
    "schema_version",
    "written_by",
    "site",
    "n_cases",
    "n_images",
    "channel_names",
    "labels",
    "file_ending",
    "spacing_mm",
    "intensity_space",
    "generator",
    "files",
}
ALLOWED_FILE = re.compile(
    r"(imagesTr/[\w.-]+_\d{4}\.(png|nii\.gz)|labelsTr/[\w.-]+\.(png|nii\.gz)|dataset\.json|privacy\.json|CARD\.md)"
)


class PackageError(InputError):
    """A package that is not what its manifest says; it must not be merged."""


@dataclass(frozen=True)
class SyntheticCase:
    """One case to share: image (channels, slices, height, width) in its stored type, labels (slices, height, width)."""

    name: str
    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PackageFacts:
    """Everything besides pixels that leaves the site."""

    site: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]  # without the background
    spacing_mm: tuple[float, ...]  # (through-plane, row, column) of every case
    intensity_space: str  # "source" units of the files, or "normalised"
    generator: Mapping[str, Any]  # its name and settings
    privacy: Mapping[str, Any]  # figures of the filter


def write_package(folder: Path, cases: Iterable[SyntheticCase], facts: PackageFacts, volumetric: bool) -> None:
    """Write the package into the empty ``folder``; its manifest, with a checksum for every file, comes last."""
    names, n_images, ending = write_raw_cases(folder, cases, facts, volumetric)
    write_json(folder / "privacy.json", dict(facts.privacy))
    content = {
        "schema_version": SCHEMA_VERSION,
        "written_by": f"autoshare {version('autoshare')}",
        "site": facts.site,
        "n_cases": len(names),
        "n_images": n_images,
        "channel_names": list(facts.channel_names),
        "labels": dict(facts.labels),
        "file_ending": ending,
        "spacing_mm": list(facts.spacing_mm),
        "intensity_space": facts.intensity_space,
        "generator": dict(facts.generator),
    }
    write_text(folder / "CARD.md", render_card(content, facts.privacy))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
    write_json(folder / MANIFEST, {**content, "files": checksums})


def write_raw_cases(
    folder: Path, cases: Iterable[SyntheticCase], facts: PackageFacts, volumetric: bool
) -> tuple[list[str], int, str]:
    """Write cases as an nnU-Net raw dataset; returns their names, the number of slices, and the file ending."""
    ending = ".nii.gz" if volumetric else ".png"
    names: list[str] = []
    n_images = 0
    for case in cases:
        _write_image(folder / "imagesTr", case, ending, facts.spacing_mm)
        _write_labels(folder / "labelsTr" / f"{case.name}{ending}", case.labels, facts.spacing_mm)
        names.append(case.name)
        n_images += case.image.shape[1]
    write_json(folder / "dataset.json", _dataset_json(facts, len(names), ending))
    return names, n_images, ending


def verify_package(folder: Path) -> dict[str, Any]:
    """Check a received package and return its manifest.

    Raises:
        PackageError: unknown schema or keys, a file that is missing, changed, of a kind that no package holds, or
            that the manifest does not name.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PackageError("no manifest.json", where=folder, fix="ask the site for a whole package")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("schema_version") != SCHEMA_VERSION or set(manifest) != MANIFEST_KEYS:
        raise PackageError(
            f"schema {manifest.get('schema_version')} with keys {sorted(manifest)} is not schema {SCHEMA_VERSION}",
            where=path,
            fix="let both sites use the same release",
        )
    present = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if not item.is_dir()} - {MANIFEST}
    for name in sorted(present ^ set(manifest["files"])):
        side = "is in the folder but not in the manifest" if name in present else "is missing"
        raise PackageError(f"{name} {side}", where=folder, fix="ask the site for a whole package")
    for name, checksum in manifest["files"].items():
        item = folder / name
        if not ALLOWED_FILE.fullmatch(name) or item.is_symlink():
            raise PackageError(f"{name} is no file of a package", where=folder, fix="do not merge it; ask the site")
        if sha256_of_file(item) != checksum:
            raise PackageError(f"{name} is not what its checksum says", where=folder, fix="transfer it again")
    return manifest


def _dataset_json(facts: PackageFacts, n_cases: int, ending: str) -> dict[str, Any]:
    return {
        "channel_names": {str(index): name for index, name in enumerate(facts.channel_names)},
        "labels": {"background": 0, **facts.labels},
        "numTraining": n_cases,
        "file_ending": ending,
    }


def _write_image(folder: Path, case: SyntheticCase, ending: str, spacing_mm: Sequence[float]) -> None:
    """RGB as one PNG, as nnU-Net reads it; otherwise one file per channel."""
    folder.mkdir(parents=True, exist_ok=True)
    if ending == ".png" and case.image.shape[0] == 3 and case.image.dtype == np.uint8:
        _write_png(folder / f"{case.name}_0000.png", np.moveaxis(case.image[:, 0], 0, -1))
        return
    for channel, array in enumerate(case.image):
        target = folder / f"{case.name}_{channel:04d}{ending}"
        if ending == ".png":
            _write_png(target, array[0])
        else:
            _write_volume(target, array, spacing_mm)


def _write_labels(target: Path, labels: np.ndarray, spacing_mm: Sequence[float]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".png":
        _write_png(target, labels[0].astype(np.uint8))
    else:
        _write_volume(target, labels.astype(np.uint8), spacing_mm)


def _write_png(target: Path, array: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(target) as temporary:
        Image.fromarray(np.ascontiguousarray(array)).save(temporary, format="PNG")


def _write_volume(target: Path, array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """NIfTI with identity direction and zero origin: no scanner geometry leaves (SimpleITK wants x, y, z)."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in reversed(spacing_mm)])
    with atomic_path(target) as temporary:
        SimpleITK.WriteImage(image, str(temporary))
