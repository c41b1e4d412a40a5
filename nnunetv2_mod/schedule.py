"""How long a network trains and at which learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import InputError

SCHEDULES = ("poly", "poly_warmup")
WARMUP_FRACTION = 0.1
POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class TrainSettings:
    """nnU-Net's training constants; the defaults are nnU-Net's."""

    n_epochs: int = 1000
    n_iterations: int = 250  # per epoch
    n_val_iterations: int = 50  # per epoch
    schedule: str = "poly"
    initial_lr: float = 1e-2
    augmentation_processes: int = 0  # 0: in the training process, reproducible; more: faster on GPUs, not reproducible
    checkpoint_every: int = 1  # epochs between two points a killed training can resume from

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"schedule {self.schedule!r} is unknown", where="nnunet schedule", fix=f"use one of {SCHEDULES}"
            )


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Learning rate of ``epoch`` (from 0): poly decay, or a linear warm-up over a tenth of the epochs before it.

    The warm-up has at least one epoch and its first rate is above zero (the original trained its first epoch at
    exactly 0 and dropped the warm-up below 10 epochs, D15).
    """
    n_warmup = 0
    if settings.schedule == "poly_warmup" and settings.n_epochs > 1:
        n_warmup = max(1, int(WARMUP_FRACTION * settings.n_epochs))
    if epoch < n_warmup:
        return settings.initial_lr * (epoch + 1) / (n_warmup + 1)
    remaining = 1 - (epoch - n_warmup) / (settings.n_epochs - n_warmup)
    return settings.initial_lr * remaining**POLY_EXPONENT
