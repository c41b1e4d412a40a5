"""Cases that nnU-Net preprocessed, read without nnU-Net and without unpickling anything.

A case is ``<case>.b2nd`` with ``<case>_seg.b2nd`` (nnU-Net 2.6 and later), of which only the voxels asked for are read,
or ``<case>.npz`` with keys data and seg (earlier), which is read whole unless nnU-Net unpacked it to ``<case>.npy``.
The properties in ``<case>.pkl`` are never opened: unpickling runs code, and the arrays hold all that is needed.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

Voxel = tuple[int, ...]
OUTSIDE = -1  # nnU-Net's mark, in the label map, of what lies outside the non-zero region
PREPROCESS = "preprocess the dataset again (nnUNetv2_preprocess), or take the case out of the folder and the splits"


class CaseFolder:
    """The preprocessed cases of one configuration; arrays are (channels, Z, Y, X), the coarsest axis first.

    ``labelled``: whether there are label maps; for all cases or for none.
    """

    def __init__(self, folder: Path, n_stored: int, channels: Sequence[int] | None = None) -> None:
        """List the cases.

        Args:
            n_stored: channels in the files.
            channels: which of them are read; None: all.

        Raises:
            InputError: no folder, no cases in it, or label maps of some cases only.
        """
        self.folder, self.n_stored = folder, n_stored
        self.channels = list(range(n_stored) if channels is None else channels)
        self.n_channels = len(self.channels)
        if not folder.is_dir():
            raise InputError("there is no such folder", where=folder, fix="run nnUNetv2_plan_and_preprocess for it")
        files = {path.name for path in folder.iterdir() if path.is_file()}
        blosc = {name.removesuffix(".b2nd") for name in files if name.endswith(".b2nd")}
        self._blosc = {name for name in blosc if not name.endswith("_seg")}
        packed = {name.removesuffix(".npz") for name in files if name.endswith(".npz")}
        self.names = tuple(sorted(self._blosc | packed))
        self._unpacked = {name for name in packed if {f"{name}.npy", f"{name}_seg.npy"} <= files}
        if not self.names:
            raise InputError("there is no preprocessed case in it", where=folder, fix="run nnUNetv2_preprocess for it")
        without = [name for name in self.names if not self._has_labels(name)]
        self.labelled = len(without) < len(self.names)
        if without and self.labelled:
            missing = f"case {without[0]} has no label map, {len(self.names) - len(without)} others have one"
            raise InputError(missing, where=self.label_file(without[0]), fix=PREPROCESS)

    def file(self, name: str) -> Path:
        """The file with the image of case ``name``."""
        return self.folder / (f"{name}.b2nd" if name in self._blosc else f"{name}.npz")

    def label_file(self, name: str) -> Path:
        """The file with its label map."""
        return self.folder / f"{name}_seg.b2nd" if name in self._blosc else self.file(name)

    def read(
        self, name: str, start: Voxel | None = None, stop: Voxel | None = None, *, with_labels: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The voxels from ``start`` to before ``stop``, by default all.

        Returns:
            Normalised values, (channels, Z, Y, X) float32, and ids, (Z, Y, X) int16, -1 outside the non-zero region;
            all 0 where there are no label maps or none are asked for.

        Raises:
            InputError: an unreadable file, or one with other channels or of another size than its label map.
        """
        image, labels = self._open(name, with_labels)
        self._check_shapes(name, image, labels)
        box = tuple(slice(*ends) for ends in zip(start or (0, 0, 0), stop or image.shape[1:], strict=True))
        with _readable(self.file(name)):
            values = np.array(image[(slice(None), *box)], np.float32)[self.channels]
        if labels is None:
            return values, np.zeros(values.shape[1:], np.int16)
        with _readable(self.label_file(name)):
            return values, np.asarray(labels[(0, *box)], np.int16)

    def _has_labels(self, name: str) -> bool:
        if name in self._blosc:
            return self.label_file(name).is_file()
        with _readable(self.file(name)), np.load(self.file(name)) as stored:
            return "seg" in stored

    def _open(self, name: str, with_labels: bool) -> tuple[Any, Any]:
        """Arrays that are read when they are indexed, where the format allows it; no labels: None."""
        path, with_labels = self.file(name), with_labels and self.labelled
        if name in self._blosc:
            return _open_blosc(path), _open_blosc(self.label_file(name)) if with_labels else None
        with _readable(path):
            if name in self._unpacked:
                files = [self.folder / f"{name}{suffix}.npy" for suffix in ("", "_seg")]
                image, ids = (np.load(file, mmap_mode="r") for file in files)
                return image, ids
            with np.load(path) as stored:
                return stored["data"], stored["seg"] if with_labels else None

    def _check_shapes(self, name: str, image: Any, labels: Any) -> None:
        if len(image.shape) != 4 or image.shape[0] != self.n_stored or 0 in image.shape:
            problem = f"an array of shape {tuple(image.shape)}, not ({self.n_stored} channels, Z, Y, X)"
            raise InputError(problem, where=self.file(name), fix=PREPROCESS)
        if labels is not None and tuple(labels.shape) != (1, *image.shape[1:]):
            problem = f"a label map of shape {tuple(labels.shape)} for an image of {tuple(image.shape)}"
            raise InputError(problem, where=self.label_file(name), fix=PREPROCESS)


def _open_blosc(path: Path) -> Any:
    import blosc2

    mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
    with _readable(path):
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """InputError for a file that is missing, cut off or not what its name says."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the file is not readable ({error})", where=path, fix=PREPROCESS) from error


@dataclass(frozen=True)
class PreprocessedCase:
    """``array``: (channels, slices, height, width), normalised and transposed.

    ``outside`` and ``labels``, ids from 0, are (slices, height, width).
    """

    array: np.ndarray
    outside: np.ndarray
    labels: np.ndarray
    file_spacing_mm: tuple[float, ...]  # of the source file, before the transposition


def read_preprocessed(planned: Path, case: str) -> PreprocessedCase:
    """One case of a planned dataset, transposed as planned: its first spatial axis is the through-plane one."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    (folder,) = sorted((planned / "preprocessed").glob("Dataset*/*_2d"))
    data, labels, _, properties = infer_dataset_class(str(folder))(str(folder), [case]).load_case(case)
    spacing = tuple(float(value) for value in properties["spacing"])
    stored = np.asarray(labels[0])
    return PreprocessedCase(np.asarray(data[:]), stored == OUTSIDE, np.maximum(stored, 0).astype(np.uint8), spacing)
