"""How noise is added: x_t = alpha_t x_0 + sigma_t e, with e of N(0, 1), for the times 0 (clean) to n - 1 (noise).

Schedules: ``scaled_linear`` (Rombach et al. 2022; the numbers of the specification), ``cosine`` (Nichol and Dhariwal
2021, equation 17), ``rectified_flow`` (Liu et al. 2022: a straight line from image to noise). The network predicts e
or v = alpha e - sigma x_0 (Salimans and Ho 2022); for a rectified flow v is the velocity e - x_0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALED_LINEAR = 0.0015, 0.0205  # first and last beta
N_TABLE = 1000  # number of times that these two belong to
COSINE_OFFSET, LARGEST_BETA = 0.008, 0.999
TIME_SCALE = 1000.0  # the network sees times from 0 to 1000, however many there are


class NoiseSchedule:
    """The tables of a schedule in double precision; every time is an index into them."""

    def __init__(self, schedule: str, prediction_type: str, n_times: int) -> None:
        self.schedule, self.prediction_type, self.n_times = schedule, prediction_type, n_times
        if schedule == "rectified_flow":
            # alpha never becomes 0: x_0 could not be computed there
            self.sigma = (torch.arange(n_times, dtype=torch.float64) + 0.5) / n_times
            self.alpha = 1 - self.sigma
        else:
            kept = _kept_variances(schedule, n_times)
            self.alpha, self.sigma = kept.sqrt(), (1 - kept).sqrt()

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t for ``times`` (b,), of the shape of ``clean`` (b, channels, ...)."""
        return self.at(self.alpha, times, clean) * clean + self.at(self.sigma, times, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict."""
        if self.prediction_type == "epsilon":
            return noise
        if self.schedule == "rectified_flow":
            return noise - clean
        return self.at(self.alpha, times, clean) * noise - self.at(self.sigma, times, clean) * clean

    def clean_and_noise(self, prediction: Tensor, noisy: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """x_0 and e that follow from the prediction at one ``time``."""
        alpha, sigma = float(self.alpha[time]), float(self.sigma[time])
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        if self.schedule == "rectified_flow":
            return noisy - sigma * prediction, noisy + alpha * prediction
        return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction

    def network_timesteps(self, times: Tensor) -> Tensor:
        """``times`` as the network takes them, float from 0 to 1000."""
        return times.float() * (TIME_SCALE / self.n_times)

    def at(self, table: Tensor, times: Tensor, like: Tensor) -> Tensor:
        """Entries of a table, shaped to be multiplied with ``like`` (b, ...)."""
        values = table.to(like.device, like.dtype)[times.to(like.device)]
        return values.reshape(-1, *[1] * (like.ndim - 1))


def _kept_variances(schedule: str, n_times: int) -> Tensor:
    """alpha squared at each time; fewer times than 1000 end as noisy as these."""
    if schedule == "scaled_linear":
        first, last = (math.sqrt(beta) for beta in SCALED_LINEAR)
        logs = torch.cumsum(torch.log1p(-(torch.linspace(first, last, N_TABLE, dtype=torch.float64) ** 2)), 0)
        logs = torch.cat([torch.zeros(1, dtype=torch.float64), logs])
        places = torch.arange(1, n_times + 1, dtype=torch.float64) * (N_TABLE / n_times)
        below = places.long().clamp(max=N_TABLE - 1)
        return torch.exp(logs[below].lerp(logs[below + 1], places - below))
    shares = torch.arange(n_times + 1, dtype=torch.float64) / n_times
    kept = torch.cos((shares + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - kept[1:] / kept[:-1]).clamp(max=LARGEST_BETA), 0)
