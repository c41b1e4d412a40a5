"""DICOM files for tests: series, structure sets and segmentations as a scanner and a planning system export them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dataset.dicom.series import all_files, group_series, read_headers, sort_series

CLASSES = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
}
IDENTITY = {
    "PatientName": "Jansen^Wilhelmina",
    "PatientBirthDate": "19410203",
    "InstitutionName": "Leiden University Medical Center",
    "StudyDate": "20190807",
    "AccessionNumber": "ACC99871",
    "ReferringPhysicianName": "De Vries^Pieter",
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def new_file(path: Path, modality: str, patient: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    stored = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    stored.SOPClassUID, stored.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    stored.Modality, stored.PatientID = modality, patient
    for name, value in IDENTITY.items():
        setattr(stored, name, value)
    return stored


def write_series(
    folder: Path,
    volume: np.ndarray,
    patient: str = "4711",
    modality: str = "MR",
    description: str = "T2 TSE TRA",
    spacing_mm: tuple[float, float, float] = (4.0, 0.5, 0.75),
    origin_mm: tuple[float, float, float] = (-10.0, 20.0, -30.0),
    orientation: tuple[float, ...] = AXIAL,
    scanner: tuple[str, str, str] = ("Philips", "Ingenia", "1.5"),
    rescale: tuple[float, float] = (1.0, 0.0),
    frame_uid: str | None = None,
) -> tuple[str, str]:
    """Write (slices, rows, columns) int16 under shuffled names; returns (series, frame of reference)."""
    folder.mkdir(parents=True, exist_ok=True)
    series_uid, frame_uid = generate_uid(), frame_uid or generate_uid()
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(rows, columns)
    names = np.random.default_rng(len(volume)).permutation(len(volume))
    for index, pixels in enumerate(volume):
        path = folder / f"IM{names[index]:04d}_{series_uid[-6:]}"
        stored = new_file(path, modality, patient)
        stored.SeriesInstanceUID, stored.StudyInstanceUID, stored.FrameOfReferenceUID = series_uid, "1.2.3", frame_uid
        stored.SeriesDescription = description
        stored.Manufacturer, stored.ManufacturerModelName, stored.MagneticFieldStrength = scanner
        stored.Rows, stored.Columns = pixels.shape
        stored.PixelSpacing = list(spacing_mm[1:])
        stored.ImageOrientationPatient = list(orientation)
        stored.ImagePositionPatient = (np.array(origin_mm) + normal * spacing_mm[0] * index).tolist()
        stored.SamplesPerPixel, stored.PhotometricInterpretation = 1, "MONOCHROME2"
        stored.BitsAllocated, stored.BitsStored, stored.HighBit, stored.PixelRepresentation = 16, 16, 15, 1
        stored.RescaleSlope, stored.RescaleIntercept = rescale
        stored.PixelData = pixels.astype(np.int16).tobytes()
        stored.save_as(path, enforce_file_format=True)
    return series_uid, frame_uid


def write_structures(
    path: Path,
    series: tuple[str, str],
    structures: dict[str, list[np.ndarray]],
    patient: str = "4711",
    kind: str = "CLOSED_PLANAR",
) -> None:
    """Structure name -> contours, each (points, 3) in mm of patient space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = new_file(path, "RTSTRUCT", patient)
    stored.SeriesInstanceUID = generate_uid()
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = series[0]
    study.RTReferencedSeriesSequence = Sequence([referenced])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = series[1], Sequence([study])
    stored.ReferencedFrameOfReferenceSequence = Sequence([frame])
    names, contours = [], []
    for number, (name, drawn) in enumerate(structures.items(), start=1):
        roi, contour_of_roi = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contour_of_roi.ReferencedROINumber = number
        contour_of_roi.ContourSequence = Sequence([_contour(points, kind) for points in drawn])
        names.append(roi)
        contours.append(contour_of_roi)
    stored.StructureSetROISequence, stored.ROIContourSequence = Sequence(names), Sequence(contours)
    stored.save_as(path, enforce_file_format=True)


def _contour(points: np.ndarray, kind: str) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
    contour.ContourData = [f"{value:.6f}" for value in np.asarray(points).ravel()]
    return contour


def write_segmentation(
    path: Path, image_folder: Path, series: tuple[str, str], segments: dict[str, np.ndarray]
) -> None:
    """Segment label -> mask (slices, rows, columns) in the series' grid; empty frames are not stored, as is usual."""
    headers = sorted(
        (pydicom.dcmread(file) for file in image_folder.iterdir()), key=lambda h: float(h.ImagePositionPatient[2])
    )
    stored = new_file(path, "SEG", headers[0].PatientID)
    stored.SeriesInstanceUID, stored.FrameOfReferenceUID = generate_uid(), series[1]
    referenced = Dataset()
    referenced.SeriesInstanceUID = series[0]
    stored.ReferencedSeriesSequence = Sequence([referenced])
    stored.SegmentationType = "BINARY"
    orientation = Dataset()
    orientation.ImageOrientationPatient = headers[0].ImageOrientationPatient
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([orientation])
    stored.SharedFunctionalGroupsSequence = Sequence([shared])
    described, frames, bits = [], [], []
    for number, (label, mask) in enumerate(segments.items(), start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, label
        described.append(segment)
        for header, plane in zip(headers, mask, strict=True):
            if plane.any():
                position, identity, group = Dataset(), Dataset(), Dataset()
                position.ImagePositionPatient = header.ImagePositionPatient
                identity.ReferencedSegmentNumber = number
                group.PlanePositionSequence = Sequence([position])
                group.SegmentIdentificationSequence = Sequence([identity])
                frames.append(group)
                bits.append(plane.ravel())
    stored.SegmentSequence, stored.PerFrameFunctionalGroupsSequence = Sequence(described), Sequence(frames)
    stored.Rows, stored.Columns = headers[0].Rows, headers[0].Columns
    stored.NumberOfFrames, stored.SamplesPerPixel, stored.PhotometricInterpretation = len(frames), 1, "MONOCHROME2"
    stored.BitsAllocated = stored.BitsStored = 1
    stored.HighBit = stored.PixelRepresentation = 0
    packed = np.packbits(np.concatenate(bits).astype(np.uint8), bitorder="little").tobytes()
    stored.PixelData = packed + b"\0" * (len(packed) % 2)
    stored.save_as(path, enforce_file_format=True)


def geometry_of(folder: Path):
    (headers,) = group_series(read_headers(all_files(folder))).values()
    return sort_series(headers)[1]


def points_mm(geometry, voxels: np.ndarray) -> np.ndarray:
    """(n, 3) voxel coordinates x, y, z as a point of patient space."""
    return np.array(geometry.origin_mm) + (voxels * geometry.spacing_mm) @ np.array(geometry.axes)


def ring(x: float, y: float, radius: float, z: float, n_points: int = 720) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, n_points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles), np.full(n_points, z)], axis=1)
