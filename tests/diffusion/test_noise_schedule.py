"""Noise, samplers and what the networks are asked: closed forms, and MONAI's schedulers as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.samplers import run_sampler, sampling_times
from diffusion.settings import SAMPLERS, SCHEDULES

ALL = [(schedule, prediction) for schedule in SCHEDULES for prediction in ("v", "epsilon")]
ALL.remove(("rectified_flow", "epsilon"))


@pytest.mark.parametrize(("schedule", "prediction"), ALL)
def test_what_the_network_should_say_leads_back_to_image_and_noise(schedule: str, prediction: str) -> None:
    noise_schedule, draws = NoiseSchedule(schedule, prediction, 1000), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 1, 8, 8, generator=draws, dtype=torch.float64)
    for time in (0, 10, 500, 950):
        times = torch.full((4,), time)
        noisy = noise_schedule.noised(clean, noise, times)
        found = noise_schedule.clean_and_noise(noise_schedule.target(clean, noise, times), noisy, time)
        assert torch.allclose(found[0], clean, atol=1e-6) and torch.allclose(found[1], noise, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_grows_from_almost_none_to_almost_nothing_else(schedule: str) -> None:
    noise_schedule = NoiseSchedule(schedule, "v", 1000)
    assert (noise_schedule.alpha.diff() < 0).all() and (noise_schedule.sigma.diff() > 0).all()
    assert noise_schedule.alpha[0] > 0.99 and noise_schedule.sigma[-1] > 0.99


def test_the_schedule_of_the_specification_is_monais() -> None:
    from monai.networks.schedulers import DDPMScheduler

    reference = DDPMScheduler(1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205)
    ours = NoiseSchedule("scaled_linear", "epsilon", 1000)
    assert torch.allclose(ours.alpha.float() ** 2, reference.alphas_cumprod, atol=1e-5)


def denoiser_of_a_gaussian(noise_schedule: NoiseSchedule, std: float):
    """What a perfect network says of images that are N(0, std^2), pixel by pixel."""

    def denoise(noisy: torch.Tensor, time: int) -> torch.Tensor:
        alpha, sigma = float(noise_schedule.alpha[time]), float(noise_schedule.sigma[time])
        clean = noisy * alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        noise = (noisy - alpha * clean) / sigma
        times = torch.full((len(noisy),), time)
        return noise_schedule.target(clean, noise, times)

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_network_gives_the_distribution_it_knows(schedule: str, sampler: str) -> None:
    """Closed form: of Gaussian images every sampler gives Gaussian images of the same deviation."""
    if (schedule, sampler) == ("rectified_flow", "ddpm"):
        pytest.skip("has no ancestral steps")
    noise_schedule, std = NoiseSchedule(schedule, "v", 1000), 0.3
    draws = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(50_000, 1, generator=draws, dtype=torch.float64)

    n_evaluations = {"ddpm": 1000, "ddim": 200, "multistep": 20}[sampler]
    made = run_sampler(
        sampler, noise_schedule, denoiser_of_a_gaussian(noise_schedule, std), draw(), n_evaluations, draw, False
    )
    assert abs(float(made.std()) / std - 1) < 0.05 and abs(float(made.mean())) < 0.01


def test_ten_multistep_evaluations_are_nearer_to_the_exact_solution_than_ten_of_ddim() -> None:
    """The flow of a Gaussian is known: x_0 = noise * std."""
    noise_schedule, std = NoiseSchedule("cosine", "v", 1000), 0.3
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = {}
    for sampler in ("ddim", "multistep"):
        made = run_sampler(
            sampler, noise_schedule, denoiser_of_a_gaussian(noise_schedule, std), noise, 10, lambda: noise, False
        )
        errors[sampler] = float((made - noise * std).abs().max())
    assert errors["multistep"] < 0.5 * errors["ddim"] and errors["multistep"] < 0.02


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_ddim_is_monais(prediction: str) -> None:
    """All 1000 times, an arbitrary network; MONAI steps from its last time to x_0 with alpha of time 0."""
    from monai.networks.schedulers import DDIMScheduler

    kind = {"v": "v_prediction", "epsilon": "epsilon"}[prediction]
    reference = DDIMScheduler(
        1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, prediction_type=kind, clip_sample=False
    )
    reference.set_timesteps(1000)
    noise_schedule = NoiseSchedule("scaled_linear", prediction, 1000)
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def says(noisy: torch.Tensor, time: int) -> torch.Tensor:
        return torch.tanh(noisy * 0.7 + time / 1000)

    expected = noise
    for time in reference.timesteps:
        expected, clean = reference.step(says(expected, int(time)), int(time), expected)
    made = run_sampler("ddim", noise_schedule, says, noise / noise_schedule.sigma[-1], 1000, lambda: noise, False)
    assert float((made - clean).abs().max()) < 2e-3 * float(clean.abs().max())


def test_nothing_is_clipped_where_values_have_no_bounds() -> None:
    """Defect 6: the original clipped predicted latents, of deviation 1, to [-1, 1]."""
    noise_schedule = NoiseSchedule("cosine", "v", 1000)
    noise = torch.full((1, 1), 1.0, dtype=torch.float64)
    arguments = (noise_schedule, denoiser_of_a_gaussian(noise_schedule, 3.0), noise, 20, lambda: noise)
    assert float(run_sampler("multistep", *arguments, False)) > 2.5
    assert float(run_sampler("multistep", *arguments, True)) <= 1.0


@given(st.sampled_from(SAMPLERS), st.sampled_from(SCHEDULES), st.integers(1, 300), st.integers(10, 300))
@settings(max_examples=100, deadline=None)
def test_times_of_a_sampler_are_different_and_go_from_noise_to_clean(
    sampler: str, schedule: str, n_evaluations: int, n_times: int
) -> None:
    noise_schedule = NoiseSchedule(schedule, "v", n_times)
    if n_evaluations > n_times or (sampler, schedule) == ("ddpm", "rectified_flow"):
        with pytest.raises(InputError, match="way out"):
            sampling_times(noise_schedule, n_evaluations, sampler)
        return
    times = sampling_times(noise_schedule, n_evaluations, sampler)
    assert len(times) == n_evaluations and times[0] == n_times - 1
    assert (np.diff(times) < 0).all() and times[-1] >= 0 and (n_evaluations == 1 or times[-1] == 0)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="multistep"):
        sampling_times(NoiseSchedule("cosine", "v", 10), 5, "euler")
