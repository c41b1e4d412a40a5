"""The weighted mean of models: into fresh memory, each tensor once, the same to the last bit for any order of sites.

The original summed and divided in place, key by key, over state dicts in which one tensor stands under several keys, so
that a tensor with m keys became (w_1 + m * sum_{k>1} w_k) / K^m (defect D1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import InputError
from federated.update import FLOATS, Layout, Update, open_update

CHUNK = 2**18  # floats: 1 MiB, so that the running mean stays in a core's cache while every site's chunk passes once
N_KEY_BYTES = 2**16


@dataclass(frozen=True)
class Average:
    """The mean, and the sites that could not be part of it, with the reason."""

    floats: torch.Tensor
    integers: torch.Tensor
    used: tuple[str, ...]
    left_out: Mapping[str, str]


def average_updates(paths: Mapping[str, Path], weights: Mapping[str, float], layout: Layout) -> Average:
    """The mean of the sites' update files weighted by ``weights``; files are mapped and read once, chunk by chunk.

    A file that is not of ``layout`` or holds a number that is not finite is left out, and the mean is over the others.
    Beside the result no more than a chunk is allocated, whatever the number of sites.

    Raises:
        InputError: no usable update, naming every site's reason.
    """
    updates: dict[str, Update] = {}
    left_out: dict[str, str] = {}
    for site, path in sorted(paths.items()):
        try:
            updates[site] = open_update(path, layout)
        except InputError as error:
            left_out[site] = error.problem
    floats = torch.empty(layout.n_floats, dtype=torch.float32)
    while updates:
        ordered = _canonical(updates, weights)
        average_into(floats, [updates[site].floats for site in ordered], [weights[site] for site in ordered])
        if _is_finite(floats):
            break
        broken = _not_finite(updates)
        left_out |= broken
        for site in broken:
            del updates[site]
    if not updates:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
        raise InputError(
            f"no site sent a usable update ({reasons})", where="federated round", fix="see the sites' logs"
        )
    integers = torch.stack([update.integers for update in updates.values()]).max(dim=0).values
    return Average(floats, integers, tuple(sorted(updates)), left_out)


def average_tensors(models: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of state dicts, key by key, into fresh tensors; aliases among their tensors do no harm.

    Floating-point tensors are averaged; integer ones are counters (of batches seen), of which the largest is taken.
    """
    order = sorted(range(len(models)), key=lambda index: (weights[index], _digest(models[index])))
    averaged = {}
    for name, first in models[0].items():
        stack = [models[index][name].contiguous() for index in order]
        if not first.is_floating_point():
            averaged[name] = torch.stack(stack).max(dim=0).values
            continue
        out = torch.empty_like(first, memory_format=torch.contiguous_format)
        average_into(out.view(-1), [tensor.view(-1) for tensor in stack], [weights[index] for index in order])
        averaged[name] = out
    return averaged


def average_into(out: torch.Tensor, vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> None:
    """``out`` becomes the weighted mean of the flat ``vectors``, summed in the order given.

    A running mean, m_k = m_{k-1} + (w_k / W_k) (x_k - m_{k-1}): equal models average to themselves exactly.
    """
    total, steps = 0.0, []
    for weight in weights:
        total += weight
        steps.append(weight / total)
    for start in range(0, out.numel(), CHUNK):
        part = out[start : start + CHUNK]
        part.copy_(vectors[0][start : start + CHUNK])
        for vector, step in zip(vectors[1:], steps[1:], strict=True):
            torch.lerp(part, vector[start : start + CHUNK], step, out=part)


def _canonical(updates: Mapping[str, Update], weights: Mapping[str, float]) -> list[str]:
    """An order that follows from the contents, not from the sites' names or their arrival."""

    def key(site: str) -> tuple[float, bytes]:
        return weights[site], updates[site].floats[: N_KEY_BYTES // 4].numpy().tobytes()

    keys = {site: key(site) for site in updates}
    if len(set(keys.values())) < len(keys):  # equal beginnings: all of the contents decide
        keys = {site: (weights[site], _digest({"": update.floats})) for site, update in updates.items()}
    return sorted(updates, key=lambda site: keys[site])


def _digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _not_finite(updates: Mapping[str, Update]) -> dict[str, str]:
    """Sites whose floats are not all finite; where only the mean overflows, the one with the largest number."""
    broken = {site: _first_not_finite(update) for site, update in updates.items() if not _is_finite(update.floats)}
    if broken:
        return broken
    largest = max(updates, key=lambda site: float(updates[site].floats.abs().max()))
    return {largest: "its numbers are too large to average"}


def _is_finite(floats: torch.Tensor) -> bool:
    """One pass without a mask of the model's size; doubles cannot overflow on a sum of single-precision numbers."""
    return bool(torch.isfinite(floats.sum(dtype=torch.float64)))


def _first_not_finite(update: Update) -> str:
    start = 0
    for name, _, shape in (entry for entry in update.layout.entries if entry[1] == FLOATS):
        n_values = torch.Size(shape).numel()
        values = update.floats[start : start + n_values]
        if not bool(torch.isfinite(values).all()):
            return f"tensor {name!r} holds NaN or infinity"
        start += n_values
    return "holds NaN or infinity"
