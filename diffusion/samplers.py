"""From noise to what the denoiser was trained on: ancestral, DDIM and multistep solvers, on any schedule.

``ddpm``: Ho et al. 2020, algorithm 2, with the posterior variance. ``ddim``: Song et al. 2021, equation 12, eta 0; on a
rectified flow it is Euler's method. ``multistep``: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), second order in the
log signal-to-noise ratio, first order in its first and last step. Nothing is clipped in latent space, whose values are
not bounded; in pixels x_0 is clipped to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.settings import SAMPLERS

NOISIEST_LOG_SNR = -5.1  # from which the multistep solver spaces its steps: beyond it there is nothing to see

Denoise = Callable[[Tensor, int], Tensor]
"""``denoise(noisy, time)``: what the network says of a batch at one time."""
DrawNoise = Callable[[], Tensor]
"""Fresh N(0, 1) numbers in the shape of the batch."""


def sampling_times(noise_schedule: NoiseSchedule, n_evaluations: int, sampler: str) -> list[int]:
    """Times from noise to clean at which the network is asked, ``n_evaluations`` different ones.

    Evenly spread over the times, but for ``multistep``, where the steps are even in the log signal-to-noise ratio.

    Raises:
        InputError: more evaluations than times, or ancestral steps on a rectified flow.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"no sampler {sampler!r}", where="sampler", fix=f"use one of {SAMPLERS}")
    if sampler == "ddpm" and noise_schedule.schedule == "rectified_flow":
        raise InputError("a rectified flow has no ancestral steps", where="sampler", fix="use ddim or multistep")
    if not 1 <= n_evaluations <= noise_schedule.n_times:
        fix = f"use 1 to {noise_schedule.n_times}"
        raise InputError(
            f"{n_evaluations} evaluations of {noise_schedule.n_times} times", where="n_evaluations", fix=fix
        )
    last = noise_schedule.n_times - 1
    if n_evaluations == 1:
        return [last]
    if sampler != "multistep":
        return [round(last * (n_evaluations - 1 - i) / (n_evaluations - 1)) for i in range(n_evaluations)]
    log_snr = torch.log(noise_schedule.alpha / noise_schedule.sigma)
    noisiest = max(float(log_snr[last]), NOISIEST_LOG_SNR)
    wanted = torch.linspace(noisiest, float(log_snr[0]), n_evaluations, dtype=torch.float64)
    return _made_different([last, *(int((log_snr - value).abs().argmin()) for value in wanted[1:])])


def _made_different(times: list[int]) -> list[int]:
    """Descending times without repetition: where the grid is coarser than the steps, the next one is taken."""
    ascending = times[::-1]
    for i in range(1, len(ascending)):
        ascending[i] = max(ascending[i], ascending[i - 1] + 1)
    surplus = ascending[-1] - times[0]
    if surplus > 0:  # pushed beyond the last time: move the end back down
        ascending[-1] = times[0]
        for i in range(len(ascending) - 2, -1, -1):
            ascending[i] = min(ascending[i], ascending[i + 1] - 1)
    return ascending[::-1]


def run_sampler(
    sampler: str,
    noise_schedule: NoiseSchedule,
    denoise: Denoise,
    noise: Tensor,
    n_evaluations: int,
    draw_noise: DrawNoise,
    is_clipped: bool,
) -> Tensor:
    """x_0 from ``noise`` (b, channels, ...).

    Args:
        draw_noise: asked by ``ddpm`` alone, once for every step but the last.
        is_clipped: whether what is sampled lies in [-1, 1].
    """
    times = sampling_times(noise_schedule, n_evaluations, sampler)

    def ask(noisy: Tensor, time: int) -> tuple[Tensor, Tensor]:
        clean, added = noise_schedule.clean_and_noise(denoise(noisy, time), noisy, time)
        if not is_clipped:
            return clean, added
        clipped = clean.clamp(-1, 1)
        # the noise that goes with the clipped image, so that the two still add up to what was asked about
        return clipped, (noisy - float(noise_schedule.alpha[time]) * clipped) / float(noise_schedule.sigma[time])

    start = noise * float(noise_schedule.sigma[times[0]])
    if sampler == "ddpm":
        return _ancestral(noise_schedule, ask, start, times, draw_noise)
    if sampler == "ddim":
        return _ddim(noise_schedule, ask, start, times)
    return _multistep(noise_schedule, ask, start, times)


Ask = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def _ancestral(
    noise_schedule: NoiseSchedule, ask: Ask, noisy: Tensor, times: list[int], draw_noise: DrawNoise
) -> Tensor:
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean, _ = ask(noisy, time)
        if following is None:
            return clean
        alpha, sigma2 = float(noise_schedule.alpha[time]), float(noise_schedule.sigma[time]) ** 2
        alpha_next, sigma2_next = float(noise_schedule.alpha[following]), float(noise_schedule.sigma[following]) ** 2
        ratio = alpha / alpha_next
        beta = sigma2 - ratio**2 * sigma2_next  # variance added between the two times
        mean = alpha_next * beta / sigma2 * clean + ratio * sigma2_next / sigma2 * noisy
        noisy = mean + math.sqrt(max(0.0, beta * sigma2_next / sigma2)) * draw_noise()
    raise AssertionError("the last step returns")


def _ddim(noise_schedule: NoiseSchedule, ask: Ask, noisy: Tensor, times: list[int]) -> Tensor:
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean, added = ask(noisy, time)
        if following is None:
            return clean
        noisy = float(noise_schedule.alpha[following]) * clean + float(noise_schedule.sigma[following]) * added
    raise AssertionError("the last step returns")


def _multistep(noise_schedule: NoiseSchedule, ask: Ask, noisy: Tensor, times: list[int]) -> Tensor:
    log_snr = torch.log(noise_schedule.alpha / noise_schedule.sigma)
    previous: tuple[Tensor, float] | None = None  # x_0 of the step before, and how far that step went
    for time, following in zip(times, [*times[1:], None], strict=True):
        clean, _ = ask(noisy, time)
        if following is None:
            return clean
        width = float(log_snr[following] - log_snr[time])
        estimate = clean
        if previous is not None:
            slope = width / previous[1] / 2
            estimate = (1 + slope) * clean - slope * previous[0]
        shrink = float(noise_schedule.sigma[following] / noise_schedule.sigma[time])
        noisy = shrink * noisy - float(noise_schedule.alpha[following]) * math.expm1(-width) * estimate
        previous = clean, width
    raise AssertionError("the last step returns")
