"""Whether a generator that copies is caught and one that does not passes.

    python -m studies.memorization_study --config-name=cxr_hannover --out memorization_study

Two generators of one source, each judged by the filter and the gates as an experiment would:

- **overtrained**: 16 images of 16 patients, no augmentation, no path lengths, no style mixing, no choice of a snapshot,
  until it makes its training images. The pixels (correlation with the nearest training image) say what a copy is, not
  the filter.
- **well-trained**: the experiment's own settings on half of the patients, trained here or by
  ``studies.generator_study`` (``--well-trained``, whose halves are those of the same seed).

The site of the overtrained generator is that of an experiment: the filter compares with the 16 images trained on, and
the site's validation patients calibrate it too (those of the same half whom the generator did not see). A site of the
16 alone has no held-out patient, so that its gates would refuse it without measuring anything; what the filter drops
where those 16 alone calibrate it (level 1/17) is printed too. The audit's held-out patients are the other half, which
nothing else sees.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from common.command import command
from common.errors import InputError
from common.files import read_json, sha256_of_json, write_json
from common.image_set import ImageSet
from common.plan import square_plan
from common.progress import Progress, shown_progress, silent
from common.seeds import derive_seed
from common.settings import to_dict
from dataset.source import load_cases
from engine.dependencies import code_of
from generators.interface import SampleRequest, TrainRequest
from memorization.planted.planted_audit import Recall, mean_kappa, recall_of
from memorization.site_audit import SiteAudit
from pipeline.config import ExperimentConfig
from pipeline.entry import compose_experiment
from studies.generator_study import StudySite, add_study_arguments, cut_in_halves, load_images, train_on_half
from studies.judged_site import (
    CalibratedSite,
    JudgedImages,
    audit_images,
    calibrate_site,
    decide_by,
    decisions,
    judge_images,
)
from studies.memorization_tables import (
    ALL_SAMPLES,
    BETWEEN,
    KEPT,
    LIMITS,
    OVERTRAINED,
    SAMPLES,
    TRUNCATED,
    UNSEEN,
    WELL_TRAINED,
    format_study,
)

log = logging.getLogger(__name__)

TRUNCATION, HALFWAY = 0.7, 0.5
NOT_GENERALISING: Mapping[str, Any] = {  # settings of the overtrained generator in place of the experiment's
    "augment": [],
    "mirror": False,
    "style_mixing": 0.0,
    "path_length_weight": 0.0,
    "path_length_interval": 1_000_000,
    "snapshot": "last",
    "batch_size": 16,  # all of the few images in every step
    "z_dim": 4,  # as few dimensions are soon learned by heart
    "ema_kimg": 1.5,
}
N_VALIDATION_PATIENTS = 2  # at least, beside those trained on
CHECKPOINT, RESULT = "generator.safetensors", "study.json"
PART, SHEET = "{name}.json", "{name}_beside_nearest.png"
SHEET_COLUMNS, SHEET_PAIRS = 12, 36


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser)
    parser.add_argument("--n-trained-on", type=int, default=16, help="images of as many patients, overtrained on")
    size_help = "side of the images of the overtraining (default: --size-px)"
    parser.add_argument("--overtrained-size-px", type=int, help=size_help)
    parser.add_argument("--overtrained-kimg", type=float, default=50.4, help="length of the overtraining")
    parser.add_argument("--well-trained", type=Path, help="folder of one trained by generator_study, same --seed")
    parser.add_argument("--n-samples", type=int, default=200, help="of either generator")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Train what is not trained yet, judge, print."""
    with shown_progress() as progress:
        result = _study(chosen, progress)
    for line in format_study(result):
        sys.stdout.write(f"{line}\n")


def _study(chosen: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    config = compose_experiment(chosen.config_name, chosen.overrides)
    cases = load_cases(config.source, config.data_dir)
    halves, small = (
        cut_in_halves(load_images(cases, square_plan(size_px)), chosen.seed)
        for size_px in (chosen.size_px, chosen.overtrained_size_px or chosen.size_px)
    )
    sites = {OVERTRAINED: site_of_few(small, chosen.n_trained_on, chosen.seed), WELL_TRAINED: halves}
    folders = {
        OVERTRAINED: train_overtrained(config, sites[OVERTRAINED].trained_on, chosen, progress),
        WELL_TRAINED: train_well(config, halves, chosen),
    }
    parts = {}
    for name, site in sites.items():
        made = sample_all(config, folders[name], chosen.n_samples, derive_seed(chosen.seed, name), chosen.device)
        parts[name] = study_site(name, site, made, config, chosen.out, chosen.seed, chosen.device, progress)
    result = summarise(parts, config)
    cards = {name: read_json(folder / "card.json") for name, folder in folders.items()}
    write_json(chosen.out / RESULT, result | {"cards": cards})
    return result


def site_of_few(halves: StudySite, n_images: int, seed: int) -> StudySite:
    """One image each of ``n_images`` patients of the first half; the half's other patients are beside them.

    Raises:
        InputError: the half has too few patients.
    """
    entries = halves.own.entries
    patients = sorted({entry.patient for entry in entries})
    if not 2 <= n_images <= len(patients) - N_VALIDATION_PATIENTS:
        raise InputError(
            f"{n_images} of {len(patients)} patients of a half",
            where="--n-trained-on",
            fix=f"use 2 to {len(patients) - N_VALIDATION_PATIENTS}, or a source with more patients",
        )
    np.random.default_rng(derive_seed(seed, "trained on")).shuffle(patients)
    owners = [entry.patient for entry in entries]
    trained_on = [owners.index(patient) for patient in patients[:n_images]]
    validation = [i for i, owner in enumerate(owners) if owner in patients[n_images:]]
    return StudySite(halves.own.subset(trained_on), halves.own.subset(validation), halves.unseen)


def train_overtrained(
    config: ExperimentConfig, images: ImageSet, chosen: argparse.Namespace, progress: Progress
) -> Path:
    """The folder of the generator without anything that keeps it from copying; trained where it is not yet."""
    out: Path = chosen.out / "overtrained"
    request = TrainRequest(
        images=images.images,
        plan=square_plan(images.images.shape[-1]),
        kimg=chosen.overtrained_kimg,
        settings={**config.generator.settings, **NOT_GENERALISING},
        out=out,
        seed=chosen.seed,
        device=chosen.device,
        progress=progress,
    )
    config.generator.backend.train(request)
    return out


def train_well(config: ExperimentConfig, halves: StudySite, chosen: argparse.Namespace) -> Path:
    """The folder given, or of a training by the experiment's settings.

    Raises:
        InputError: the folder holds no finished generator, or one of another number of images.
    """
    given = chosen.well_trained
    if given is None:
        out: Path = chosen.out / "well_trained"
        train_on_half(config, halves, "square", out, chosen.seed, chosen.device)
        return out
    if not (given / CHECKPOINT).is_file() or not (given / "card.json").is_file():
        raise InputError(
            "there is no finished generator", where=given, fix="give the folder of one, with its card.json"
        )
    n_images = read_json(given / "card.json")["data"]["n_images"]
    if n_images != len(halves.trained_on):
        raise InputError(
            f"it was trained on {n_images} images, this half has {len(halves.trained_on)}",
            where=given,
            fix="give the generator_study's of the same experiment and --seed",
        )
    return Path(given)


def sample_all(config: ExperimentConfig, folder: Path, n_samples: int, seed: int, device: str) -> dict[str, np.ndarray]:
    """Images by kind; a quarter as many of each kind that sampling alone does not draw."""
    from gan.styles import sample_between, sample_truncated

    seeds = [derive_seed(seed, "study sample", number) for number in range(n_samples)]
    few, checkpoint = seeds[: max(2, n_samples // 4)], folder / CHECKPOINT
    return {
        SAMPLES: config.generator.backend.sample(SampleRequest(trained=folder, seeds=seeds, device=device)),
        TRUNCATED: sample_truncated(checkpoint, few, TRUNCATION, device),
        BETWEEN: sample_between(checkpoint, few, HALFWAY, device),
    }


def study_site(
    name: str,
    site: StudySite,
    made: Mapping[str, np.ndarray],
    config: ExperimentConfig,
    out: Path,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Calibrate, judge the images and those of unseen patients, audit; as ``describe`` puts it.

    Read from ``out`` where these images were judged by this code and these settings before. The sheet shows patients
    and stays here.
    """
    content = {kind: sha256(images.tobytes()).hexdigest() for kind, images in made.items()}
    settings = [to_dict(config.memorization), to_dict(config.gates), seed]
    asked = [content, settings, code_of(["studies.memorization_study:study_site"]), len(site.own), len(site.unseen)]
    digest, path = sha256_of_json(asked), out / PART.format(name=name)
    if path.is_file() and (known := read_json(path))["digest"] == digest:
        log.info("%s: judged before, see %s", name, path)
        return dict(known)
    by_generator = config.generator.backend.sees_mirrored(dict(config.generator.settings))
    mirrored = {"auto": by_generator, "always": True, "never": False}[config.memorization.mirror]
    calibrated = calibrate_site(site, config.memorization, mirrored, seed, device, out / "embeddings", progress)
    shown = {**made, UNSEEN: site.unseen.images}
    judged = {kind: judge_images(calibrated, images, progress) for kind, images in shown.items()}
    samples = judged[SAMPLES]
    draw_beside_nearest(out / SHEET.format(name=name), samples, site.trained_on)
    features, n_sampled = samples.result.features, len(samples.images)
    audits = {
        ALL_SAMPLES: audit_images(calibrated, features, n_sampled, config.gates, seed),
        KEPT: audit_images(calibrated, features[samples.result.kept], n_sampled, config.gates, seed),
    }
    part = describe(calibrated, judged, audits, seed) | {"digest": digest}
    write_json(path, part)
    return part


def draw_beside_nearest(path: Path, judged: JudgedImages, references: ImageSet) -> None:
    """Rows of samples, each above the training image its pixels correlate with most."""
    from training.pictures import write_grid

    n_rows = min(SHEET_PAIRS, len(judged.images)) // SHEET_COLUMNS
    shown = []
    for row in range(max(1, n_rows)):
        block = slice(row * SHEET_COLUMNS, (row + 1) * SHEET_COLUMNS)
        shown += [judged.images[block], references.images[judged.nearest[block]]]
    pictures = np.concatenate(shown)
    levels = pictures if pictures.dtype == np.uint8 else (pictures >> 8).astype(np.uint8)
    write_grid(levels, (len(shown), len(shown[0])), path)


def summarise(parts: Mapping[str, Mapping[str, Any]], config: ExperimentConfig) -> dict[str, Any]:
    """All parts as JSON holds them; kappa is of the decisions on the generated images of all parts together."""
    drawn = np.concatenate([np.array(part["decisions"], bool) for part in parts.values()], axis=1)
    return {"n_calibrations": len(drawn), "kappa": mean_kappa(drawn), "limits": to_dict(config.gates), "parts": parts}


def describe(
    calibrated: CalibratedSite, judged: Mapping[str, JudgedImages], audits: Mapping[str, SiteAudit], seed: int
) -> dict[str, Any]:
    """A part as JSON holds it; ``decisions``: a row for each calibration, 1 where a generated image is dropped.

    ``audits``: of all samples, and of those that the filter kept.
    """
    site = calibrated.site
    sides = {"trained_on": site.trained_on, "beside": site.validation, "unseen": site.unseen}
    generated = [images for kind, images in judged.items() if kind != UNSEEN]
    agreed = decisions(calibrated, generated, seed)
    return {
        "n_images": {side: len(images) for side, images in sides.items()},
        "n_patients": {side: len({entry.patient for entry in images.entries}) for side, images in sides.items()},
        "n_calibration": len(calibrated.calibration),
        "level": calibrated.filter.level,
        "same_in_all_calibrations": float((agreed == agreed[:1]).all(axis=0).mean()),
        "filter": {kind: _filtered(calibrated, images) for kind, images in judged.items()},
        "audits": {stage: to_dict(audit) for stage, audit in audits.items()},
        "decisions": agreed.astype(int).tolist(),
    }


def _filtered(calibrated: CalibratedSite, judged: JudgedImages) -> dict[str, Any]:
    trained_on = {entry.patient for entry in calibrated.site.trained_on.entries}
    alone = np.flatnonzero(np.isin(calibrated.calibration_patients, sorted(trained_on)))
    found = {limit: judged.is_dropped[judged.is_copy(float(limit))] for limit in LIMITS}
    names, counts = np.unique(judged.result.seen_by[judged.is_dropped], return_counts=True)
    return {
        "dropped": _share(recall_of(judged.is_dropped)),
        "copies_dropped": {limit: _share(recall_of(of)) if len(of) else None for limit, of in found.items()},
        "dropped_by_trained_on_alone": _share(recall_of(decide_by(calibrated, alone)(judged.likeness.values))),
        "correlation_quantiles": [float(q) for q in np.quantile(judged.correlation, (0.25, 0.5, 0.75, 1))],
        "missed": [_missed(judged, i) for i in np.flatnonzero(judged.is_copy(float(LIMITS[-1])) & judged.result.kept)],
        "seen_by": {str(name): int(n) for name, n in zip(names, counts, strict=True)},
    }


def _missed(judged: JudgedImages, i: np.intp) -> dict[str, Any]:
    """A copy that the filter kept."""
    result = judged.result
    return {
        "sample": int(i),
        "correlation": float(judged.correlation[i]),
        "p": float(result.p_values[i]),
        "seen_by": str(result.seen_by[i]),
        "same_original": bool(result.originals[i] == judged.nearest[i]),
    }


def _share(recall: Recall) -> list[float]:
    """Found, n, and the 95 % Clopper-Pearson interval of the share."""
    return [recall.found, recall.n, *recall.interval]


if __name__ == "__main__":
    sys.exit(main())
