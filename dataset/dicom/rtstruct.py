"""RT structure sets: contours in patient space as masks in a series' grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from dataset.dicom.series import Geometry, Header

MAX_OFF_PLANE_VOXELS = 0.5


def structure_names(header: Header) -> dict[int, str]:
    """ROI number -> name, from the header alone."""
    return {int(item.ROINumber): str(item.ROIName) for item in header.tags.get("StructureSetROISequence") or ()}


def drawn_structures(path: Path) -> set[int]:
    """ROI numbers that have contours: planning systems store names of what nobody drew."""
    import pydicom

    stored = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["ROIContourSequence"])
    return {
        int(roi.ReferencedROINumber)
        for roi in stored.get("ROIContourSequence") or ()
        if any(contour.ContourGeometricType != "POINT" for contour in roi.get("ContourSequence") or ())
    }


def read_structures(path: Path, geometry: Geometry, wanted: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """A mask (slices, rows, columns) for each ROI number in ``wanted`` that has a voxel.

    A voxel is inside where its centre is; contours of one slice are combined by exclusive or, so that a contour inside
    another cuts a hole.

    Raises:
        InputError: contours that are not planar and closed, or lie beside the slices.
    """
    import pydicom

    stored = pydicom.dcmread(path)
    masks: dict[int, np.ndarray] = {}
    for roi in stored.get("ROIContourSequence", ()):
        number = int(roi.ReferencedROINumber)
        if number not in wanted or not roi.get("ContourSequence"):
            continue
        mask = np.zeros(geometry.size[::-1], bool)
        for contour in roi.ContourSequence:
            if contour.ContourGeometricType == "POINT":
                continue
            if contour.ContourGeometricType != "CLOSED_PLANAR":
                raise InputError(
                    f"a contour has the type {contour.ContourGeometricType}",
                    where=path,
                    fix="export closed planar contours",
                )
            points = geometry.to_voxels(np.array(contour.ContourData, float).reshape(-1, 3))
            _fill(mask, points, path)
        if mask.any():
            masks[number] = mask
    return masks


def _fill(mask: np.ndarray, points: np.ndarray, path: Path) -> None:
    """Flip the voxels whose centres lie inside a contour of (x, y, z) voxel coordinates."""
    from skimage.draw import polygon2mask

    plane = round(float(np.mean(points[:, 2])))
    off_plane = float(np.abs(points[:, 2] - plane).max())
    if off_plane > MAX_OFF_PLANE_VOXELS or not 0 <= plane < len(mask):
        raise InputError(
            f"a contour lies {off_plane:.2f} slices beside slice {plane} of {len(mask)}",
            where=path,
            fix="draw the structures on the series that is exported with them",
        )
    mask[plane] ^= polygon2mask(mask.shape[1:], points[:, 1::-1])
