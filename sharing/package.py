"""Write a site's package: a valid nnU-Net raw dataset with a minimal manifest, privacy figures and a card.

The original copied a real patient's metadata into every synthetic case (D28). Here every field that leaves is listed
in ``PackageFacts`` and ``sharing.schema.Manifest`` and nothing else is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path, sha256_of_file, write_json, write_text
from common.settings import to_dict
from dataset.images import write_array
from nnunetv2_mod.raw_dataset import DATASET_JSON, NIFTI, PNG, dataset_json, write_case
from sharing.card import render_card
from sharing.errors import PackageError
from sharing.received import Package, verify_package
from sharing.schema import (
    CARD,
    FIGURES,
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
)


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
    spacing_mm: tuple[float, float, float]  # (through-plane, row, column) of every case
    intensity_space: str  # "source" units of the files, or "normalised"
    generator: Mapping[str, Any]  # its name and settings
    privacy: Mapping[str, Any]  # figures of the filter and the audit


@dataclass(frozen=True)
class RawCases:
    """What was written as a raw dataset."""

    names: tuple[str, ...]
    n_images: int  # slices
    file_ending: str
    image_size_px: tuple[int, int]  # (height, width), the same for all
    dtype: str


def write_package(folder: Path, cases: Iterable[SyntheticCase], facts: PackageFacts, volumetric: bool) -> None:
    """Write the package into the empty ``folder`` and check it as a receiver will.

    The manifest, with a checksum for every file, is written last and removed if the check fails: no receiver takes a
    folder without one.

    Raises:
        PackageError: a receiver would refuse it.
    """
    written = write_raw_cases(folder, cases, facts, volumetric)
    write_json(folder / FIGURES, dict(facts.privacy))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        written_by=f"autoshare {version('autoshare')}",
        site=facts.site,
        n_cases=len(written.names),
        n_images=written.n_images,
        image_size_px=written.image_size_px,
        dtype=written.dtype,
        channel_names=facts.channel_names,
        labels=dict(facts.labels),
        file_ending=written.file_ending,
        spacing_mm=facts.spacing_mm,
        intensity_space=facts.intensity_space,
        generator=dict(facts.generator),
    )
    write_text(folder / CARD, render_card(manifest, facts.privacy))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
    write_json(folder / MANIFEST, to_dict(replace(manifest, files=checksums)))
    try:
        verify_package(folder, written_here=True)
    except PackageError:
        (folder / MANIFEST).unlink()
        raise


def read_case(package: Package, case: str) -> np.ndarray:
    """The image (channels, slices, height, width) of a case of a package that was checked."""
    files = [package.folder / name for name in package.manifest.images_of(case)]
    if package.manifest.file_ending == NIFTI:
        return np.stack([_read_volume(file) for file in files])
    if package.manifest.rgb:
        return np.moveaxis(_read_png(files[0]), -1, 0)[:, None]
    return np.stack([_read_png(file) for file in files])[:, None]


def write_raw_cases(folder: Path, cases: Iterable[SyntheticCase], facts: PackageFacts, volumetric: bool) -> RawCases:
    """Write cases as an nnU-Net raw dataset.

    Raises:
        ValueError: no case, or images of several sizes or types.
    """
    ending = NIFTI if volumetric else PNG
    names: list[str] = []
    n_images = 0
    kinds: set[tuple[tuple[int, int], str]] = set()
    for case in cases:
        image = case.image if volumetric else case.image[:, 0]
        labels = (case.labels if volumetric else case.labels[0]).astype(np.uint8)
        is_rgb = not volumetric and len(image) == 3 and image.dtype == np.uint8
        write = partial(_write_volume, spacing_mm=facts.spacing_mm) if volumetric else write_array
        write_case(folder, case.name, image, labels, ending, write, is_rgb=is_rgb)
        names.append(case.name)
        n_images += case.image.shape[1]
        kinds.add((case.image.shape[2:], str(case.image.dtype)))
    if len(kinds) != 1:
        raise ValueError(f"a package holds images of one size and type, not {sorted(kinds)}")
    write_json(folder / DATASET_JSON, dataset_json(facts.channel_names, facts.labels, len(names), ending))
    return RawCases(tuple(names), n_images, ending, *kinds.pop())


def _read_png(source: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(source) as image:
        return np.array(image)


def _read_volume(source: Path) -> np.ndarray:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(source))))


def _write_volume(target: Path, array: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """NIfTI with identity direction and zero origin: no scanner geometry leaves (SimpleITK wants x, y, z)."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in reversed(spacing_mm)])
    with atomic_path(target) as temporary:
        SimpleITK.WriteImage(image, str(temporary))
