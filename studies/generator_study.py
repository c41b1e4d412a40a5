"""How good a generator is on few real images.

    python -m studies.generator_study --config-name=cxr_hannover --out generator_study

The patients of all sites are cut into two halves. The generator trains on one half; a fifth of that half's patients are
kept for the choice of its snapshot. Only the scores see the other half. The distance between the halves is the distance
of two real samples of the same source, so the table gives a generator's distance as a multiple of it. A generator that
copies would have a multiple of 1, so the table also gives the distance of its samples to the nearest training image.

Plans are compared at equal kimg: the standard square plan (strides 2, kernels 3x3) is the control of an uneven one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.command import command
from common.files import read_json, write_json
from common.image_set import ImageSet
from common.markdown import markdown_table
from common.plan import Plan, square_plan
from common.seeds import derive_seed
from dataset.images import limit_size, read_image
from dataset.slices import SliceCase, build_slices, case_of_image
from dataset.source import Case, load_cases
from features.fidelity import frechet_distance, frechet_interval, kernel_interval
from features.fidelity_monitor import FidelityMonitor
from generators.interface import SampleRequest, TrainRequest
from pipeline.config import ExperimentConfig
from pipeline.entry import compose_experiment
from studies.comparison_tables import numbers_of, with_interval
from training.monitor import NEAREST_TRAIN

log = logging.getLogger(__name__)

CHOICE_SHARE = 0.2  # of the training half's patients, for the choice of the snapshot
N_SUBSETS = 20  # of the samples, each as large as the training half: the Fréchet distance depends on the number
RESULT = "study.json"
HEADER = (
    *("plan", "seed", "Fréchet: halves", "samples", "multiple (of 20 subsets)"),
    *("kernel: halves", "samples", "nearest"),
)


@dataclass(frozen=True)
class StudySite:
    """Images of a site and of unseen patients; no patient is in two of the parts.

    ``trained_on``: what the generator sees, and what a filter compares with. ``validation``: images of the site's other
    patients, which choose the generator's snapshot and calibrate a filter. ``unseen``: images of patients that only
    scores and audits use.
    """

    trained_on: ImageSet
    validation: ImageSet
    unseen: ImageSet

    @property
    def own(self) -> ImageSet:
        """All images of the site."""
        images = np.concatenate([self.trained_on.images, self.validation.images])
        return ImageSet(images, self.trained_on.entries + self.validation.entries, self.trained_on.info)


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Of a study of one experiment's generator, for ``load_images``, ``train_on_half`` and ``score``."""
    parser.add_argument("--config-name", required=True, help="an experiment of config/nnunet")
    parser.add_argument("--size-px", type=int, default=64, help="side of the square images, a power of two")
    parser.add_argument("--out", type=Path, required=True, help="folder for the generators and the figures")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("overrides", nargs="*", help="of the experiment, as on the command line of run_nnunet.py")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser)
    parser.add_argument("--plan", choices=tuple(PLANS), action="append", help="may be repeated (default: all)")
    parser.add_argument("--n-seeds", type=int, default=1, help="each with halves of its own")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Train, score, print; every training resumes, and one that is done is not repeated."""
    config = compose_experiment(chosen.config_name, chosen.overrides)
    images = load_images(load_cases(config.source, config.data_dir), square_plan(chosen.size_px))
    rows = []
    for seed in range(chosen.n_seeds):
        halves = cut_in_halves(images, seed)
        for plan in chosen.plan or PLANS:
            out = chosen.out / f"{plan}_{seed}"
            rows.append({"plan": plan, "seed": seed, **study(config, halves, plan, out, seed, chosen.device)})
            write_json(chosen.out / RESULT, {"rows": rows})
    sys.stdout.write("\n".join(format_rows(rows)) + "\n")


def uneven_plan(size_px: int) -> Plan:
    """The same down to 8 x 8; then rows alone are halved, and the kernel there spans rows alone."""
    square = square_plan(size_px)
    return replace(square, strides=(*square.strides[:-1], (2, 1)), kernel_sizes=(*square.kernel_sizes[:-1], (3, 1)))


PLANS = {"square": square_plan, "uneven": uneven_plan}


def load_images(cases: Sequence[Case], plan: Plan) -> ImageSet:
    """All cases as images of the plan's patch size."""

    def slice_of(case: Case) -> SliceCase:
        array = read_image(case.image).array
        shrunk, _ = limit_size(array, np.zeros(array.shape[1:], np.uint8), max(plan.patch_size_px))
        return case_of_image(case.case_id, case.patient, "train", shrunk)

    return build_slices([slice_of(case) for case in cases], plan)


def cut_in_halves(images: ImageSet, seed: int) -> StudySite:
    """Patients at random to the two halves, and a fifth of the first to the choice of the snapshot."""
    patients = sorted({entry.patient for entry in images.entries})
    np.random.default_rng(derive_seed(seed, "halves")).shuffle(patients)
    first, second = patients[: len(patients) // 2], patients[len(patients) // 2 :]
    n_choice = max(2, round(CHOICE_SHARE * len(first)))
    return StudySite(*(_of_patients(images, group) for group in (first[n_choice:], first[:n_choice], second)))


def _of_patients(images: ImageSet, patients: Sequence[str]) -> ImageSet:
    return images.subset([i for i, entry in enumerate(images.entries) if entry.patient in patients])


def study(config: ExperimentConfig, halves: StudySite, plan: str, out: Path, seed: int, device: str) -> dict[str, Any]:
    """Train one generator in ``out`` and score it."""
    train_on_half(config, halves, plan, out, seed, device)
    n_images = len(halves.own)
    seeds = [derive_seed(seed, "study", index) for index in range(N_SUBSETS * n_images)]
    request = SampleRequest(trained=out, seeds=seeds, device=device, progress=_say_progress)
    samples = config.generator.backend.sample(request)
    return score(halves, samples, seed, device) | {"card": read_json(out / "card.json")}


def train_on_half(config: ExperimentConfig, halves: StudySite, plan: str, out: Path, seed: int, device: str) -> None:
    """Train the experiment's generator in ``out``, its snapshot chosen by the patients kept for that."""
    generator, settings = config.generator.backend, dict(config.generator.settings)
    gauge = FidelityMonitor(halves.trained_on, halves.validation, seed, device, generator.sees_mirrored(settings))
    kimg = None if config.train.gan.kimg == "auto" else float(config.train.gan.kimg)
    size_px = halves.trained_on.images.shape[-1]
    request = TrainRequest(
        images=halves.trained_on.images,
        plan=PLANS[plan](size_px),
        kimg=kimg,
        settings=settings,
        out=out,
        seed=seed,
        device=device,
        progress=_say_progress,
        monitor=gauge,
    )
    generator.train(request)


def _say_progress(done: float, total: float, unit: str) -> None:
    log.debug("%g of %g %s", done, total, unit)


def score(halves: StudySite, samples: np.ndarray, seed: int, device: str) -> dict[str, Any]:
    """Distances of samples and of the training half to the unseen half, and of samples to training images."""
    gauge = FidelityMonitor(halves.trained_on, halves.unseen, seed, device)
    owners, own = ([entry.patient for entry in part.entries] for part in (halves.unseen, halves.own))
    of_halves = {"owners_a": own, "owners_b": owners}
    unseen, first, features = (gauge.embed(x) for x in (halves.unseen.images, halves.own.images, samples))
    subsets = np.array_split(features, N_SUBSETS)
    real, distances = frechet_distance(first, unseen), [frechet_distance(subset, unseen) for subset in subsets]
    sides = {"training": halves.trained_on, "choice": halves.validation, "unseen": halves.unseen}
    return {
        "n_images": {side: len(images) for side, images in sides.items()},
        "frechet_halves": numbers_of(frechet_interval(first, unseen, seed, **of_halves)),
        "frechet_samples": numbers_of(frechet_interval(subsets[0], unseen, seed, owners_b=owners)),
        "multiples": [distance / real for distance in distances],
        "kernel_halves": numbers_of(kernel_interval(first, unseen, seed, **of_halves)),
        "kernel_samples": numbers_of(kernel_interval(features, unseen, seed, owners_b=owners)),
        NEAREST_TRAIN: gauge.measure(samples, gauge.n_references)[NEAREST_TRAIN],
    }


def format_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The Markdown table, a row a plan and seed."""
    cells = [
        [
            row["plan"],
            row["seed"],
            with_interval(row["frechet_halves"], 1),
            with_interval(row["frechet_samples"], 1),
            f"{np.mean(row['multiples']):.2f} ({min(row['multiples']):.2f} to {max(row['multiples']):.2f})",
            with_interval(row["kernel_halves"], 3),
            with_interval(row["kernel_samples"], 3),
            f"{row[NEAREST_TRAIN]:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(HEADER, cells)


if __name__ == "__main__":
    sys.exit(main())
