"""The weighted mean of models: into fresh memory, each tensor once, the same to the last bit for any order of sites.

The original summed and divided in place, key by key, over state dicts in which one tensor stands under several keys, so
that a tensor with m keys became (w_1 + m * sum_{k>1} w_k) / K^m (defect D1).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
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
    """The mean of the sites' update files weighted by ``weights``; every file is read once, chunk by chunk.

    A file that is not of ``layout`` or holds a number that is not finite is left out, and the mean is over the others.
    Beside the result, two chunks are all the memory it takes, whatever the number of sites.

    Args:
        out: receives the floats; made anew if None.

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
    floats = torch.empty(layout.n_floats) if out is None else out
    while updates:
        ordered = _canonical(updates, weights)
        if _average_files(floats, [updates[site] for site in ordered], [weights[site] for site in ordered]):
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
    integers = torch.stack([_integers(update) for update in updates.values()]).max(dim=0).values
    return Average(floats, integers, tuple(sorted(updates)), left_out)


def _average_files(out: torch.Tensor, updates: Sequence[Update], weights: Sequence[float]) -> bool:
    """The mean over files, each read from its beginning to its end; whether every number of it is finite."""
    total = torch.zeros((), dtype=torch.float64)
    buffer = torch.empty(min(CHUNK, out.numel()))
    with ExitStack() as stack:
        streams = [stack.enter_context(update.path.open("rb", buffering=0)) for update in updates]
        for stream, update in zip(streams, updates, strict=True):
            stream.seek(update.floats_at)
        # one buffer for all: a chunk is used before the next is read
        for part in _mean_by_chunks(out, [partial(_next_numbers, stream, buffer) for stream in streams], weights):
            total += part.sum()
    return bool(torch.isfinite(total))


def _next_numbers(stream: RawIOBase, buffer: torch.Tensor, start: int, n_floats: int) -> torch.Tensor:
    """Those from ``start`` on, which is where the stream stands."""
    arrived = buffer[:n_floats]
    read_numbers(stream, arrived)
    return arrived


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
    """``out`` becomes the weighted mean of the flat ``vectors``, summed in the order given."""
    for _ in _mean_by_chunks(out, [partial(torch.Tensor.narrow, vector, 0) for vector in vectors], weights):
        pass


def _mean_by_chunks(
    out: torch.Tensor, sources: Sequence[Callable[[int, int], torch.Tensor]], weights: Sequence[float]
) -> Iterator[torch.Tensor]:
    """Fill ``out`` chunk by chunk from what each source gives for (start, n_floats); yields every finished chunk.

    A running mean, m_k = m_{k-1} + (w_k / W_k) (x_k - m_{k-1}): equal models average to themselves exactly.
    """
    steps = _steps(weights)
    for start in range(0, out.numel(), CHUNK):
        part = out[start : start + CHUNK]
        part.copy_(sources[0](start, part.numel()))
        for source, step in zip(sources[1:], steps[1:], strict=True):
            torch.lerp(part, source(start, part.numel()), step, out=part)
        yield part


def _steps(weights: Sequence[float]) -> list[float]:
    """w_k / W_k, with W_k the sum of the first k weights."""
    totals = itertools.accumulate(weights)
    return [weight / total for weight, total in zip(weights, totals, strict=True)]


def _canonical(updates: Mapping[str, Update], weights: Mapping[str, float]) -> list[str]:
    """An order that follows from the contents, not from the sites' names or their arrival."""
    keys = {site: (weights[site], _beginning(update)) for site, update in updates.items()}
    if len(set(keys.values())) < len(keys):  # equal beginnings: all of the contents decide
        keys = {site: (weights[site], _contents(update)) for site, update in updates.items()}
    return sorted(updates, key=lambda site: keys[site])


def _beginning(update: Update) -> bytes:
    with update.path.open("rb", buffering=0) as stream:
        stream.seek(update.n_header_bytes)
        return stream.read(N_KEY_BYTES)


def _contents(update: Update) -> bytes:
    with update.path.open("rb") as stream:
        stream.seek(update.n_header_bytes)
        return hashlib.file_digest(stream, "sha256").digest()


def _digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _integers(update: Update) -> torch.Tensor:
    integers = torch.empty(update.layout.n_integers, dtype=torch.int64)
    with update.path.open("rb", buffering=0) as stream:
        stream.seek(update.n_header_bytes)
        read_numbers(stream, integers)
    return integers


def _not_finite(updates: Mapping[str, Update]) -> dict[str, str]:
    """Sites with a number that is not finite; where only the mean overflows, the one with the largest number."""
    largest: dict[str, float] = {}
    broken: dict[str, str] = {}
    for site, update in updates.items():
        for name, values in _float_tensors(update):
            if not bool(torch.isfinite(values).all()):
                broken[site] = f"tensor {name!r} holds NaN or infinity"
                break
            largest[site] = max(largest.get(site, 0.0), float(values.abs().max()) if values.numel() else 0.0)
    return broken or {max(largest, key=lambda site: largest[site]): "its numbers are too large to average"}


def _float_tensors(update: Update) -> Iterator[tuple[str, torch.Tensor]]:
    with update.path.open("rb", buffering=0) as stream:
        stream.seek(update.floats_at)
        for name, dtype, shape in update.layout.entries:
            if dtype == FLOATS:
                values = torch.empty(shape)
                read_numbers(stream, values)
                yield name, values
