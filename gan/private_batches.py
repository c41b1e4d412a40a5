"""The real images of each step of a private training: who is in it, and as what, is drawn for each by itself.

Every number follows from the secret and from what it is drawn for: an image by its content, a patient by the name. So
one image or patient more changes nothing that is drawn for the others: the sensitivity of a step rests on this.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.augment import n_numbers
from gan.secret import IDENTITY_BYTES, Secret
from gan.settings import PATIENT, GanSettings
from training.image_batches import check_form, integers_to_images, mirrored


@dataclass(frozen=True)
class UnitImages:
    """What a step sees of one unit: an image, or some of a patient's."""

    images: Tensor  # (k, channels, height, width) in [-1, 1]
    numbers: Tensor  # (k, numbers) float32 of [0, 1): what each is augmented by


class PrivateBatches:
    """Each unit by itself with one probability (Poisson sampling), which the accountant's amplification assumes.

    Args:
        images: (n, channels, height, width), uint8 or uint16.
        sampling_rate: the probability.
        patients: whose each image is; needed only where the unit is the patient.
    """

    def __init__(
        self,
        images: np.ndarray,
        settings: GanSettings,
        sampling_rate: float,
        secret: Secret,
        patients: Sequence[str] | None = None,
    ) -> None:
        privacy = settings.config.privacy
        assert privacy is not None
        check_form(images, settings.n_channels, settings.image_size_px)
        self.images, self.secret, self.sampling_rate = images, secret, sampling_rate
        self.mirror, self.n_numbers = settings.config.mirror, n_numbers(settings.config.augment)
        if privacy.unit == PATIENT:
            assert patients is not None  # ``derive_mechanism`` has refused
            owners, self.most_images = list(patients), privacy.images_per_patient
        else:
            owners, self.most_images = [""] * len(images), 1
        self.image_identities = _identities_of_images(images, owners)
        if privacy.unit == PATIENT:
            names = sorted(set(owners))
            self.unit_identities = _as_array([_digest(b"patient", name.encode()) for name in names])
            position = {name: i for i, name in enumerate(names)}
            unit_of_image = np.array([position[owner] for owner in owners])
        else:
            self.unit_identities, unit_of_image = self.image_identities, np.arange(len(images))
        order = np.argsort(unit_of_image, kind="stable")
        self._members = np.split(order, np.cumsum(np.bincount(unit_of_image))[:-1])

    @property
    def digest(self) -> str:
        """Of images and patients, in any order: a resumed training must have the same ones."""
        rows = sorted(map(bytes, [*self.image_identities, *self.unit_identities]))
        return hashlib.sha256(b"".join(rows)).hexdigest()

    def at(self, step: int) -> list[UnitImages]:
        """The units of ``step``, as many as it comes."""
        # who takes part
        drawn = self.secret.numbers_of_each(self.unit_identities, 1, step, "sampling")[:, 0]
        members = [self._members[unit] for unit in np.flatnonzero(drawn < self.sampling_rate)]
        if not members:
            return []
        # of a patient with many images, some: those with the smallest numbers
        if any(len(indices) > self.most_images for indices in members):
            lots = self.secret.numbers_of_each(self.image_identities, 1, step, "images of a patient")[:, 0]
            members = [np.sort(indices[np.argsort(lots[indices])[: self.most_images]]) for indices in members]
        # how each image is shown, by its own numbers; all images at once
        chosen = np.concatenate(members)
        numbers = self.secret.numbers_of_each(self.image_identities[chosen], 1 + self.n_numbers, step, "shown")
        images = integers_to_images(self.images[chosen])
        if self.mirror:
            images = mirrored(images, torch.from_numpy(numbers[:, 0] < 0.5))
        sizes = [len(indices) for indices in members]
        of_augmentation = torch.from_numpy(numbers[:, 1:]).float()
        return [UnitImages(*parts) for parts in zip(images.split(sizes), of_augmentation.split(sizes), strict=True)]


def _identities_of_images(images: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """(n, IDENTITY_BYTES) uint8, all different: equal images of one owner are told apart by counting them."""
    seen: Counter[bytes] = Counter()
    identities = []
    for image, owner in zip(images, owners, strict=True):
        content = _digest(owner.encode(), image.tobytes())
        identities.append(_digest(content, str(seen[content]).encode()))
        seen[content] += 1
    return _as_array(identities)


def _digest(first: bytes, second: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(first).digest() + second).digest()[:IDENTITY_BYTES]


def _as_array(identities: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(identities), np.uint8).reshape(-1, IDENTITY_BYTES)
