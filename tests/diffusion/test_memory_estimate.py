"""Memory of a training as it is estimated, and what gives way to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.nnunet_plans import (
    GPU_8,
    LAPTOP,
    LATENT,
    MODELS,
    brain,
    derived,
)

from common.errors import InputError
from common.machine import Machine
from common.plan import plan_from_json, square_plan
from diffusion.cost import (
    StepMemory,
    autoencoder_step,
    denoiser_step,
    estimated_bytes,
    meta_autoencoder,
    meta_denoiser,
)
from diffusion.planning import (
    derive_settings,
)
from diffusion.settings import (
    DenoiserSettings,
    DiffusionConfig,
)


@contextmanager
def counted_storages(network: torch.nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """What a forward pass keeps for the backward pass, each storage once, parameters not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def kept_on_the_cpu(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    network = network.to_empty(device="cpu")
    with counted_storages(network) as kept:
        outputs = network(*(torch.zeros(one.shape) for one in inputs))
        n_bytes = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return float(n_bytes)


NETWORKS = {
    "images": DenoiserSettings(1, (16, 32), 2, (3, 3), ((2, 2),), ((3, 3),), (False, False)),
    "attention": DenoiserSettings(2, (8, 16), 1, (3, 3), ((2, 2),), ((3, 3),), (False, True)),
    "flat volumes": DenoiserSettings(1, (8, 8), 1, (1, 3, 3), ((1, 2, 2),), ((1, 3, 3),), (False, False)),
}


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_memory_is_at_least_what_a_forward_pass_keeps_and_at_most_twice(settings: DenoiserSettings) -> None:
    size = (16,) * len(settings.first_kernel)
    kept = kept_on_the_cpu(*meta_denoiser(settings, size))
    estimated = denoiser_step(settings, size, "fp32")
    assert kept <= estimated.activations <= estimated.at_once <= 2 * kept
    in_parts = replace(settings, checkpointing=True)
    kept_in_parts = kept_on_the_cpu(*meta_denoiser(in_parts, size))
    assert kept_in_parts <= denoiser_step(in_parts, size, "fp32").activations < estimated.activations
    half = denoiser_step(settings, size, "bf16").activations / estimated.activations
    assert 0.5 < half < 1  # autocast keeps what norms are given in float32
    assert estimated.weights == 4 * sum(p.numel() for p in meta_denoiser(settings, size)[0].parameters())


def test_memory_of_an_autoencoder_has_its_losses_in_it() -> None:
    own = derived(square_plan(32), LATENT, LAPTOP).autoencoder
    assert own is not None
    alone = replace(own, channels=(8, 16), perceptual="none", adversarial_weight=0.0)
    size = (32, 32)
    kept, estimated = kept_on_the_cpu(*meta_autoencoder(alone, size)), autoencoder_step(alone, size, "fp32")
    assert kept <= estimated.activations <= estimated.at_once <= 2 * kept
    with_critic = autoencoder_step(replace(alone, adversarial_weight=0.1), size, "fp32")
    assert with_critic.weights > estimated.weights and with_critic.activations > estimated.activations
    with_both = autoencoder_step(replace(alone, adversarial_weight=0.1, perceptual="efficientnet_lite0"), size, "fp32")
    assert with_both.weights == with_critic.weights and with_both.activations > with_critic.activations


@pytest.mark.parametrize("machine", [GPU_8, replace(GPU_8, has_bf16=True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_volumes_of_four_channels_fit_into_8_gib(machine: Machine, config: DiffusionConfig) -> None:
    made = derived(plan_from_json(brain(), "3d_fullres"), config, machine)
    assert max(estimated_bytes(made).values()) <= 0.8 * 8 * 2**30
    assert made.image_size == (128, 192, 128) and made.denoiser.checkpointing
    for training in (made, made.autoencoder or made):
        assert training.batch_size % training.n_accumulated == 0


def test_what_gives_way_to_the_memory_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing, then parts, then widths; with the parts given, the batch before the widths."""
    used: list[tuple[float, int, bool]] = []

    def step(settings: DenoiserSettings, size: tuple[int, ...], precision: str) -> StepMemory:
        used.append((settings.channels[0], 0, settings.checkpointing))
        n_bytes = 2**30 * settings.channels[0] / 64 * (0.5 if settings.checkpointing else 1.0)
        return StepMemory(0.0, n_bytes, 0.0)

    monkeypatch.setattr("diffusion.cost.denoiser_step", step)
    monkeypatch.setattr("diffusion.cost.BASELINE_BYTES", 0.0)

    def found(needed_gib: float, **given: Any) -> tuple[Any, ...]:
        machine = Machine("cuda", needed_gib / 0.8, False)
        made = derive_settings(replace(square_plan(32), batch_size=11), 99, 1, 1.0, DiffusionConfig(**given), machine)
        return made.denoiser.channels[0], made.batch_size, made.n_accumulated, made.denoiser.checkpointing

    assert found(8.0) == (64, 8, 1, False) and found(7.9) == (64, 8, 1, True) and found(3.9) == (64, 8, 2, True)
    assert found(0.5) == (64, 8, 8, True) and found(0.49) == (32, 8, 8, True)
    assert found(0.0625) == (8, 8, 8, True)
    assert found(7.9, checkpointing=False) == (64, 8, 2, False)
    assert found(1.0, n_accumulated=2) == (64, 4, 2, True) and found(0.25, n_accumulated=2) == (32, 2, 2, True)
    assert found(0.25, n_accumulated=2, batch_size=8) == (8, 8, 2, True)
    assert found(1.0, channels=(64, 64), n_accumulated=1) == (64, 2, 1, True)
    for fixed in ({}, {"channels": (64,)}, {"batch_size": 8, "n_accumulated": 1}):
        with pytest.raises(InputError, match=r"\(32, 32\).* GiB"):
            found(0.06, **fixed)
