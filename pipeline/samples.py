"""Synthetic images of a site with, where the generator makes them too, their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.image_set import LABELS, ImageEntry, ImageSet, load_image_set, load_labels, save_image_set, save_labels
from common.seeds import derive_seed
from engine.run_stage import StageContext
from generators.interface import SampleRequest
from generators.registry import find_generator


@dataclass(frozen=True)
class Samples:
    """Images and, where the generator makes them too, their labels (n, height, width)."""

    images: ImageSet
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def followed_by(self, others: Samples) -> Samples:
        """These, then the others."""
        pixels = np.concatenate([self.images.images, others.images.images])
        images = ImageSet(pixels, (*self.images.entries, *others.images.entries), self.images.info)
        if self.labels is None or others.labels is None:
            return Samples(images, None)
        return Samples(images, np.concatenate([self.labels, others.labels]))

    def subset(self, indices: np.ndarray) -> Samples:
        """Those at ``indices``, in that order."""
        return Samples(self.images.subset(indices), None if self.labels is None else self.labels[indices])

    def save(self, folder: Path) -> None:
        """The index last, so that it marks a whole set."""
        if self.labels is not None:
            save_labels(folder, self.labels)
        save_image_set(folder, self.images)


def load_samples(folder: Path) -> Samples:
    """The samples that ``Samples.save`` left in a folder."""
    labels = load_labels(folder) if (folder / LABELS).is_file() else None
    return Samples(load_image_set(folder), labels)


@dataclass(frozen=True)
class Draw:
    """Draws the images of a site by their numbers: the seed follows from the number, whichever stage asks and when."""

    settings: Mapping[str, Any]  # name (and adapter), batch_size, and labels where the generator makes masks too
    seed: int
    n_digits: int

    def __call__(self, context: StageContext, numbers: range) -> Samples:
        """The images with these numbers."""
        seeds = [derive_seed(self.seed, number) for number in numbers]
        named, batch_size = self.settings.get("adapter", self.settings["name"]), self.settings["batch_size"]
        generator = find_generator(named)
        request = SampleRequest(
            trained=context.inputs["generator"],
            seeds=seeds,
            batch_size=None if batch_size == "auto" else int(batch_size),
            device=context.device,
            progress=context.progress,
        )
        if "labels" in self.settings:
            images, masks = generator.sample_with_masks(request)
        else:
            images, masks = generator.sample(request), None
        entries = tuple(
            ImageEntry(f"{context.stage.site}_syn_{number:0{self.n_digits}d}", seed=seed)
            for number, seed in zip(numbers, seeds, strict=True)
        )
        return Samples(ImageSet(images, entries, load_image_set(context.inputs["slices"]).info), masks)
