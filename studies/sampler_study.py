"""What fewer evaluations of the denoiser cost in quality.

    python -m studies.sampler_study --checkpoint runs/cxr_ddpm/fold_0/generator/A/generator.safetensors \\
        --run runs/cxr_ddpm --site A --out samplers

Every sampler makes images of the same seeds. The table gives their Fréchet distance to images of patients that nobody
trained on (the site's test patients in the outer fold), and its ratio to the distance of the reference, which is the
first of ``--samplers``: by default ancestral sampling at all 1000 time steps. An image is resampled together with the
reference's image of the same seed, so the interval of the ratio is that of a paired comparison. What was sampled stays
in ``--out``, so that the same command resumes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.command import command
from common.errors import InputError
from common.files import atomic_path, read_json, sha256_of_file, write_json, write_text
from common.image_set import ImageSet, load_image_set
from common.markdown import markdown_table
from common.progress import Progress, shown_progress
from common.seeds import derive_seed
from diffusion.sample import sample
from diffusion.settings import SAMPLERS
from engine.run_stage import set_threads
from features.fidelity import Estimate, frechet_interval
from features.fidelity_comparison import ComparedSets, compare_frechet
from features.fidelity_monitor import FidelityMonitor
from studies.comparison_tables import numbers_of, with_interval
from studies.heldout_images import images_of_split

log = logging.getLogger(__name__)

DEFAULT = "ddpm:1000,multistep:5,multistep:10,multistep:20,ddim:10,ddim:20,ddim:50"
IMAGES_PER_FILE = 16  # as many are lost when a study is killed
IDENTITY, RESULT, TABLE = "sampled.json", "study.json", "study.md"
HEADER = ("sampler", "evaluations", "Fréchet", "over the reference", "images/s")


@dataclass(frozen=True)
class SamplerSetting:
    """A sampler and its number of evaluations."""

    sampler: str
    n_evaluations: int

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        return f"{self.sampler}_{self.n_evaluations}"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="generator.safetensors of a diffusion model")
    parser.add_argument("--run", type=Path, required=True, help="runs/<exp_name>, with the site's prepared images")
    parser.add_argument("--site", required=True, help="the site of the checkpoint")
    parser.add_argument("--fold", type=int, default=0, help="the outer fold of the checkpoint")
    parser.add_argument("--n-images", type=int, default=300, help="by each sampler")
    parser.add_argument(
        "--samplers", type=_settings, default=_settings(DEFAULT), help=f"the reference first (default: {DEFAULT})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images and the intervals")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images and the table")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Sample what is not sampled yet, compare, print."""
    set_threads(1)
    with shown_progress() as progress:
        lines = _study(chosen, progress)
    sys.stdout.write("\n".join(lines) + "\n")


def _settings(text: str) -> list[SamplerSetting]:
    settings = []
    for one in text.split(","):
        sampler, _, n_evaluations = one.partition(":")
        if sampler not in SAMPLERS or not n_evaluations.isdecimal():
            raise argparse.ArgumentTypeError(f"{one!r} is not one of {SAMPLERS}, a colon and a number of evaluations")
        settings.append(SamplerSetting(sampler, int(n_evaluations)))
    return settings


def _study(chosen: argparse.Namespace, progress: Progress) -> list[str]:
    fold = chosen.run / f"fold_{chosen.fold}"
    test = images_of_split(fold, chosen.site, "test")
    training = load_image_set(fold / "slices" / chosen.site).of_split("train")
    _check_same_images(chosen)
    gauge = FidelityMonitor(training, test, 0, chosen.device, embeddings=chosen.out / "embeddings")
    heldout, owners = gauge.embed(test.images, keep=True), [entry.patient for entry in test.entries]
    # the quick ones first, so that a table of them can be had early
    sampled = {setting: sample_all(chosen, setting, progress) for setting in reversed(chosen.samplers)}
    features = {setting: gauge.embed(images, keep=True) for setting, (images, _) in sampled.items()}
    reference = features[chosen.samplers[0]]
    rows = []
    for setting in chosen.samplers:
        sides = ComparedSets(features[setting], reference, heldout, owners)
        compared = compare_frechet([[sides]], chosen.seed, is_paired=True)
        rows.append(
            {
                **vars(setting),
                "frechet": numbers_of(compared.a),
                "ratio": numbers_of(compared.ratio),
                "images_per_s": chosen.n_images / sampled[setting][1],
            }
        )
    trained_on = [entry.patient for entry in training.entries]
    real = frechet_interval(
        gauge.embed(training.images, keep=True), heldout, chosen.seed, owners_a=trained_on, owners_b=owners
    )
    write_json(chosen.out / RESULT, {"rows": rows, "frechet_training_images": numbers_of(real)})
    lines = [*format_rows(rows), "", _note(chosen, test, len(training), real)]
    write_text(chosen.out / TABLE, "\n".join(lines) + "\n")
    return lines


def _check_same_images(chosen: argparse.Namespace) -> None:
    """InputError where the folder holds images of another checkpoint or of other seeds."""
    if not chosen.checkpoint.is_file():
        raise InputError(
            "the file does not exist", where=chosen.checkpoint, fix="give the generator.safetensors of a training"
        )
    identity = {"checkpoint": sha256_of_file(chosen.checkpoint), "seed": chosen.seed, "device": chosen.device}
    if (chosen.out / IDENTITY).is_file() and read_json(chosen.out / IDENTITY) != identity:
        fix = "give another --out, or delete the folder"
        raise InputError("the folder holds images of another checkpoint, --seed or --device", where=chosen.out, fix=fix)
    write_json(chosen.out / IDENTITY, identity)


def sample_all(chosen: argparse.Namespace, setting: SamplerSetting, progress: Progress) -> tuple[np.ndarray, float]:
    """All images of one setting, read where they were sampled before, and the seconds they took.

    Every file holds as many images, also the last one, so that a longer study goes on from a shorter one.
    """
    parts, seconds_per_image = [], []
    for start in range(0, chosen.n_images, IMAGES_PER_FILE):
        path = chosen.out / setting.folder / f"{start:06d}.npy"
        if not path.with_suffix(".json").is_file():
            seeds = [derive_seed(chosen.seed, "sampler study", start + i) for i in range(IMAGES_PER_FILE)]
            started_s = time.perf_counter()
            images = sample(
                chosen.checkpoint,
                seeds,
                device=chosen.device,
                sampler=setting.sampler,
                n_evaluations=setting.n_evaluations,
            )
            seconds = time.perf_counter() - started_s
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, images, allow_pickle=False)
            write_json(path.with_suffix(".json"), {"seconds_per_image": seconds / IMAGES_PER_FILE})
        progress(min(start + IMAGES_PER_FILE, chosen.n_images), chosen.n_images, f"image of {setting.folder}")
        parts.append(np.load(path, allow_pickle=False))
        seconds_per_image.append(read_json(path.with_suffix(".json"))["seconds_per_image"])
    return np.concatenate(parts)[: chosen.n_images], float(np.median(seconds_per_image)) * chosen.n_images


def format_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The Markdown table; the first row is the reference."""
    cells = []
    for number, row in enumerate(rows):
        ratio = with_interval(row["ratio"], 3) if number else "1 (the reference)"
        frechet, images_per_s = with_interval(row["frechet"], 1), f"{row['images_per_s']:.3g}"
        cells.append([row["sampler"], row["n_evaluations"], frechet, ratio, images_per_s])
    return markdown_table(HEADER, cells)


def _note(chosen: argparse.Namespace, test: ImageSet, n_training: int, real: Estimate) -> str:
    n_patients = len({entry.patient for entry in test.entries})
    return (
        f"{chosen.n_images} images of the same seeds each, against {len(test)} images of {n_patients} test patients of "
        f"site {chosen.site}; 95 % intervals over images, paired by seed, and patients. The {n_training} training "
        f"images have {with_interval(numbers_of(real), 1)}; a distance falls with the number of images. "
        f"Speed: {chosen.device}, one thread where it is a CPU."
    )


if __name__ == "__main__":
    sys.exit(main())
