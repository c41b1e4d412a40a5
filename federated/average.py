"""The weighted mean of models: into fresh memory, each tensor once, the same to the last bit for any order of sites.

The original summed and divided in place, key by key, over state dicts in which one tensor stands under several keys, so
that a tensor with m keys became (w_1 + m * sum_{k>1} w_k) / K^m (defect D1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError
from common.files import sha256_of_file
from federated.update import Layout, read_update

N_KEY_BYTES = 2**20
Model = Mapping[str, Tensor]


@dataclass(frozen=True)
class Average:
    """The mean, and the sites that could not be part of it, with the reason."""

    tensors: Model
    used: tuple[str, ...]
    left_out: Mapping[str, str]


def average_updates(paths: Mapping[str, Path], weights: Mapping[str, float], layout: Layout) -> Average:
    """The mean of the sites' update files, sum_k (w_k / W) x_k with W = sum_k w_k (McMahan et al. 2017, algorithm 1).

    A file that is not of ``layout`` or holds a number that is not finite is left out, and the mean is over the others.
    Integers are counters (of batches seen), of which the largest is taken. The files are mapped and not copied: the
    result is all the memory it takes, whatever the number of sites.

    Raises:
        InputError: no usable update, naming every site's reason.
    """
    # files of another network, or that are not whole, are known by their headers
    updates: dict[str, Model] = {}
    left_out: dict[str, str] = {}
    for site, path in sorted(paths.items()):
        try:
            updates[site] = read_update(path, layout)
        except InputError as error:
            left_out[site] = error.problem

    # the mean is finite where all numbers are; else look for the sites whose numbers are not, and take it again
    mean: Model = {}
    while updates:
        ordered = _canonical({site: paths[site] for site in updates}, weights)
        mean = _mean([updates[site] for site in ordered], [weights[site] for site in ordered])
        if all(bool(tensor.isfinite().all()) for tensor in mean.values()):
            break
        broken = _not_finite(updates)
        left_out |= broken
        updates = {site: update for site, update in updates.items() if site not in broken}
    if not updates:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
        raise InputError(
            f"no site sent a usable update ({reasons})", where="federated round", fix="see the sites' logs"
        )
    return Average(mean, tuple(sorted(updates)), left_out)


def _mean(updates: list[Model], weights: list[float]) -> dict[str, Tensor]:
    """A running mean, m_k = m_{k-1} + (w_k / W_k) (x_k - m_{k-1}) with W_k the sum of the first k weights.

    Equal models average to themselves exactly.
    """
    steps = [weight / total for weight, total in zip(weights, itertools.accumulate(weights), strict=True)]
    mean = {name: tensor.clone() for name, tensor in updates[0].items()}
    for update, step in zip(updates[1:], steps[1:], strict=True):
        for name, tensor in mean.items():
            if tensor.is_floating_point():
                tensor.lerp_(update[name], step)
            else:
                torch.maximum(tensor, update[name], out=tensor)
    return mean


def _canonical(paths: Mapping[str, Path], weights: Mapping[str, float]) -> list[str]:
    """An order that follows from the contents, not from the sites' names or their arrival."""
    keys: dict[str, tuple[float, bytes]] = {}
    for site, path in paths.items():
        with path.open("rb") as stream:
            keys[site] = (weights[site], stream.read(N_KEY_BYTES))
    if len(set(keys.values())) < len(keys):  # equal beginnings: all of the contents decide
        keys = {site: (weights[site], sha256_of_file(path).encode()) for site, path in paths.items()}
    return sorted(paths, key=lambda site: keys[site])


def _not_finite(updates: Mapping[str, Model]) -> dict[str, str]:
    """Sites with a number that is not finite; where only the mean overflows, the one with the largest number."""
    broken: dict[str, str] = {}
    for site, update in updates.items():
        names = [name for name, tensor in update.items() if not bool(tensor.isfinite().all())]
        if names:
            broken[site] = f"tensor {names[0]!r} holds NaN or infinity"
    largest = {
        site: max(float(tensor.abs().max()) for tensor in update.values() if tensor.numel())
        for site, update in updates.items()
    }
    return broken or {max(largest, key=lambda site: largest[site]): "its numbers are too large to average"}
