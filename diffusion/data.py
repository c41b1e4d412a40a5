"""The data of a training: whole batches in [-1, 1] that follow from the step and the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from diffusion.settings import DiffusionSettings
from training.image_batches import check_images, integers_to_images, items_of_step, mirror_some

N_FIXED = 32  # images or crops that validation looks at


class Data(Protocol):
    """Images, or crops of volumes; labels follow the image's channels, one for each, -1 outside and 1 inside."""

    @property
    def output_spec(self) -> Mapping[str, Any]:
        """How samples are written (type, intensities, geometry), JSON-able; stored in the checkpoint."""

    @property
    def n_items(self) -> int:
        """Images, or cases."""

    @property
    def has_heldout(self) -> bool:
        """Whether ``fixed`` shows cases that are not trained on."""

    def at(self, step: int, batch_size: int) -> Tensor:
        """The whole batch of ``step``, (batch_size, data channels, *size)."""

    def fixed(self) -> Tensor:
        """The same crops at every call, for validation: of held-out cases where there are some."""


class ImageData:
    """Images that fit into memory: each once before any is shown again, in a fresh order each time."""

    def __init__(
        self, images: np.ndarray, settings: DiffusionSettings, seed: int, labels: np.ndarray | None = None
    ) -> None:
        """The images.

        Args:
            images: (n, channels, height, width), uint8 or uint16.
            labels: (n, height, width), 0 for background to the number of label channels; they are generated too.
        """
        check_images(images, settings.n_channels, settings.image_size)
        _check_labels(images, labels, settings)
        self.images, self.labels, self.settings, self.seed = images, labels, settings, seed

    @property
    def output_spec(self) -> Mapping[str, Any]:
        """The integer type of the images."""
        return {"dtype": str(self.images.dtype)}

    @property
    def n_items(self) -> int:
        """Images."""
        return len(self.images)

    @property
    def has_heldout(self) -> bool:
        """Always False: only the monitor knows the held-out patients."""
        return False

    def at(self, step: int, batch_size: int) -> Tensor:
        """The batch of ``step``: (batch_size, data channels, height, width) in [-1, 1]."""
        batch = self._shown(items_of_step(len(self.images), step, batch_size, self.seed))
        if self.settings.config.mirror:
            mirror_some(batch, step, self.seed)
        return batch

    def fixed(self) -> Tensor:
        """Some of the images themselves."""
        chosen = np.unique(np.linspace(0, len(self.images) - 1, N_FIXED).round().astype(int))
        return self._shown(chosen.tolist())

    def _shown(self, chosen: list[int]) -> Tensor:
        shown = integers_to_images(self.images[chosen])
        if self.labels is None:
            return shown
        return torch.cat([shown, labels_as_channels(self.labels[chosen], self.settings.n_label_channels)], 1)


def labels_as_channels(labels: np.ndarray, n_labels: int) -> Tensor:
    """(n, ...) of 0 to ``n_labels`` to (n, n_labels, ...): 1 inside the label and -1 outside."""
    inside = np.stack([labels == label for label in range(1, n_labels + 1)], axis=1)
    return torch.from_numpy(inside.astype(np.float32) * 2 - 1)


def channels_as_labels(channels: np.ndarray) -> np.ndarray:
    """(n, n_labels, ...) to (n, ...) uint8: the largest channel above 0, background where there is none."""
    largest = channels.argmax(axis=1) + 1
    return np.where(channels.max(axis=1) > 0, largest, 0).astype(np.uint8)


def _check_labels(images: np.ndarray, labels: np.ndarray | None, settings: DiffusionSettings) -> None:
    fix = "give one label map an image, with values from 0 to the number of labels"
    if (labels is None) != (settings.n_label_channels == 0):
        raise InputError(
            f"there are {settings.n_label_channels} label channels and labels {labels}", where="labels", fix=fix
        )
    if labels is not None and (
        labels.shape != (len(images), *images.shape[2:]) or labels.max(initial=0) > settings.n_label_channels
    ):
        problem = f"labels {labels.shape} up to {labels.max(initial=0)} for images {images.shape}"
        raise InputError(problem, where="labels", fix=fix)
