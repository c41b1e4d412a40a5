"""nnU-Net's trainer with seeds, our schedules, atomic checkpoints after every epoch and a progress callback."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from common.files import atomic_path, read_json
from common.progress import Progress, silent
from common.seeds import derive_seed, set_global_seeds
from nnunetv2_mod.plan import CONFIGURATION, PLANS_NAME
from nnunetv2_mod.schedule import TrainSettings, learning_rate

LATEST = "checkpoint_latest.pth"


class EpochSchedule:
    """The part of a torch scheduler that nnU-Net calls: ``step(epoch)``."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainSettings) -> None:
        self.optimizer, self.settings = optimizer, settings

    def step(self, epoch: int) -> None:
        """Set the rate of ``epoch`` on every parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, epoch)


class SiteTrainer(nnUNetTrainer):
    """One site's trainer. nnU-Net builds trainers by a fixed signature, so what is ours comes as class attributes."""

    settings: ClassVar[TrainSettings] = TrainSettings()
    seed: ClassVar[int] = 0
    report: ClassVar[Progress] = staticmethod(silent)
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.settings.n_epochs
        self.num_iterations_per_epoch = self.settings.n_iterations
        self.num_val_iterations_per_epoch = self.settings.n_val_iterations
        self.initial_lr = self.settings.initial_lr

    def resume(self) -> bool:
        """Load the last checkpoint if there is one."""
        latest = Path(self.output_folder) / LATEST
        if latest.is_file():
            self.load_checkpoint(str(latest))
        return latest.is_file()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """nnU-Net's optimiser with our schedule."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, EpochSchedule(optimizer, self.settings)

    def on_train_epoch_start(self) -> None:
        """Seed every epoch by its number, so that a resumed run draws what an undisturbed one does."""
        set_global_seeds(derive_seed(self.seed, "train", self.current_epoch))
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        """The same validation patches in every epoch, so that epochs can be compared."""
        set_global_seeds(derive_seed(self.seed, "validate"))
        super().on_validation_epoch_start()

    def on_epoch_end(self) -> None:
        """Keep the best by EMA pseudo-Dice, then write the point to resume from, in that order."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        ema = self.logger.get_value("ema_fg_dice", step=-1)
        # a pseudo-Dice is undefined where neither truth nor prediction holds foreground; the first epoch still counts
        if self._best_ema is None or ema > self._best_ema or np.isnan(self._best_ema):
            self._best_ema = ema
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_best.pth"))  # noqa: PTH118
        is_last = self.current_epoch == self.num_epochs - 1
        if (self.current_epoch + 1) % self.settings.checkpoint_every == 0 and not is_last:
            self.save_checkpoint(os.path.join(self.output_folder, LATEST))  # noqa: PTH118
        self.current_epoch += 1
        type(self).report(self.current_epoch, self.num_epochs, "epochs")

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, written whole or not at all."""
        with atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def on_train_end(self) -> None:
        """nnU-Net's final checkpoint and one progress plot (it redraws it every epoch otherwise)."""
        super().on_train_end()
        self.logger.plot_progress_png(self.output_folder)

    def plot_network_architecture(self) -> None:
        """Left out: it needs a package that no longer works."""

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = False, add_timestamp: bool = True) -> None:
        """Into nnU-Net's log file only; the console shows the pipeline's progress."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)


def build_trainer(
    dataset: Path,
    settings: TrainSettings,
    seed: int,
    device: torch.device,
    progress: Progress,
    initial_seed: int | None = None,
) -> SiteTrainer:
    """A trainer for the preprocessed ``dataset``; seeds first, as the network is drawn at initialisation."""
    set_global_seeds(derive_seed(seed if initial_seed is None else initial_seed, "initialise"))
    attributes = {"settings": settings, "seed": seed, "report": staticmethod(progress)}
    configured = type("SiteTrainer", (SiteTrainer,), attributes)
    plans = {**read_json(dataset / f"{PLANS_NAME}.json"), "continue_training": False}
    trainer: SiteTrainer = configured(plans, CONFIGURATION, 0, read_json(dataset / "dataset.json"), device)
    return trainer
