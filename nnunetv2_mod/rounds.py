"""nnU-Net trained in rounds: the trainer stays alive, its weights come and go between epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import InputError
from common.files import read_json
from common.progress import silent
from nnunetv2_mod.environment import nnunet_roots
from nnunetv2_mod.plan import CONFIGURATION
from nnunetv2_mod.predict import build_network
from nnunetv2_mod.schedule import TrainSettings
from nnunetv2_mod.trainer import SiteTrainer, build_trainer
from nnunetv2_mod.training import only_dataset, spawn_augmentation, write_model

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class RoundTrainer:
    """One site's nnU-Net between two rounds.

    An epoch here is an epoch of ``train``: the same seeds, batches, learning rates and steps, so that rounds of one
    site alone are that site's ordinary training, bit for bit on a CPU.

    Args:
        planned: a folder written by ``plan_dataset`` or ``adopt_plan``.
        scratch: receives nnU-Net's own files.
        seed: of the site's batches; ``initial_seed`` of the first weights, the same for all sites.
        prox_mu: pull towards the anchor (FedProx, Li et al. 2020, eq. 2); 0 for none.
    """

    def __init__(
        self,
        planned: Path,
        scratch: Path,
        settings: TrainSettings,
        seed: int,
        initial_seed: int,
        device: str = "cpu",
        prox_mu: float = 0.0,
    ) -> None:
        self.dataset = only_dataset(planned)
        self._settings = settings
        roots = (planned, planned / "preprocessed", scratch)
        self._environment = partial(nnunet_roots, *roots, augmentation_processes=settings.augmentation_processes)
        self._logged = _LastValues()
        scratch.mkdir(parents=True, exist_ok=True)
        spawn_augmentation(settings)
        with self._environment():
            self._trainer: SiteTrainer = build_trainer(
                self.dataset, settings, seed, torch.device(device), silent, initial_seed
            )
            self._trainer.initialize()
            self._trainer.logger = self._logged
            self._trainer.on_train_start()
        compiled: Any = self._trainer.network  # torch.compile wraps it on GPUs
        self._network: nn.Module = getattr(compiled, "_orig_mod", compiled)
        self._anchors: dict[str, torch.Tensor] = {}
        self._prox_mu = prox_mu
        if prox_mu:
            self._trainer.optimizer.register_step_pre_hook(lambda *_: self._pull())

    @property
    def n_cases(self) -> int:
        """Cases that the site trains on."""
        return len(read_json(self.dataset / "splits_final.json")[0]["train"])

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes along which predictions may be mirrored."""
        return tuple(self._trainer.inference_allowed_mirroring_axes or ())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, each once under its first name (nnU-Net's state dict lists many several times)."""
        return {**dict(self._network.named_parameters()), **dict(self._network.named_buffers())}

    def norm_tensors(self) -> frozenset[str]:
        """Names of the normalisation layers' tensors."""
        layer_of = {name: self._network.get_submodule(name.rpartition(".")[0]) for name in self.tensors()}
        return frozenset(name for name, layer in layer_of.items() if isinstance(layer, NORMS))

    def anchor(self, names: Iterable[str]) -> None:
        """Remember these tensors as they are now: what FedProx pulls towards."""
        if self._prox_mu:
            tensors = self.tensors()
            self._anchors = {name: tensors[name].detach().clone() for name in names}

    def momentum(self) -> dict[str, torch.Tensor]:
        """The optimiser's live momentum by parameter name; zeros, which change no first step, where there is none."""
        state = self._trainer.optimizer.state
        for parameter in self._network.parameters():
            if "momentum_buffer" not in state[parameter] or state[parameter]["momentum_buffer"] is None:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return {name: state[parameter]["momentum_buffer"] for name, parameter in self._network.named_parameters()}

    def forget_momentum(self) -> None:
        """Start the next epoch without momentum."""
        self._trainer.optimizer.state.clear()

    def train_epochs(self, first_epoch: int, n_epochs: int) -> float:
        """Train these epochs of the whole schedule; returns the mean loss of the last one."""
        trainer, losses = self._trainer, [0.0]
        with self._environment():
            for epoch in range(first_epoch, first_epoch + n_epochs):
                trainer.current_epoch = epoch
                trainer.on_epoch_start()
                trainer.on_train_epoch_start()
                losses = [
                    float(trainer.train_step(next(trainer.dataloader_train))["loss"])
                    for _ in range(self._settings.n_iterations)
                ]
        return float(np.mean(losses))

    def validate(self) -> float:
        """Mean pseudo-Dice over the foreground classes, on the same validation patches every time; NaN if undefined."""
        trainer = self._trainer
        with self._environment(), torch.no_grad():
            trainer.on_validation_epoch_start()
            outputs = [
                trainer.validation_step(next(trainer.dataloader_val)) for _ in range(self._settings.n_val_iterations)
            ]
            trainer.on_validation_epoch_end(outputs)
        return float(self._logged.values["mean_fg_dice"])

    def _pull(self) -> None:
        """Add the gradient of ``prox_mu / 2 * |w - anchor|^2``, after nnU-Net's clipping of the loss's gradient."""
        for name, parameter in self._network.named_parameters():
            if parameter.grad is not None and name in self._anchors:
                parameter.grad.add_(parameter.detach() - self._anchors[name], alpha=self._prox_mu)


class _LastValues:
    """In place of nnU-Net's logger, which wants every epoch from the first: a worker of round r has not seen them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def log(self, key: str, value: Any, step: int) -> None:
        """Keep the last value."""
        self.values[key] = value


def export_model(
    planned: Path, tensors: Mapping[str, torch.Tensor], out: Path, epoch: int, mirror_axes: tuple[int, ...]
) -> None:
    """Write a ``model`` folder as ``train`` does, from tensors by their first name.

    Raises:
        InputError: a tensor of the network is missing.
    """
    dataset = only_dataset(planned)
    network = build_network(read_json(dataset / "nnUNetPlans.json"), read_json(dataset / "dataset.json"), CONFIGURATION)
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in sorted(set(own) ^ set(tensors)):
        raise InputError(f"tensor {name!r} is only on one side", where=dataset, fix="use the plan it was trained by")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    write_model(out, dataset, network.state_dict(), epoch, mirror_axes)
