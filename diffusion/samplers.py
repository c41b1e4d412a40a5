"""From noise to x_0: ancestral steps (``ddpm``), ``ddim`` and a ``multistep`` solver, on any noise schedule.

Every sampler asks the network at descending times; the x_0 of its last evaluation is the result. Latents are not
clipped, because their values have no bounds; in pixels x_0 is clipped to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from common.errors import InputError
from diffusion.noise_schedule import NoiseSchedule
from diffusion.settings import SAMPLERS

NOISIEST_LOG_SNR = -5.1  # the multistep solver spaces its steps from here: noisier images show nothing

Denoise = Callable[[Tensor, int], Tensor]
"""``denoise(noisy, time)``: the prediction of the network for a batch at one time."""
DrawNoise = Callable[[], Tensor]
"""Fresh N(0, 1) numbers in the shape of the batch."""


def sampling_times(schedule: NoiseSchedule, n_evaluations: int, sampler: str) -> list[int]:
    """Times from noise to clean at which the network is asked, ``n_evaluations`` different ones.

    They are evenly spread over the times; for ``multistep`` over the log signal-to-noise ratio.

    Raises:
        InputError: more evaluations than times, or ancestral steps on a rectified flow.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler {sampler!r} is unknown", where="sampler", fix=f"use one of {SAMPLERS}")
    if sampler == "ddpm" and schedule.schedule == "rectified_flow":
        raise InputError("a rectified flow has no ancestral steps", where="sampler", fix="use ddim or multistep")
    if not 1 <= n_evaluations <= schedule.n_times:
        fix = f"use 1 to {schedule.n_times}"
        raise InputError(
            f"there cannot be {n_evaluations} evaluations of {schedule.n_times} times", where="n_evaluations", fix=fix
        )
    last = schedule.n_times - 1
    if n_evaluations == 1:
        return [last]
    if sampler != "multistep":
        return [round(last * (n_evaluations - 1 - i) / (n_evaluations - 1)) for i in range(n_evaluations)]
    log_snr = torch.log(schedule.alpha / schedule.sigma)
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
    schedule: NoiseSchedule,
    denoise: Denoise,
    noise: Tensor,
    n_evaluations: int,
    draw_noise: DrawNoise,
    is_clipped: bool,
) -> Tensor:
    """x_0 from ``noise`` (b, channels, ...).

    Args:
        draw_noise: called by ``ddpm`` alone, once for every step but the last.
        is_clipped: whether what is sampled lies in [-1, 1].
    """
    times = sampling_times(schedule, n_evaluations, sampler)

    def split(noisy: Tensor, time: int) -> tuple[Tensor, Tensor]:
        clean, added = schedule.clean_and_noise(denoise(noisy, time), noisy, time)
        if not is_clipped:
            return clean, added
        clipped = clean.clamp(-1, 1)
        # the noise that goes with the clipped image, so that the two still add up to x_t
        return clipped, (noisy - float(schedule.alpha[time]) * clipped) / float(schedule.sigma[time])

    start = noise * float(schedule.sigma[times[0]])
    if sampler == "ddpm":
        return _ancestral(schedule, split, start, times, draw_noise)
    if sampler == "ddim":
        return _ddim(schedule, split, start, times)
    return _multistep(schedule, split, start, times)


Split = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""``split(x_t, t)``: the x_0 and the noise that the network's prediction divides x_t into."""


def _ancestral(schedule: NoiseSchedule, split: Split, noisy: Tensor, times: list[int], draw_noise: DrawNoise) -> Tensor:
    """Ho et al. 2020, algorithm 2, with the posterior variance (equations 6 and 7) between any two times t > s.

    x_s = alpha_s beta / sigma_t^2 x_0 + r sigma_s^2 / sigma_t^2 x_t + sqrt(beta sigma_s^2 / sigma_t^2) z, where
    r = alpha_t / alpha_s and beta = sigma_t^2 - r^2 sigma_s^2 is the variance added between the two times.
    """
    for time, following in pairwise(times):
        clean, _ = split(noisy, time)
        alpha, sigma2 = float(schedule.alpha[time]), float(schedule.sigma[time]) ** 2
        alpha_next, sigma2_next = float(schedule.alpha[following]), float(schedule.sigma[following]) ** 2
        ratio = alpha / alpha_next
        beta = sigma2 - ratio**2 * sigma2_next
        mean = alpha_next * beta / sigma2 * clean + ratio * sigma2_next / sigma2 * noisy
        noisy = mean + math.sqrt(max(0.0, beta * sigma2_next / sigma2)) * draw_noise()
    return split(noisy, times[-1])[0]


def _ddim(schedule: NoiseSchedule, split: Split, noisy: Tensor, times: list[int]) -> Tensor:
    """Song et al. 2021, equation 12 with eta 0: x_s = alpha_s x_0 + sigma_s e; on a rectified flow Euler's method."""
    for time, following in pairwise(times):
        clean, added = split(noisy, time)
        noisy = float(schedule.alpha[following]) * clean + float(schedule.sigma[following]) * added
    return split(noisy, times[-1])[0]


def _multistep(schedule: NoiseSchedule, split: Split, noisy: Tensor, times: list[int]) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2, in the log signal-to-noise ratio l = log(alpha / sigma).

    With h = l_s - l_t and D = (1 + h / 2 h') x_0 - h / 2 h' x_0' (x_0' and h' of the step before; the first step takes
    D = x_0): x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D.
    """
    log_snr = torch.log(schedule.alpha / schedule.sigma)
    previous: tuple[Tensor, float] | None = None  # x_0' and h'
    for time, following in pairwise(times):
        clean, _ = split(noisy, time)
        width = float(log_snr[following] - log_snr[time])
        estimate = clean
        if previous is not None:
            slope = width / previous[1] / 2
            estimate = (1 + slope) * clean - slope * previous[0]
        shrink = float(schedule.sigma[following] / schedule.sigma[time])
        noisy = shrink * noisy - float(schedule.alpha[following]) * math.expm1(-width) * estimate
        previous = clean, width
    return split(noisy, times[-1])[0]
