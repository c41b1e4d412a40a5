"""How sites train together: rounds, what is averaged, what stays at a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.settings import refuse_wrong

WEIGHTINGS = ("cases", "equal")
OPTIMIZER_POLICIES = ("average", "keep", "reset")


@dataclass(frozen=True)
class RoundSettings:
    """FedAvg (McMahan et al. 2017) and its relatives, as deviations from it.

    ``optimizer``: the momentum, whose time constant of 100 steps is longer than many a round, is averaged with the
    weights (default), kept at each site as the original did (D9), or forgotten. ``average`` doubles what travels.
    """

    rounds: int
    local_epochs: int = 1  # the original's, the best in McMahan et al.
    weighting: str = "cases"
    optimizer: str = "average"
    prox_mu: float = 0.0  # FedProx (Li et al. 2020)
    local_norms: bool = False  # FedBN (Li et al. 2021): normalisation layers never leave a site

    def __post_init__(self) -> None:
        checks = (
            ("rounds", self.rounds, self.rounds > 0, "a number above 0"),
            ("local_epochs", self.local_epochs, self.local_epochs > 0, "a number above 0"),
            ("weighting", self.weighting, self.weighting in WEIGHTINGS, f"one of {WEIGHTINGS}"),
            ("optimizer", self.optimizer, self.optimizer in OPTIMIZER_POLICIES, f"one of {OPTIMIZER_POLICIES}"),
            ("prox_mu", self.prox_mu, self.prox_mu >= 0, "a number from 0"),
        )
        refuse_wrong(checks, "federated")


def weights_of(n_cases: Mapping[str, int], weighting: str) -> dict[str, float]:
    """The sites' weights; only their proportions count."""
    return {site: float(count) if weighting == "cases" else 1.0 for site, count in n_cases.items()}
