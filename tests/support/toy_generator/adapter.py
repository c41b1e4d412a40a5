"""Noise around the mean of the training images: the smallest generator that keeps every promise of the interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from common.errors import InputError
from common.settings import from_dict, to_dict
from generators.interface import GeneratorBackend, SampleRequest, TrainRequest, refuse_unused

if TYPE_CHECKING:
    from evaluation.report.run import RunFiles

RESULT, STATE = "generator.safetensors", "training.safetensors"


@dataclass(frozen=True)
class NoiseSettings:
    batch_size: int = 4
    spread: float = 1.0


class MeanNoise(GeneratorBackend):
    name = "meannoise"
    tiny_settings: Mapping[str, Any] = {"spread": 0.5}

    def check(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return to_dict(from_dict(NoiseSettings, settings, "generator.settings"))
        except TypeError as error:
            raise InputError(str(error), where="generator.settings", fix="use batch_size and spread") from error

    def train(self, request: TrainRequest) -> Mapping[str, Any]:
        """Sum batches that are drawn by their step alone, so that a resumed training equals an uninterrupted one."""
        refuse_unused(request, self)
        config = from_dict(NoiseSettings, request.settings)
        kimg = request.kimg or len(request.images) / 1000
        n_steps = max(1, round(kimg * 1000 / config.batch_size))
        if not (request.out / RESULT).is_file():
            _train(request, config, n_steps)
        return {"batch_size": config.batch_size, "spread": config.spread, "kimg": kimg, "n_steps": n_steps}

    def sample(self, request: SampleRequest) -> np.ndarray:
        learned = load_file(request.trained / RESULT)
        limits = np.iinfo(learned["dtype_of"].dtype)
        noise = np.stack([np.random.default_rng(seed).normal(size=learned["mean"].shape) for seed in request.seeds])
        images = learned["mean"] + learned["spread"] * noise
        return images.clip(limits.min, limits.max).round().astype(limits.dtype)

    @staticmethod
    def report_section(files: RunFiles) -> str | None:
        return f"The {MeanNoise.name} of {len(files.stage_folders('generator'))} sites has drawn noise."


def _train(request: TrainRequest, config: NoiseSettings, n_steps: int) -> None:
    shape, path = request.images.shape[1:], request.out / STATE
    state = load_file(path) if path.is_file() else {"sums": np.zeros((2, *shape)), "step": np.zeros(1, np.int64)}
    for step in range(int(state["step"][0]), n_steps):
        chosen = np.random.default_rng([request.seed, step]).integers(len(request.images), size=config.batch_size)
        batch = request.images[chosen].astype(float)
        sums = state["sums"] + [batch.sum(axis=0), (batch**2).sum(axis=0)]
        state = {"sums": sums, "step": np.array([step + 1])}
        _save(state, path)
        request.progress(step + 1, n_steps, "steps")
    mean, square = state["sums"] / (n_steps * config.batch_size)
    spread = config.spread * np.sqrt(np.maximum(square - mean**2, 0.0))
    _save({"mean": mean, "spread": spread, "dtype_of": request.images[:1, :1, :1, :1].copy()}, request.out / RESULT)
    path.unlink()


def _save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Whole or not at all: a training may be killed at any moment."""
    temporary = path.with_name(f".{path.name}")
    save_file(dict(tensors), temporary)
    temporary.rename(path)
