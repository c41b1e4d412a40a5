"""DICOM segmentation objects: frames of segments as masks in a series' grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from dataset.dicom.series import DIRECTION_TOLERANCE, Geometry, Header

MAX_OFF_GRID_VOXELS = 0.05
SAME_GRID = "export the segmentation in the grid of its series"


def segment_names(header: Header) -> dict[int, str]:
    """Segment number -> label, from the header alone."""
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in header.tags.get("SegmentSequence") or ()}


def drawn_segments(path: Path) -> set[int]:
    """Segment numbers that have frames, from the header alone."""
    import pydicom

    names = ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]
    stored = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names)
    groups = [group for name in names for group in stored.get(name) or ()]
    found = (part for group in groups for part in group.get("SegmentIdentificationSequence") or ())
    return {int(part.ReferencedSegmentNumber) for part in found}


def read_segments(path: Path, geometry: Geometry, wanted: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """A mask (slices, rows, columns) for each segment number in ``wanted`` that has a voxel.

    Raises:
        InputError: a segmentation in another grid than the series', or frames without a position.
    """
    import pydicom

    stored = pydicom.dcmread(path)
    n_columns, n_rows, n_slices = geometry.size
    if (stored.Rows, stored.Columns) != (n_rows, n_columns):
        raise InputError(
            f"it has {stored.Rows} x {stored.Columns} pixels, the series has {n_rows} x {n_columns}",
            where=path,
            fix=SAME_GRID,
        )
    frames = np.asarray(stored.pixel_array).reshape(-1, n_rows, n_columns)
    threshold = 0.5 * float(stored.get("MaximumFractionalValue", 1)) if stored.SegmentationType == "FRACTIONAL" else 0.5
    shared = stored.SharedFunctionalGroupsSequence[0]
    masks: dict[int, np.ndarray] = {}
    for pixels, groups in zip(frames, stored.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(_group(groups, shared, "SegmentIdentificationSequence", path).ReferencedSegmentNumber)
        if number not in wanted:
            continue
        position = _group(groups, shared, "PlanePositionSequence", path).ImagePositionPatient
        orientation = _group(groups, shared, "PlaneOrientationSequence", path).ImageOrientationPatient
        plane = _plane(position, orientation, geometry, path)
        masks.setdefault(number, np.zeros((n_slices, n_rows, n_columns), bool))[plane] |= pixels > threshold
    return {number: mask for number, mask in masks.items() if mask.any()}


def _group(groups: Any, shared: Any, name: str, path: Path) -> Any:
    sequence = groups.get(name) or shared.get(name)
    if not sequence:
        raise InputError(f"a frame has no {name}", where=path, fix="export the segmentation again")
    return sequence[0]


def _plane(position: Any, orientation: Any, geometry: Geometry, path: Path) -> int:
    """The slice a frame lies on: its first voxel must be a slice's first voxel."""
    x, y, z = geometry.to_voxels(np.array([position], float))[0]
    aligned = np.allclose(np.array(orientation, float).reshape(2, 3), geometry.axes[:2], atol=DIRECTION_TOLERANCE)
    on_grid = max(abs(x), abs(y), abs(z - round(z))) <= MAX_OFF_GRID_VOXELS and 0 <= round(z) < geometry.size[2]
    if not aligned or not on_grid:
        raise InputError(
            f"a frame at voxel ({x:.2f}, {y:.2f}, {z:.2f}) is not on a slice of the series", where=path, fix=SAME_GRID
        )
    return round(z)
