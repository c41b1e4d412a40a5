"""A site's part: its trainer lives through all rounds; only files of weights leave it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.settings import from_dict
from federated.settings import RoundSettings
from federated.update import MOMENTUM, overwrite_update, read_into, write_update
from nnunetv2_mod import RoundTrainer, TrainSettings, export_model


class Client:
    """The worker of one site (see ``engine.workers``): every argument and answer is plain.

    Args:
        planned: the site's cases, preprocessed by the common plan.
        folder: the site's own: nnU-Net's files and, where something stays at the site, ``local_<round>.safetensors``.
    """

    def __init__(
        self,
        planned: str,
        folder: str,
        train: Mapping[str, Any],
        rounds: Mapping[str, Any],
        seed: int,
        initial_seed: int,
        device: str,
    ) -> None:
        self._planned, self._folder = Path(planned), Path(folder)
        self._settings = from_dict(RoundSettings, rounds)
        self._trainer = RoundTrainer(
            self._planned,
            self._folder / "nnunet",
            from_dict(TrainSettings, train),
            seed,
            initial_seed,
            device,
            self._settings.prox_mu,
        )
        norms = self._trainer.norm_tensors() if self._settings.local_norms else frozenset()
        self._shared = sorted(set(self._trainer.tensors()) - norms)
        self._held = ("", -1)  # the common model that the trainer holds: its file and round

    def describe(self, initial: str) -> dict[str, Any]:
        """The number of training cases; the first weights, which every site draws alike, go to ``initial``."""
        write_update(Path(initial), self._outgoing(), {"round": 0})
        return {"n_cases": self._trainer.n_cases}

    def train(self, round_index: int, model: str, update: str, keep_rounds: Sequence[int]) -> dict[str, Any]:
        """Train this round's epochs from the common ``model`` and write the site's ``update``."""
        started = time.monotonic()
        self._take(model, round_index)
        if self._settings.optimizer == "reset":
            self._trainer.forget_momentum()
        epochs = self._settings.local_epochs
        loss = self._trainer.train_epochs(round_index * epochs, epochs)
        trained_s = time.monotonic() - started
        self._held = ("", -1)
        overwrite_update(Path(update), self._outgoing(), {"round": round_index + 1})
        self._save_local(round_index + 1, keep_rounds)
        return {"train_loss": loss, "train_s": trained_s}

    def validate(self, round_index: int, model: str) -> dict[str, Any]:
        """Pseudo-Dice of the common ``model`` (with the site's own tensors, where it has any) after a round."""
        started = time.monotonic()
        self._take(model, round_index)
        loaded_s = time.monotonic() - started
        return {"val_dice": self._trainer.validate(), "validate_s": time.monotonic() - started - loaded_s}

    def export(self, round_index: int, model: str, out: str) -> None:
        """Write the model of a round as it is used at this site."""
        self._take(model, round_index)
        epoch = round_index * self._settings.local_epochs
        tensors = {name: tensor.detach().cpu() for name, tensor in self._trainer.tensors().items()}
        export_model(self._planned, tensors, Path(out), epoch, self._trainer.mirror_axes)

    def _outgoing(self) -> dict[str, torch.Tensor]:
        """The live tensors that are exchanged: network, and momentum where that is averaged too."""
        tensors = self._trainer.tensors()
        outgoing = {name: tensors[name] for name in self._shared}
        if self._settings.optimizer == "average":
            momentum = self._trainer.momentum()
            outgoing |= {f"{MOMENTUM}{name}": momentum[name] for name in self._shared if name in momentum}
        return outgoing

    def _staying(self) -> dict[str, torch.Tensor]:
        """The live tensors that never leave and that a worker made anew would miss."""
        outgoing, momentum = self._outgoing(), self._trainer.momentum()
        staying = {name: tensor for name, tensor in self._trainer.tensors().items() if name not in outgoing}
        if self._settings.optimizer != "reset":
            named = {f"{MOMENTUM}{name}": tensor for name, tensor in momentum.items()}
            staying |= {name: tensor for name, tensor in named.items() if name not in outgoing}
        return staying

    def _take(self, model: str, round_index: int) -> None:
        """Read the common model and what the site kept of that round, unless the trainer holds them already."""
        if self._held == (model, round_index):
            return
        read_into(Path(model), self._outgoing())
        # what stayed at the site after that round, or after the last one before it that the site took part in
        files = {int(file.stem.removeprefix("local_")): file for file in self._folder.glob("local_*.safetensors")}
        known = [kept for kept in files if kept <= round_index]
        if known:
            read_into(files[max(known)], self._staying())
        self._trainer.anchor(self._shared)
        self._held = (model, round_index)

    def _save_local(self, round_index: int, keep_rounds: Sequence[int]) -> None:
        """Keep what is not exchanged, so that a worker made anew goes on as this one would have."""
        staying = self._staying()
        if not staying:
            return
        write_update(self._folder / f"local_{round_index}.safetensors", staying, {"round": round_index})
        kept = {f"local_{kept_round}.safetensors" for kept_round in (*keep_rounds, round_index)}
        for file in self._folder.glob("local_*.safetensors"):
            if file.name not in kept:
                file.unlink()
