"""The hub of DSL: one generator for all sites, trained by the gradients that the sites' discriminators send back.

Chang et al., Nat. Commun. 14:5510 (2023); spec section 18.2. Every random number of an iteration follows from (seed,
iteration, site), so that a resumed training draws what an undisturbed one draws.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.progress import Progress, silent
from common.seeds import derive_seed
from common.settings import to_dict
from engine.workers import Failure, Workers
from federated.dsl.begin import SiteFacts, begin
from federated.dsl.card import Traffic, write_exchange
from federated.dsl.model import MaskGenerator, one_hot, place
from federated.dsl.settings import DslSettings, learning_rate, total_iterations
from federated.dsl.tensors import pack, unpack
from training.curves import is_curve_point, write_curves
from training.image_batches import items_of_step
from training.training_state import RESULT, check_same_run, load_state, state_to_tensors

log = logging.getLogger(__name__)

CHECKPOINT = "training.safetensors"


def train_dsl(
    workers: Workers,
    out: Path,
    settings: DslSettings,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> None:
    """Train the generator over ``workers`` (of ``federated.dsl.site.DslSite``); the same call resumes exactly on a CPU.

    Writes ``generator.safetensors``, ``curves.jsonl``, ``CARD.md`` and ``exchange.json`` (what left each site), and
    ``sites.json`` with the masks and feature statistics that synthesis needs. A site that fails or sends what cannot
    be used is left out of that iteration, the others' weights adding up to 1; log, curves and exchange.json say so.

    Raises:
        InputError: sites that do not fit together, or a folder of another training.
        RuntimeError: a site could not begin, or no site could be used in an iteration.
    """
    if (out / RESULT).is_file():
        check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        return
    run = _Hub(workers, begin(workers, out), settings, seed, torch.device(device))
    run.resume(out)
    interval = math.ceil(run.n_iterations / settings.n_checkpoints)
    while run.iteration < run.n_iterations:
        run.advance()
        if run.iteration % interval == 0 or run.iteration == run.n_iterations:
            run.save(out)
        progress(run.iteration, run.n_iterations, "iterations")
    run.finish(out)


@dataclass(frozen=True)
class Batch:
    """Which masks of a site are shown in an iteration (rows), and how: see ``federated.dsl.model.place``."""

    keys: tuple[int, ...]
    placements: tuple[tuple[int, int, int, int], ...]
    size_px: tuple[int, int]


def draw_batch(facts: SiteFacts, largest: int, settings: DslSettings, seed: int, site: str, iteration: int) -> Batch:
    """ "Balance" sampling: as many masks of every site, the order of the ``largest`` modulo the site's own number."""
    keys = tuple(item % facts.n_images for item in items_of_step(largest, iteration, settings.batch_size, seed))
    draws = np.random.default_rng(derive_seed(seed, "place", site, iteration))
    height, width = facts.size_px
    size_px = (min(height, settings.crop_px or height), min(width, settings.crop_px or width))
    corners = draws.integers(0, [height - size_px[0] + 1, width - size_px[1] + 1], (len(keys), 2))
    flips = draws.integers(0, 2, (len(keys), 2)) * int(settings.flips)
    placements = ((int(c[0]), int(c[1]), int(f[0]), int(f[1])) for c, f in zip(corners, flips, strict=True))
    return Batch(keys, tuple(placements), size_px)


class _Hub:
    """The training at some iteration; ``sites`` are in the order of their names, whatever order the workers have."""

    def __init__(
        self, workers: Workers, sites: Mapping[str, SiteFacts], settings: DslSettings, seed: int, device: torch.device
    ) -> None:
        self.workers, self.sites, self.settings, self.seed, self.device = workers, sites, settings, seed, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "generator"))
            self.generator = build_generator(next(iter(sites.values())), settings).to(device)
        self.optimizer = torch.optim.Adam(
            self.generator.parameters(), betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.largest = max(facts.n_images for facts in sites.values())
        self.n_iterations = total_iterations(settings, self.largest)
        self.iteration = 0
        self.rows: list[dict[str, Any]] = []
        self.traffic = {site: Traffic() for site in sites}

    def advance(self) -> None:
        """One iteration: fakes to the sites, gradients back, one step of Adam (Chang et al., Methods; spec 18.2).

        The generator G descends ``sum_j pi_j L_j(G(masks of site j))``, where pi_j is the site's share of all images.
        Site j sends ``dL_j / dG(masks)``, and the chain rule here does the rest; ``federated.dsl.site`` has L_j.

        Raises:
            RuntimeError: no site could be used.
        """
        rate = learning_rate(self.settings, self.iteration, self.n_iterations)
        # 1. Fakes of masks of every site, with dropout's numbers from (seed, site, iteration, position).
        fakes: dict[str, Tensor] = {}
        asked: dict[str, dict[str, Any]] = {}
        for site, facts in self.sites.items():
            batch = draw_batch(facts, self.largest, self.settings, self.seed, site, self.iteration)
            masks = one_hot(torch.from_numpy(facts.masks[list(batch.keys)]), len(facts.labels))
            masks = place(masks, batch.placements, batch.size_px).to(self.device)
            seeds = [derive_seed(self.seed, "dropout", site, self.iteration, index) for index in range(len(batch.keys))]
            fakes[site] = self.generator(masks, seeds)
            asked[site] = {
                "iteration": self.iteration,
                "rate": rate,
                **vars(batch),
                "fakes": pack(fakes=fakes[site]),
            }
        # 2. Every site trains its discriminator and answers; one without a usable answer is left out.
        answers = self.workers.ask("step", asked)
        gradients: dict[str, Tensor] = {}
        losses: dict[str, dict[str, float]] = {}
        problems: dict[str, str] = {}
        for site in self.sites:
            try:
                gradients[site], losses[site] = read_answer(site, answers[site], tuple(fakes[site].shape))
            except InputError as error:
                problems[site] = error.problem
                log.warning("iteration %d goes on without site %s: %s", self.iteration + 1, site, error.problem)
                self.traffic[site].leave_out(self.iteration + 1, error.problem)
        if not gradients:
            reasons = "; ".join(f"{site}: {problem}" for site, problem in problems.items())
            raise RuntimeError(f"no site could be used in iteration {self.iteration + 1}: {reasons}")
        for site in self.sites:
            self.traffic[site].add(asked[site]["fakes"], gradients.get(site))
        # 3. One step on the mean of the gradients, weighted by the sizes of the sites that are left.
        n_images = sum(self.sites[site].n_images for site in gradients)
        weights = {site: self.sites[site].n_images / n_images for site in gradients}
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(
            [fakes[site] for site in gradients],
            [weights[site] * gradient.to(self.device) for site, gradient in gradients.items()],
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.iteration += 1
        # 4. The curves: means of the sites' losses by the same weights, and the L1 loss of each site.
        if is_curve_point(self.iteration, self.n_iterations):
            row = {"step": self.iteration, "unit": "iteration", "learning_rate": rate, "n_sites": len(losses)}
            for name in sorted({name for of_site in losses.values() for name in of_site}):
                row[f"loss_{name}"] = sum(weights[site] * of_site.get(name, 0.0) for site, of_site in losses.items())
            row |= {f"loss_l1_{site}": of_site.get("l1", math.nan) for site, of_site in losses.items()}
            self.rows.append(row)

    def save(self, out: Path) -> None:
        """Sites first, the hub's own file last: what it names is there when a killed training is resumed."""
        answers = self.workers.ask("save", {site: {"iteration": self.iteration} for site in self.sites})
        for site, answer in sorted(answers.items()):
            if isinstance(answer, Failure):
                log.warning("site %s could not save its discriminator: %s", site, answer.problem)
        write_curves(out, self.rows)
        metadata = {
            "iteration": self.iteration,
            "rows": self.rows,
            "traffic": {site: to_dict(traffic) for site, traffic in self.traffic.items()},
            "settings": to_dict(self.settings),
            "seed": self.seed,
        }
        tensors = state_to_tensors({"network": self.generator}, {"": self.optimizer})
        save_tensors(out / CHECKPOINT, tensors, metadata)

    def resume(self, out: Path) -> None:
        """Go on from the checkpoint in ``out``, or begin; the sites follow."""
        if (out / CHECKPOINT).is_file():
            tensors, metadata = load_tensors(out / CHECKPOINT)
            check_same_run(out / CHECKPOINT, metadata, self.settings, self.seed)
            load_state({"network": self.generator}, {"": self.optimizer}, tensors)
            self.iteration, self.rows = metadata["iteration"], metadata["rows"]
            self.traffic = {site: Traffic(**traffic) for site, traffic in metadata["traffic"].items()}
            log.info("resumed at iteration %d of %d", self.iteration, self.n_iterations)
        answers = self.workers.ask("restore", {site: {"iteration": self.iteration} for site in self.sites})
        for site, answer in sorted(answers.items()):
            if answer != self.iteration:
                log.warning("site %s could not go back to iteration %d: %s", site, self.iteration, answer)

    def finish(self, out: Path) -> None:
        """The record of the exchange, then the generator, whose file marks the training as done."""
        write_exchange(out, self.sites, self.traffic, self.settings, self.n_iterations)
        metadata = {"settings": to_dict(self.settings), "seed": self.seed}
        save_tensors(out / RESULT, self.generator.state_dict(), metadata)
        (out / CHECKPOINT).unlink()


def build_generator(facts: SiteFacts, settings: DslSettings) -> MaskGenerator:
    """The generator for the sites' labels and channels."""
    return MaskGenerator(
        len(facts.labels), facts.n_channels, settings.base_channels, settings.n_blocks, settings.dropout
    )


def read_answer(site: str, answer: Any, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
    """A site's gradient, of the fakes' ``shape``, and losses.

    Raises:
        InputError: a failure, another shape, or anything that is not finite.
    """
    fix = "see that site's log"
    if isinstance(answer, Failure):
        raise InputError(answer.problem, where=site, fix=fix)
    if not isinstance(answer, Mapping) or set(answer) != {"gradient", "losses"}:
        raise InputError("sent no gradient and losses", where=site, fix=fix)
    gradient = unpack(answer["gradient"], site, gradient=shape)["gradient"]
    if gradient.dtype != torch.float32:
        raise InputError(f"sent a gradient of {gradient.dtype}", where=site, fix=fix)
    losses = {str(name): float(loss) for name, loss in answer["losses"].items()}
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise InputError(f"sent losses {losses}", where=site, fix=fix)
    return gradient, losses
