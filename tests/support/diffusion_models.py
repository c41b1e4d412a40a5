"""Diffusion models small enough for tests, with every setting given by hand."""

from __future__ import annotations

from dataclasses import replace

from diffusion.settings import (
    AutoencoderConfig,
    AutoencoderSettings,
    DenoiserSettings,
    DiffusionConfig,
    DiffusionSettings,
)


def tiny_settings(
    *,
    in_latents: bool,
    size: tuple[int, ...] = (16, 16),
    n_channels: int = 1,
    n_label_channels: int = 0,
    kind: str = "kl",
    n_accumulated: int = 1,
    n_epochs: int = 2,
    steps_per_epoch: int = 5,
    **config: object,
) -> DiffusionSettings:
    """Two levels, batches of four; ``config``: other values of ``DiffusionConfig``."""
    stride, kernel = (2,) * len(size), (3,) * len(size)
    chosen = DiffusionConfig(AutoencoderConfig(kind=kind) if in_latents else None, n_evaluations=4)
    chosen = replace(chosen, **config)  # type: ignore[arg-type]
    n_data = n_channels + n_label_channels
    autoencoder = AutoencoderSettings(
        kind=kind,
        n_channels=n_data,
        channels=(8, 16),
        latent_channels=4,
        n_res_blocks=1,
        codebook_size=32,
        first_kernel=kernel,
        strides=(stride,),
        kernel_sizes=(kernel,),
        perceptual="efficientnet_lite0",
        perceptual_weight=0.5,
        adversarial_weight=0.05,
        kl_weight=1e-3,
        learning_rate=1e-3,
        batch_size=4,
        n_accumulated=n_accumulated,
        checkpointing=False,
        n_epochs=n_epochs,
        steps_per_epoch=steps_per_epoch,
        adversarial_from_step=n_epochs * steps_per_epoch // 2,
    )
    denoiser = DenoiserSettings(
        n_channels=4 if in_latents else n_data,
        channels=(8, 16),
        n_res_blocks=1,
        first_kernel=kernel,
        strides=(stride,),
        kernel_sizes=(kernel,),
        attention=(False, True),
    )
    return DiffusionSettings(
        config=chosen,
        image_size=size,
        n_channels=n_channels,
        n_label_channels=n_label_channels,
        autoencoder=autoencoder if in_latents else None,
        denoiser=denoiser,
        batch_size=4,
        n_accumulated=n_accumulated,
        precision="fp32",
        learning_rate=1e-3,
        kimg=0.1,
        ema_kimg=0.005,
        n_epochs=n_epochs,
        steps_per_epoch=steps_per_epoch,
    )
