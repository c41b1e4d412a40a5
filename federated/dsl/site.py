"""A site's part in DSL: its images and its discriminator stay at the site; gradients on the hub's fakes leave it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.seeds import derive_seed
from common.settings import from_dict, to_dict
from federated.dsl.data import load_pairs
from federated.dsl.features import feature_statistics
from federated.dsl.loss import build_perceptual, clip_and_noise, discriminator_loss, generator_losses
from federated.dsl.model import SMALLEST_SIDE_PX, PatchDiscriminator, one_hot, place
from federated.dsl.settings import DslSettings
from federated.dsl.tensors import pack, unpack
from training.image_batches import integers_to_images
from training.training_state import check_same_run, load_state, state_to_tensors

log = logging.getLogger(__name__)

STATE = re.compile(r"discriminator_(\d+)\.safetensors")


class DslSite:
    """The worker of one site (see ``engine.workers``): every argument and answer is plain.

    Args:
        slices, prepared, planned: see ``federated.dsl.data.load_pairs``.
        settings: a ``DslSettings`` as a dictionary.
        seed: the site's own; where noise protects gradients it must stay at the site.
        out: the site's own folder, for ``discriminator_<iteration>.safetensors``.
    """

    def __init__(
        self,
        slices: str,
        prepared: str,
        settings: Mapping[str, Any],
        seed: int,
        device: str,
        out: str,
        planned: str | None = None,
    ) -> None:
        self._settings, self._seed, self._out = from_dict(DslSettings, settings), seed, Path(out)
        self._pairs = load_pairs(Path(slices), Path(prepared), Path(planned) if planned else None)
        self._device = torch.device(device)
        smallest = min(*self._pairs.masks.shape[1:], self._settings.crop_px or SMALLEST_SIDE_PX)
        if smallest < SMALLEST_SIDE_PX:
            raise InputError(
                f"images of {smallest} px", where=slices, fix=f"DSL's discriminator needs {SMALLEST_SIDE_PX} px"
            )
        if self._settings.weight_perceptual > 0:
            self._perceptual = build_perceptual(self._settings.vgg16_weights, device)
        else:
            self._perceptual = torch.nn.functional.mse_loss  # never called: its weight is 0
        self._iteration = -1  # the next one; -1 until the discriminator is restored
        self._begin()

    def describe(self) -> dict[str, Any]:
        """Numbers of images, of slices without a label (not used) and of channels, size, labels, and intensities."""
        images = self._pairs.images
        return {
            "n_images": len(images),
            "n_empty": self._pairs.n_empty,
            "n_channels": images.images.shape[1],
            "size_px": list(images.images.shape[-2:]),
            "dtype": str(images.images.dtype),
            "labels": self._pairs.labels,
            "info": to_dict(images.info),
        }

    def masks(self) -> bytes:
        """``masks``: (n, height, width) uint8, every training mask; its key is its row, as case names stay here."""
        return pack(masks=torch.from_numpy(self._pairs.masks))

    def features(self) -> bytes:
        """``mean`` (64,) and ``covariance`` (64, 64) of the real training images' features, for Dist-FID."""
        statistics = feature_statistics(np.asarray(self._pairs.images.images), str(self._device))
        return pack(mean=torch.from_numpy(statistics.mean), covariance=torch.from_numpy(statistics.covariance))

    def step(
        self,
        iteration: int,
        rate: float,
        keys: Sequence[int],
        placements: Sequence[Sequence[int]],
        size_px: Sequence[int],
        fakes: bytes,
    ) -> dict[str, Any]:
        """Update the discriminator, then give the gradient of the generator's loss on the fakes.

        Args:
            rate: learning rate of this iteration.
            keys: the masks' rows.
            placements: (top, left, flip rows, flip columns) of each, see ``federated.dsl.model.place``.
            size_px: (height, width) of the fakes.
            fakes: ``fakes`` (n, channels, height, width) float32 in [-1, 1].

        Returns:
            ``gradient``: bytes of ``gradient``, shaped like the fakes, of the batch mean; ``losses``: by name.
        """
        if self._iteration != iteration:
            self.restore(iteration)
        settings, network = self._settings, self._network
        # 1. The fakes as sent, and the real pairs cut and flipped like them: masks one-hot, images in [-1, 1].
        height, width = size_px
        shape = (len(keys), self._pairs.images.images.shape[1], height, width)
        generated = unpack(fakes, "hub", fakes=shape)["fakes"].to(self._device).requires_grad_(True)
        reals = integers_to_images(self._pairs.images.images[list(keys)])
        masks = one_hot(torch.from_numpy(self._pairs.masks[list(keys)]), len(self._pairs.labels))
        reals, masks = (place(maps, placements, (height, width)).to(self._device) for maps in (reals, masks))
        # 2. The discriminator D(mask, image): one step of Adam on the logistic loss.
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss_d = discriminator_loss(network, masks, generated, reals, settings.weight_d)
        loss_d.backward()
        self._optimizer.step()
        # 3. The gradient of the generator's loss L by the fakes, with the discriminator as it is now.
        network.requires_grad_(False)
        losses = generator_losses(network, self._perceptual, masks, generated, reals, settings)
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), generated)
        network.requires_grad_(True)
        # 4. What leaves the site, bounded and with noise where the settings ask for it.
        if settings.dp_clip_norm is not None:
            draws = torch.Generator().manual_seed(derive_seed(self._seed, "noise", iteration))
            gradient = clip_and_noise(gradient, settings.dp_clip_norm, settings.dp_noise_multiplier, draws)
        self._iteration = iteration + 1
        values = {"d": loss_d.item(), **{name: loss.item() for name, loss in losses.items()}}
        return {"gradient": pack(gradient=gradient), "losses": values}

    def save(self, iteration: int) -> None:
        """Write the discriminator before ``iteration``; the one before it is kept until the hub's own file exists."""
        if self._iteration != iteration:
            self.restore(iteration)
        metadata = {"iteration": iteration, "seed": self._seed, "settings": to_dict(self._settings)}
        tensors = state_to_tensors({"network": self._network}, {"": self._optimizer})
        save_tensors(self._state_file(iteration), tensors, metadata)
        for older in self._saved()[:-2]:
            self._state_file(older).unlink()

    def restore(self, iteration: int) -> int:
        """Go back to the newest discriminator saved at or before ``iteration`` and say which one it is (0: a new one).

        A worker made anew after a failure calls this itself.
        """
        found = max((saved for saved in self._saved() if saved <= iteration), default=0)
        self._begin()
        if found:
            tensors, metadata = load_tensors(self._state_file(found))
            check_same_run(self._state_file(found), metadata, self._settings, self._seed)
            load_state({"network": self._network}, {"": self._optimizer}, tensors)
        if found != iteration:
            log.warning("the discriminator goes on at iteration %d as it was at %d", iteration, found)
        self._iteration = iteration
        return found

    def _begin(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "discriminator"))
            n_channels = self._pairs.images.images.shape[1]
            network = PatchDiscriminator(len(self._pairs.labels), n_channels, self._settings.base_channels)
        self._network = network.to(self._device)
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), betas=self._settings.betas, weight_decay=self._settings.weight_decay
        )

    def _state_file(self, iteration: int) -> Path:
        return self._out / f"discriminator_{iteration}.safetensors"

    def _saved(self) -> list[int]:
        names = (STATE.fullmatch(file.name) for file in self._out.glob("discriminator_*.safetensors"))
        return sorted(int(name[1]) for name in names if name)
