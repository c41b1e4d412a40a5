"""A set of 2D images as one array and one index: what slices, samples and kept images are stored as."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import atomic_path, read_json, write_json
from common.settings import from_dict, to_dict

LABELS = "labels.npy"


@dataclass(frozen=True)
class ImageEntry:
    """One image: ``name`` is unique in its set. Real images carry case, patient and split; synthetic ones a seed."""

    name: str
    case: str = ""
    slice_index: int = 0
    patient: str = ""
    split: str = ""  # "train" or "val" of the outer fold; empty for synthetic images
    seed: int = -1


@dataclass(frozen=True)
class Intensity:
    """How stored integers map to intensities: ``low + stored / max_stored * (high - low)``, channel by channel.

    ``space`` is ``source`` (the units of the files) or ``normalised`` (nnU-Net's z-scores, where a volume's
    units mean nothing across scans).
    """

    space: str
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class ImageSetInfo:
    """What holds for all images of a set."""

    intensity: Intensity
    scale: float = 1.0  # stored pixels per pixel at the plan's spacing (isotropic; 1 unless slices exceed the patch)
    spacing_mm: tuple[float, float] = (1.0, 1.0)  # of the stored pixels, (row, column)
    volumetric: bool = False  # True where the source cases are 3D


@dataclass(frozen=True)
class ImageSet:
    """``images``: (n, channels, height, width), uint8 or uint16; ``entries``: one per image, same order."""

    images: np.ndarray
    entries: tuple[ImageEntry, ...]
    info: ImageSetInfo = field(default_factory=lambda: ImageSetInfo(Intensity("source", (0.0,), (255.0,))))

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.entries):
            raise ValueError(f"images {self.images.shape} do not fit {len(self.entries)} entries")
        if self.images.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ValueError(f"images must be uint8 or uint16, not {self.images.dtype}")

    def __len__(self) -> int:
        return len(self.entries)

    def subset(self, indices: np.ndarray | list[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        return ImageSet(self.images[np.asarray(indices, int)], tuple(self.entries[int(i)] for i in indices), self.info)

    def of_split(self, *splits: str) -> ImageSet:
        """The images of the named splits, in stored order."""
        return self.subset([i for i, entry in enumerate(self.entries) if entry.split in splits])


def save_image_set(folder: Path, image_set: ImageSet) -> None:
    """Write ``images.npy`` and ``index.json`` into ``folder``; the index last, so that it marks a whole set."""
    with atomic_path(folder / "images.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(image_set.images), allow_pickle=False)
    entries = [to_dict(entry) for entry in image_set.entries]
    write_json(folder / "index.json", {"info": to_dict(image_set.info), "entries": entries})


def load_image_set(folder: Path, *, in_memory: bool = False) -> ImageSet:
    """Read a set; images stay on disk (memory-mapped) unless ``in_memory``.

    Raises:
        InputError: the folder holds no whole image set.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise InputError("there is no image set here", where=folder, fix="run the stage that writes it again")
    content = read_json(index)
    images = np.load(folder / "images.npy", mmap_mode=None if in_memory else "r", allow_pickle=False)
    entries = tuple(from_dict(ImageEntry, entry) for entry in content["entries"])
    return ImageSet(images, entries, from_dict(ImageSetInfo, content["info"]))


def save_labels(folder: Path, labels: np.ndarray) -> None:
    """Write ``labels.npy``, label ids (n, height, width) uint8 in the order of their images, 0 for background."""
    with atomic_path(folder / LABELS) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(labels, np.uint8), allow_pickle=False)


def load_labels(folder: Path) -> np.ndarray:
    """Read them; they stay on disk (memory-mapped).

    Raises:
        InputError: the folder holds none.
    """
    path = folder / LABELS
    if not path.is_file():
        raise InputError("there are no labels here", where=path, fix="run the stage that writes it again")
    labels: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return labels
