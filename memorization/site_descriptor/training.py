"""Training of the descriptor: copies must find their originals, and their cells the cells that they come from.

Two contrastive losses on one batch. *Cells*: InfoNCE of a copy's cell with the cell of its original that it shows, all
other cells of all originals in the batch being negatives; these are many even at a site of ten images. *Images*:
NT-Xent of whole images with the entropy regularisation of SSCD (Pizzi et al. 2022; KoLeo, Sablayrolles et al. 2019),
which keeps the nearest two different images apart. Changes grow during the first part of the training.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from common.progress import Progress, silent
from common.seeds import derive_seed
from memorization.registration.maps import SIZE_PX
from memorization.site_descriptor.augmentations import CELLS, N_SYMMETRIES, Changed, changed, symmetry
from memorization.site_descriptor.network import CopyNetwork

N_STEPS, BATCH = 400, 24
N_CELLS_COMPARED = 512  # of the copies' cells, a step
CELL_TEMPERATURE, IMAGE_TEMPERATURE = 0.07, 0.07
ENTROPY_WEIGHT = 0.1
RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 4e-3, 1e-3, 5.0
FIRST_STRENGTH, LAST_STRENGTH = 0.07, 0.7  # of the changes
GROWING = 0.6  # of the training
NEVER = -1e4  # a logit that takes no part


def train(pixels: torch.Tensor, seed: int, progress: Progress = silent) -> CopyNetwork:
    """A network for (n, 1, 64, 64) in [0, 1], one image or more; ``N_STEPS`` steps, whatever ``n``.

    The same to the last bit for the same images, seed, machine and number of threads. PyTorch's own random numbers are
    neither used nor moved on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = CopyNetwork()
    generator = torch.Generator().manual_seed(derive_seed(seed, "steps"))
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=N_STEPS)
    for step in range(N_STEPS):
        grown = min(1.0, step / (GROWING * N_STEPS))
        strength = FIRST_STRENGTH + (LAST_STRENGTH - FIRST_STRENGTH) * grown
        optimizer.zero_grad()
        _loss(network, pixels, strength, generator).backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        progress(step + 1, N_STEPS, "training step")
    return network.eval().requires_grad_(False)


def _loss(network: CopyNetwork, pixels: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Of one batch of different images, all under one symmetry, and one copy of each."""

    def drawn_symmetry(images: torch.Tensor) -> torch.Tensor:
        return symmetry(images, int(torch.randint(N_SYMMETRIES, (), generator=generator)))

    chosen = torch.randperm(len(pixels), generator=generator)[:BATCH]
    originals = drawn_symmetry(pixels[chosen])
    others = drawn_symmetry(originals.roll(1, 0))
    copies = changed(originals, others, strength, generator)
    cells, images = network(torch.cat([originals, copies.pixels]))
    n = len(originals)
    return _cell_loss(cells[:n], cells[n:], copies, generator) + _image_loss(images)


def _cell_loss(
    originals: torch.Tensor, copies: torch.Tensor, made: Changed, generator: torch.Generator
) -> torch.Tensor:
    """Cells (n, size, 16, 16): each picked one of the copies among all of the originals."""
    owner, row, column = made.visible.nonzero(as_tuple=True)
    picked = torch.randperm(len(owner), generator=generator)[:N_CELLS_COMPARED]
    if not len(picked):  # a handful of images, all of them moved out of the frame
        return originals.sum() * 0
    owner, row, column = owner[picked], row[picked], column[picked]
    alike = torch.einsum("qd,ndc->qnc", copies[owner, :, row, column], originals.flatten(2)) / CELL_TEMPERATURE
    target, near = _targets(made.source[owner, row, column])
    own = torch.zeros(alike.shape[:2], dtype=torch.bool).scatter(1, owner[:, None], True)
    masked = alike.masked_fill(own[:, :, None] & near[:, None], NEVER)
    return F.cross_entropy(masked.flatten(1), owner * CELLS * CELLS + target)


def _targets(source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(q,) the cell that each place (q, 2) is in, and (q, cells) its neighbours, which are no negatives."""
    side_px = SIZE_PX // CELLS
    source_px = (source + 1) / 2 * (SIZE_PX - 1)
    at = ((source_px - side_px // 2) / side_px).round().long().clamp(0, CELLS - 1)
    place = torch.arange(CELLS * CELLS)
    near = ((place % CELLS - at[:, :1]).abs() <= 1) & ((place // CELLS - at[:, 1:]).abs() <= 1)
    target = at[:, 1] * CELLS + at[:, 0]
    return target, near.scatter(1, target[:, None], False)


def _image_loss(images: torch.Tensor) -> torch.Tensor:
    """Of (2 n, size), originals and then their copies."""
    n_originals = len(images) // 2
    of_original = torch.arange(len(images)) % n_originals
    alike = images @ images.T
    others = alike.masked_fill(torch.eye(len(images), dtype=torch.bool), NEVER)
    contrast = F.cross_entropy(others / IMAGE_TEMPERATURE, (torch.arange(len(images)) + n_originals) % len(images))
    if n_originals == 1:
        return contrast
    nearest = alike.masked_fill(of_original[:, None] == of_original[None], NEVER).amax(1)
    return contrast - ENTROPY_WEIGHT * (2 - 2 * nearest).clamp_min(1e-6).sqrt().log().mean()
