"""Training: four phases a step at most, exact resume, curves and sample sheets.

Every random number of step i comes from a generator seeded by (seed, i, purpose), so that a resumed training needs no
generator state to draw what an undisturbed one draws.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.files import atomic_path, write_text
from common.progress import Progress, silent
from common.seeds import derive_seed
from common.settings import to_dict
from gan.augment import augment
from gan.loss import (
    discriminator_loss,
    draw_noise,
    draw_styles,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from gan.model import Discriminator, Generator
from gan.sample import images_to_integers
from gan.settings import GanSettings

log = logging.getLogger(__name__)

CHECKPOINT = "training.safetensors"
RESULT = "generator.safetensors"
CURVES = "curves.jsonl"
SHEET = "sample_sheet.png"
N_CURVE_POINTS = 200
CURVE_KEYS = ("step", "unit", "loss_g", "loss_d", "r1", "path_length", "real_logit", "fake_logit")
SHEET_SHAPE = (4, 8)  # rows, columns
LARGEST_GRADIENT = 1e5


def train(
    images: np.ndarray,
    out: Path,
    settings: GanSettings,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> None:
    """Train on ``images`` (n, channels, height, width), uint8 or uint16, and write the averaged generator.

    Writes ``generator.safetensors`` (EMA weights, settings), ``curves.jsonl`` and ``sample_sheet.png``; while it runs
    also ``training.safetensors``, from which the same call resumes: N + N steps equal 2 N bit for bit on a CPU.

    Raises:
        InputError: images that fit neither the plan nor a training.
        RuntimeError: the training diverged.
    """
    _check_images(images, settings)
    _remove_half_written(out)
    if (out / RESULT).is_file():
        _check_same_run(out / RESULT, load_tensors(out / RESULT)[1], settings, seed)
        (out / CHECKPOINT).unlink(missing_ok=True)
        return
    run = _Training(images, settings, seed, torch.device(device))
    run.resume(out)
    interval = max(1, math.ceil(settings.n_steps / settings.config.n_snapshots))
    while run.step < settings.n_steps:
        run.advance()
        if run.step % interval == 0 or run.step == settings.n_steps:
            run.snapshot(out)
        progress(
            run.step * settings.config.batch_size / 1000, settings.n_steps * settings.config.batch_size / 1000, "kimg"
        )
    run.finish(out)


def _check_images(images: np.ndarray, settings: GanSettings) -> None:
    expected = (settings.n_channels, *settings.image_size_px)
    fix = "write the slices again with this plan"
    if images.ndim != 4 or images.shape[1:] != expected:
        raise InputError(f"images {images.shape} are not (n, {expected})", where="generator", fix=fix)
    if images.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise InputError(f"images are {images.dtype}", where="generator", fix="store them as uint8 or uint16")
    if len(images) < 2 or all(np.array_equal(image, images[0]) for image in images):
        raise InputError(
            f"{len(images)} different training images", where="generator", fix="give the site at least two"
        )


def _remove_half_written(out: Path) -> None:
    """A killed training may leave a temporary sibling of the file it was writing (``common.files.atomic_path``)."""
    for name in (CHECKPOINT, RESULT, CURVES, SHEET):
        for leftover in out.glob(f".*.{name}"):
            leftover.unlink()


def _check_same_run(path: Path, metadata: dict[str, Any], settings: GanSettings, seed: int) -> None:
    if metadata["settings"] != to_dict(settings) or metadata["seed"] != seed:
        raise InputError("its settings or seed are not this training's", where=path, fix="delete the folder")


@dataclass
class _Training:
    images: np.ndarray
    settings: GanSettings
    seed: int
    device: torch.device
    step: int = 0
    mean_path_length: float = 0.0
    rows: list[dict[str, float | str]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.settings.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "initialise"))
            self.generator = Generator(self.settings).to(self.device)
            self.discriminator = Discriminator(self.settings).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            "generator": _adam(self.generator, config.learning_rate, config.path_length_interval),
            "discriminator": _adam(self.discriminator, config.learning_rate, config.r1_interval),
        }

    def advance(self) -> None:
        """One step: generator, path length every few steps, discriminator, R1 every few steps, weight average."""
        config = self.settings.config
        self._generator_phase()
        if self.step % config.path_length_interval == 0:
            self._path_length_phase()
        self._discriminator_phase()
        if self.step % config.r1_interval == 0:
            self._r1_phase()
        self._average_weights()
        self.step += 1
        if not all(math.isfinite(value) for value in self.measured.values()):
            raise RuntimeError(
                f"the generator's training diverged at step {self.step} ({self.measured}); "
                "raise generator.settings.r1_gamma or lower generator.settings.learning_rate"
            )
        every = max(1, self.settings.n_steps // N_CURVE_POINTS)
        if self.step % every == 0 or self.step == self.settings.n_steps:
            self.rows.append({"step": self.kimg_at(self.step), "unit": "kimg", **self.measured})

    def kimg_at(self, step: int) -> float:
        """Thousand images shown after ``step`` steps."""
        return round(step * self.settings.config.batch_size / 1000, 6)

    def _draws(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, purpose))

    def _fakes(self, draws: torch.Generator, n_images: int) -> tuple[Tensor, Tensor]:
        styles = draw_styles(self.generator, n_images, draws, self.device)
        return self.generator.synthesise(styles, draw_noise(self.generator, n_images, draws, self.device)), styles

    def _augmented(self, images: Tensor, draws: torch.Generator) -> Tensor:
        return augment(images, self.settings.config.augment, draws)

    def _generator_phase(self) -> None:
        draws = self._draws("generator")
        self.discriminator.requires_grad_(False)
        fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        loss = generator_loss(self.discriminator(self._augmented(fakes, draws)))
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        self.measured["loss_g"] = loss.item()

    def _path_length_phase(self) -> None:
        config = self.settings.config
        draws = self._draws("path length")
        fakes, styles = self._fakes(draws, max(1, config.batch_size // 2))
        lengths = path_lengths(fakes, styles, draws)
        self.mean_path_length += config.path_length_decay * (lengths.mean().item() - self.mean_path_length)
        penalty = (lengths - self.mean_path_length).square().mean() * config.path_length_weight
        self._descend("generator", penalty * config.path_length_interval)
        self.measured["path_length"] = lengths.mean().item()

    def _discriminator_phase(self) -> None:
        draws = self._draws("discriminator")
        with torch.no_grad():
            fakes, _ = self._fakes(draws, self.settings.config.batch_size)
        fake_logits = self.discriminator(self._augmented(fakes, draws))
        real_logits = self.discriminator(self._augmented(self._reals(), draws))
        loss = discriminator_loss(fake_logits, real_logits)
        self._descend("discriminator", loss)
        self.measured |= {
            "loss_d": loss.item(),
            "real_logit": real_logits.mean().item(),
            "fake_logit": fake_logits.mean().item(),
        }

    def _r1_phase(self) -> None:
        config = self.settings.config
        reals = self._reals().requires_grad_(True)
        penalty = r1_penalty(self.discriminator, reals, self._augmented(reals, self._draws("r1")))
        self._descend("discriminator", penalty * (config.r1_gamma / 2 * config.r1_interval))
        self.measured["r1"] = penalty.item()

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
        optimizer.step()

    def _reals(self) -> Tensor:
        """The step's real images: a fresh permutation each time all were shown; mirrored ones where asked for."""
        n_images, size = len(self.images), self.settings.config.batch_size
        positions = range(self.step * size, (self.step + 1) * size)
        orders = {
            epoch: np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(n_images)
            for epoch in {position // n_images for position in positions}
        }
        batch = self.images[[orders[position // n_images][position % n_images] for position in positions]]
        half = np.iinfo(batch.dtype).max / 2
        reals = torch.from_numpy(batch.astype(np.float32)) / half - 1
        if self.settings.config.mirror:
            flipped = torch.rand(size, generator=self._draws("mirror")) < 0.5
            reals[flipped] = reals[flipped].flip(3)
        return reals.to(self.device)

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = 0.5 ** (self.settings.config.batch_size / (self.settings.ema_kimg * 1000))
        for mean, current in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)

    def snapshot(self, out: Path) -> None:
        """Curves and sheet first, then the point to resume from: what is on disk is never ahead of it for good."""
        write_text(out / CURVES, "".join(json.dumps({key: row[key] for key in CURVE_KEYS}) + "\n" for row in self.rows))
        self._draw_sheet(out / SHEET)
        tensors = {
            f"{name}.{key}": tensor
            for name, module in self._modules().items()
            for key, tensor in module.state_dict().items()
        }
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.adam.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        state_of_run = {"step": self.step, "mean_path_length": self.mean_path_length, "rows": self.rows}
        metadata = {**state_of_run, "measured": self.measured, "settings": to_dict(self.settings), "seed": self.seed}
        save_tensors(out / CHECKPOINT, tensors, metadata)

    def resume(self, out: Path) -> None:
        """Go on from the last checkpoint in ``out``, if there is one."""
        if not (out / CHECKPOINT).is_file():
            return
        tensors, metadata = load_tensors(out / CHECKPOINT)
        _check_same_run(out / CHECKPOINT, metadata, self.settings, self.seed)
        for name, module in self._modules().items():
            module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_adam_state(optimizer, tensors, f"{name}.adam."))
        self.step, self.mean_path_length = metadata["step"], metadata["mean_path_length"]
        self.rows, self.measured = metadata["rows"], metadata["measured"]
        log.info("resumed at step %d of %d", self.step, self.settings.n_steps)

    def finish(self, out: Path) -> None:
        """The averaged generator alone; the state for resuming has done its work."""
        metadata = {"settings": to_dict(self.settings), "seed": self.seed, "dtype": str(self.images.dtype)}
        save_tensors(out / RESULT, self.average.state_dict(), metadata)
        (out / CHECKPOINT).unlink(missing_ok=True)

    def _modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    @torch.no_grad()
    def _draw_sheet(self, path: Path) -> None:
        """A grid of samples from the same latents at every snapshot."""
        from PIL import Image

        rows, columns = SHEET_SHAPE
        draws = torch.Generator().manual_seed(derive_seed(self.seed, "sheet"))
        latents = torch.randn(rows * columns, self.settings.config.z_dim, generator=draws).to(self.device)
        noise = draw_noise(self.average, rows * columns, draws, self.device)
        batches = zip(latents.split(8), *(maps.split(8) for maps in noise), strict=True)
        fakes = torch.cat([self.average(z, maps) for z, *maps in batches]).cpu()
        shown = images_to_integers(fakes, np.dtype(np.uint8))
        shown = shown if shown.shape[1] == 3 else shown[:, :1]
        height, width = shown.shape[-2:]
        grid = shown.reshape(rows, columns, -1, height, width).transpose(0, 3, 1, 4, 2)
        picture = grid.reshape(rows * height, columns * width, -1).squeeze()
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")


def _adam(network: nn.Module, learning_rate: float, interval: int) -> torch.optim.Adam:
    """Adam with the correction for a lazy regularisation every ``interval`` steps (StyleGAN2, appendix B)."""
    correction = interval / (interval + 1)
    betas = (0.0**correction, 0.99**correction)
    return torch.optim.Adam(network.parameters(), lr=learning_rate * correction, betas=betas, eps=1e-8)


def _adam_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _with_prefix(tensors, prefix):
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), tensor) for name, tensor in tensors.items() if name.startswith(prefix))
