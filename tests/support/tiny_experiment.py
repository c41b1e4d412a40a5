"""One tiny experiment, run as a user would run it, and what tests need to look at it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.paths import REPOSITORY

import pipeline.entry  # noqa: F401  (stores the schema that the experiments start from)
from pipeline.config import ExperimentConfig, experiment_config

TINY = (
    "--config-name=demo",
    "general.exp_name=tiny",
    "cluster=inline",
    "memorization=percentile",
    "data.phantom.size_px=32",
    "data.phantom.n_patients=6",
    "data.phantom.images_per_patient=[1,1]",
    "plan.base_features=4",
    "train.gan.kimg=0.4",
    "train.nnunet_epochs=3",
    "train.nnunet_iterations=4",
    "train.nnunet_val_iterations=1",
    "generate.n_images=40",
    "gates.enforce=false",  # of so few patients nothing can be told
    "gates.n_planted_copies=0",  # the features' rule misses most of them; test_site_planted.py plants them
)


SIZES = {  # of a generator, by the override that names it
    "generator=stylegan2_small": ("channel_base=256", "channel_max=8", "z_dim=16", "w_dim=16"),
    "generator=ddpm": ("channels=[8,16]", "n_res_blocks=1", "n_evaluations=4"),
}


def tiny(*overrides: str) -> tuple[str, ...]:
    """The tiny experiment, with the sizes of the generator that ``overrides`` name, or else of the demo's."""
    named = next((override for override in overrides if override in SIZES), "generator=stylegan2_small")
    return (*TINY, *(f"generator.settings.{size}" for size in SIZES[named]))


def run_command(*overrides: str, cwd: Path, script: str = "run_nnunet.py") -> list[str]:
    """The command line of the tiny experiment with its runs and data under ``cwd``."""
    folders = (f"path.logs={cwd / 'runs'}", f"path.data={cwd / 'data'}")
    return [sys.executable, str(REPOSITORY / script), *tiny(*overrides), *folders, *overrides]


def run_tiny(
    *overrides: str, cwd: Path, script: str = "run_nnunet.py", traced_to: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the tiny experiment to its end, whatever that is; ``traced_to``: a file for what the stages executed."""
    command = run_command(*overrides, cwd=cwd, script=script)
    if traced_to is not None:
        command[1:2] = [str(Path(__file__).parent / "traced_run.py"), str(traced_to)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def manifests(run: Path) -> dict[str, dict]:
    """Every stage's manifest, by its path in the run."""
    inside = [path for path in run.glob("fold_*/**/manifest.json") if path.parent.parent.name != "share"]
    paths = [*inside, *run.glob("fold_*/share/*.stage.json"), *run.glob("fold_*/check/*/*.stage.json")]
    return {str(path.relative_to(run)): json.loads(path.read_text()) for path in paths}


def deterministic(manifest: dict) -> dict:
    """A manifest without the part that says when and where."""
    return {key: value for key, value in manifest.items() if key != "run"}


def composed(experiment: str, *overrides: str) -> ExperimentConfig:
    folder, _, name = experiment.rpartition("/")
    with initialize_config_dir(str(REPOSITORY / "config" / (folder or "nnunet")), version_base="1.3"):
        values = OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
    return experiment_config(values)
