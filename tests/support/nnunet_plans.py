"""Plans as nnU-Net writes them, machines, and the settings that follow from both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common.machine import Machine
from common.plan import Plan, plan_from_json, square_plan
from diffusion.layout import layout_of
from diffusion.planning import (
    derive_settings,
)
from diffusion.settings import (
    AutoencoderConfig,
    AutoencoderSettings,
    DenoiserSettings,
    DiffusionConfig,
    DiffusionSettings,
)

LAPTOP, GPU_8, GPU_24, H200 = (
    Machine("cpu", 8.0, False),
    Machine("cuda", 8.0, False),
    Machine("cuda", 24.0, True),
    Machine("cuda", 140.0, True),
)
LATENT, PIXELS = DiffusionConfig(AutoencoderConfig()), DiffusionConfig()
MODELS = {"ddpm": PIXELS, "ldm": LATENT}


def configuration(
    patch: list[int], median: list[float], strides: list[Any], kernels: list[Any], batch_size: int = 2
) -> dict[str, Any]:
    """Of one channel, in the current layout."""
    return {
        "data_identifier": f"nnUNetPlans_{len(patch)}d",
        "batch_size": batch_size,
        "patch_size": patch,
        "median_image_size_in_voxels": median,
        "spacing": [1.0] * len(patch),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "arch_kwargs": {
                "strides": strides,
                "kernel_sizes": kernels,
                "features_per_stage": [min(320, 32 * 2**i) for i in range(len(strides))],
            }
        },
    }


def plans_of(configurations: dict[str, Any], n_channels: int = 1) -> dict[str, Any]:
    for one in configurations.values():
        for key in ("normalization_schemes", "use_mask_for_norm"):
            if key in one:
                one[key] = one[key] * n_channels
    return {
        "dataset_name": "Dataset001_X",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_shape_after_transp": [20, 64, 64],
        "foreground_intensity_properties_per_channel": {str(i): {"mean": 1.0} for i in range(n_channels)},
        "configurations": configurations,
    }


def brain() -> dict[str, Any]:
    """Four channels, isotropic, as BraTS is planned; the worked example of the specification (section 4.4)."""
    volumes = configuration([128] * 3, [138, 169, 138], [[1] * 3] + [[2] * 3] * 5, [[3] * 3] * 6)
    images = configuration([192, 160], [192, 160], [[1, 1]] + [[2, 2]] * 5, [[3, 3]] * 6, 105)
    return plans_of({"2d": images, "3d_fullres": volumes}, 4)


def prostate() -> dict[str, Any]:
    """Thick slices: flat kernels, and strides that keep the first axis."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    kernels = [[1, 3, 3]] * 3 + [[3, 3, 3]] * 3
    return plans_of({"3d_fullres": configuration([16, 320, 320], [20.0, 320.4, 319.9], strides, kernels)})


def small_2d() -> dict[str, Any]:
    return plans_of({"2d": configuration([64, 48], [60, 44], [[1, 1]] + [[2, 2]] * 3, [[3, 3]] * 4, 49)})


def tiny_3d(*median: int) -> Plan:
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    one = plan_from_json(prostate(), "3d_fullres")
    return replace(one, median_image_size=median, strides=strides, kernel_sizes=((3, 3, 3),) * 4)


def derived(plan: Plan, config: DiffusionConfig, machine: Machine, n_images: int = 500) -> DiffusionSettings:
    return derive_settings(plan, n_images, plan.n_channels, None, config, machine)


def reduced(plan: Plan, config: DiffusionConfig) -> tuple[AutoencoderSettings | None, DenoiserSettings, Any]:
    """Both networks with widths of 4, on the strides and kernels that the plan leads to."""
    layout, own = layout_of(plan, config), None
    if config.autoencoder is not None:
        own = replace(
            derived(square_plan(8), LATENT, LAPTOP).autoencoder,
            channels=(4,) * (len(layout.autoencoder_strides) + 1),
            first_kernel=layout.first_kernel,
            strides=layout.autoencoder_strides,
            kernel_sizes=layout.autoencoder_kernels,
        )
    n_levels = len(layout.denoiser_strides) + 1
    denoiser = DenoiserSettings(
        n_channels=1 if own is None else own.latent_channels,
        channels=(4,) * n_levels,
        n_res_blocks=1,
        first_kernel=layout.denoiser_first_kernel,
        strides=layout.denoiser_strides,
        kernel_sizes=layout.denoiser_kernels,
        attention=(False,) * n_levels,
    )
    return own, denoiser, layout
