"""The weighted mean of models: into fresh memory, each tensor once, the same to the last bit for any order of sites.

The original summed and divided in place, key by key, over state dicts in which one tensor stands under several keys, so
that a tensor with m keys became (w_1 + m * sum_{k>1} w_k) / K^m (defect D1).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import InputError
from federated.update import FLOATS, Layout, Update, open_update, read_numbers

CHUNK = 2**18  # floats: 1 MiB, so that the running mean stays in a core's cache while every site's chunk passes once
N_KEY_BYTES = 2**16


@dataclass(frozen=True)
class Average:
    """The mean, and the sites that could not be part of it, with the reason."""

    floats: torch.Tensor
    integers: torch.Tensor
    used: tuple[str, ...]
    left_out: Mapping[str, str]


def average_updates(
    paths: Mapping[str, Path], weights: Mapping[str, float], layout: Layout, out: torch.Tensor | None = None
) -> Average:
    """The mean of the sites' update files, sum_k (w_k / W) x_k with W = sum_k w_k (McMahan et al. 2017, algorithm 1).

    A file that is not of ``layout`` or holds a number that is not finite is left out, and the mean is over the others.
    Integers are counters (of batches seen), of which the largest is taken. Every file is read once, chunk by chunk:
    beside the result, two chunks are all the memory it takes, whatever the number of sites.

    Args:
        out: receives the floats; made anew if None.

    Raises:
        InputError: no usable update, naming every site's reason.
    """
    # files of another network, or that are not whole, are known by their headers
    updates: dict[str, Update] = {}
    left_out: dict[str, str] = {}
    for site, path in sorted(paths.items()):
        try:
            updates[site] = open_update(path, layout)
        except InputError as error:
            left_out[site] = error.problem

    # the mean is finite where all numbers are; else look for the sites whose numbers are not, and take it again
    floats = torch.empty(layout.n_floats) if out is None else out
    while updates:
        ordered = _canonical(updates, weights)
        if _mean_of_files(floats, [updates[site] for site in ordered], [weights[site] for site in ordered]):
            break
        broken = _not_finite(updates)
        left_out |= broken
        updates = {site: update for site, update in updates.items() if site not in broken}
    if not updates:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(left_out.items()))
        raise InputError(
            f"no site sent a usable update ({reasons})", where="federated round", fix="see the sites' logs"
        )

    integers = torch.empty(len(updates), layout.n_integers, dtype=torch.int64)
    for row, update in zip(integers, updates.values(), strict=True):
        with update.path.open("rb", buffering=0) as stream:
            stream.seek(update.n_header_bytes)
            read_numbers(stream, row)
    return Average(floats, integers.max(dim=0).values, tuple(sorted(updates)), left_out)


def _mean_of_files(out: torch.Tensor, updates: Sequence[Update], weights: Sequence[float]) -> bool:
    """Fill ``out`` with the mean, each file read from its beginning to its end; whether every number is finite.

    A running mean, m_k = m_{k-1} + (w_k / W_k) (x_k - m_{k-1}) with W_k the sum of the first k weights: equal models
    average to themselves exactly.
    """
    steps = [weight / total for weight, total in zip(weights, itertools.accumulate(weights), strict=True)]
    sum_of_mean = torch.zeros((), dtype=torch.float64)
    buffer = torch.empty(min(CHUNK, out.numel()))
    with ExitStack() as stack:
        streams = [stack.enter_context(update.path.open("rb", buffering=0)) for update in updates]
        for stream, update in zip(streams, updates, strict=True):
            stream.seek(update.floats_at)
        for start in range(0, out.numel(), CHUNK):
            mean = out[start : start + CHUNK]
            read_numbers(streams[0], mean)
            arrived = buffer[: mean.numel()]
            for stream, step in zip(streams[1:], steps[1:], strict=True):
                read_numbers(stream, arrived)
                torch.lerp(mean, arrived, step, out=mean)
            sum_of_mean += mean.sum()
    return bool(torch.isfinite(sum_of_mean))


def _canonical(updates: Mapping[str, Update], weights: Mapping[str, float]) -> list[str]:
    """An order that follows from the contents, not from the sites' names or their arrival."""
    keys: dict[str, tuple[float, bytes]] = {}
    for site, update in updates.items():
        with update.path.open("rb", buffering=0) as stream:
            stream.seek(update.n_header_bytes)
            keys[site] = (weights[site], stream.read(N_KEY_BYTES))
    if len(set(keys.values())) < len(keys):  # equal beginnings: all of the contents decide
        for site, update in updates.items():
            with update.path.open("rb") as stream:
                stream.seek(update.n_header_bytes)
                keys[site] = (weights[site], hashlib.file_digest(stream, "sha256").digest())
    return sorted(updates, key=lambda site: keys[site])


def _not_finite(updates: Mapping[str, Update]) -> dict[str, str]:
    """Sites with a number that is not finite; where only the mean overflows, the one with the largest number."""
    largest: dict[str, float] = {}
    broken: dict[str, str] = {}
    for site, update in updates.items():
        with update.path.open("rb", buffering=0) as stream:
            stream.seek(update.floats_at)
            for name, dtype, shape in update.layout.entries:
                if dtype != FLOATS:
                    continue
                values = torch.empty(shape)
                read_numbers(stream, values)
                if not bool(torch.isfinite(values).all()):
                    broken[site] = f"tensor {name!r} holds NaN or infinity"
                    break
                largest[site] = max(largest.get(site, 0.0), float(values.abs().max()) if values.numel() else 0.0)
    return broken or {max(largest, key=lambda site: largest[site]): "its numbers are too large to average"}
