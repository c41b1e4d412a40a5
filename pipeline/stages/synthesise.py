"""From slices to kept synthetic images: generator, samples, threshold, filter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json, write_json
from common.image_set import (
    LABELS,
    ImageEntry,
    ImageSet,
    load_image_set,
    load_labels,
    save_image_set,
    save_labels,
)
from common.plan import load_plan
from common.seeds import derive_seed
from common.settings import to_dict
from engine.run_stage import StageContext
from features.fidelity_monitor import FidelityMonitor
from generators.registry import find_generator
from memorization.calibration import MemorizationConfig, calibrate, real_to_real, site_embedder
from memorization.filter import FilterResult, SiteFilter, joined, load_site_filter, write_scores
from memorization.pictures import draw_histogram, draw_nearest_pairs, draw_p_values
from pipeline.config import IMAGES_PER_TRAINING_IMAGE

log = logging.getLogger(__name__)

N_SPLITS = {"train": ("train",), "train_and_val": ("train", "val")}
HELD_OUT: dict[str, tuple[str, ...]] = {"train": ("val",), "train_and_val": ()}  # never the fold's test patients


def train_generator(context: StageContext) -> None:
    """Train the generator on the site's slices of the named splits, and on their labels where it makes labels too."""
    settings = context.stage.settings
    slices = load_image_set(context.inputs["slices"])
    images = slices.of_split(*N_SPLITS[settings["train_on"]])
    generator = find_generator(settings["name"])
    gauge = FidelityMonitor(
        images,
        slices.of_split(*HELD_OUT[settings["train_on"]]),
        context.seed,
        context.device,
        generator.sees_mirrored(settings["settings"]),
        embeddings=context.embeddings,
    )
    resolved = generator.train(
        images.images,
        load_plan(context.inputs["plan"] / "plans.json"),
        None if settings["kimg"] == "auto" else float(settings["kimg"]),
        settings["settings"],
        context.out,
        context.seed,
        context.device,
        context.progress,
        gauge,
        *_labels_of(context, slices),
    )
    write_json(context.out / "settings.json", {"name": settings["name"], "n_images": len(images), **resolved})


def _labels_of(context: StageContext, slices: ImageSet) -> tuple[np.ndarray | None, int | None]:
    """Labels of the slices trained on and how many the dataset has, where the generator makes labels too."""
    settings = context.stage.settings
    if "labels" not in settings:
        return None, None
    seen = N_SPLITS[settings["train_on"]]
    indices = [i for i, entry in enumerate(slices.entries) if entry.split in seen]
    return load_labels(context.inputs["slices"])[indices], len(settings["labels"])


@dataclass(frozen=True)
class _Samples:
    """Images and, where the generator makes them too, their labels (n, height, width)."""

    images: ImageSet
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def followed_by(self, others: _Samples) -> _Samples:
        """These, then the others."""
        pixels = np.concatenate([self.images.images, others.images.images])
        images = ImageSet(pixels, (*self.images.entries, *others.images.entries), self.images.info)
        if self.labels is None or others.labels is None:
            return _Samples(images, None)
        return _Samples(images, np.concatenate([self.labels, others.labels]))

    def subset(self, indices: np.ndarray) -> _Samples:
        """Those at ``indices``, in that order."""
        return _Samples(self.images.subset(indices), None if self.labels is None else self.labels[indices])

    def save(self, folder: Path) -> None:
        """The index last, so that it marks a whole set."""
        if self.labels is not None:
            save_labels(folder, self.labels)
        save_image_set(folder, self.images)


def _load_samples(folder: Path) -> _Samples:
    labels = load_labels(folder) if (folder / LABELS).is_file() else None
    return _Samples(load_image_set(folder), labels)


def sample(context: StageContext) -> None:
    """Sample images whose seeds follow from site, fold and experiment (the original's were 0, 1, 2, ... everywhere)."""
    settings = context.stage.settings
    n_trained_on = read_json(context.inputs["generator"] / "settings.json")["n_images"]
    n_images = settings["n_images"] if settings["n_images"] != "auto" else IMAGES_PER_TRAINING_IMAGE * n_trained_on
    draw = _Draw(settings, context.seed, len(str(int(n_images) - 1)))
    draw(context, range(int(n_images))).save(context.out)


@dataclass(frozen=True)
class _Draw:
    """Draws the images of a site by their numbers: a number says the seed, whichever stage asks and when."""

    settings: Mapping[str, Any]  # name and batch_size, and labels where the generator makes labels too
    seed: int
    n_digits: int

    def __call__(self, context: StageContext, numbers: range) -> _Samples:
        seeds = [derive_seed(self.seed, number) for number in numbers]
        generator, batch_size = find_generator(self.settings["name"]), _number_or_none(self.settings["batch_size"])
        arguments = (context.inputs["generator"], seeds, batch_size, context.device, context.progress)
        images, labels = (
            generator.sample_with_labels(*arguments)
            if "labels" in self.settings
            else (generator.sample(*arguments), None)
        )
        entries = tuple(
            ImageEntry(f"{context.stage.site}_syn_{number:0{self.n_digits}d}", seed=seed)
            for number, seed in zip(numbers, seeds, strict=True)
        )
        return _Samples(ImageSet(images, entries, load_image_set(context.inputs["slices"]).info), labels)


def _number_or_none(setting: int | str) -> int | None:
    """``auto`` as None."""
    return None if setting == "auto" else int(setting)


def calibrate_threshold(context: StageContext) -> None:
    """The distance below which a synthetic image is dropped, from images of different patients of the site."""
    settings = context.stage.settings
    config = context.settings(MemorizationConfig, "memorization")
    slices = load_image_set(context.inputs["slices"]).of_split("train", "val")
    features, mirrored = _embed_real(context, slices, config, settings["mirrored"])
    n_references = len(slices.of_split(*N_SPLITS[settings["train_on"]]))
    result = calibrate(
        features, [entry.patient for entry in slices.entries], n_references, config, context.seed, mirrored
    )
    write_json(context.out / "calibration.json", to_dict(result))
    np.save(context.out / "features.npy", features)
    if mirrored is not None:
        np.save(context.out / "features_mirrored.npy", mirrored)
    if config.rule == "fused":
        _calibrate_fused(context, slices, features, mirrored, config)


def _calibrate_fused(
    context: StageContext,
    slices: ImageSet,
    features: np.ndarray,
    mirrored: np.ndarray | None,
    config: MemorizationConfig,
) -> None:
    """Likeness between the site's patients; duplicates between patients are named and do not calibrate."""
    indexed = np.array([entry.split in N_SPLITS[context.stage.settings["train_on"]] for entry in slices.entries])
    patients = np.array([entry.patient for entry in slices.entries])
    honest = real_to_real(slices.images, features, mirrored, patients, indexed, context.progress)
    np.save(context.out / "likeness.npy", honest.values)
    np.save(context.out / "likeness_images.npy", honest.images)
    names = [entry.name for entry in slices.entries]
    pairs = [[names[image], names[other]] for image, other in honest.duplicates]
    write_json(context.out / "duplicates.json", {"pairs": pairs})
    if pairs:
        log.warning("%d images are duplicates of another patient's and do not calibrate: %s", len(pairs), pairs[:5])
    level, lowest = config.percentile / 100, 1 / (len(honest.values) + 1)
    if lowest > level:
        log.warning("%d images allow no level below %.3f; %.3f was asked for", len(honest.values), lowest, level)


def filter_copies(context: StageContext) -> None:
    """Drop samples too close to an image the generator saw and sample others in their place; labels go with theirs.

    The record of every image, also of the dropped ones, stays at the site. Where none passes, the audit refuses.
    """
    settings = context.stage.settings
    own = load_site_filter(
        *(context.inputs["calibrate"], context.inputs["slices"], settings, N_SPLITS[settings["train_on"]]),
        context.device,
        context.embeddings,
    )
    samples, result = _replace_dropped(context, _load_samples(context.inputs["sample"]), own)
    kept = np.flatnonzero(result.kept)
    write_scores(
        context.out / "scores.csv",
        [entry.name for entry in samples.images.entries],
        result,
        [entry.name for entry in own.references.entries],
    )
    _draw_histogram(context, own, result)
    draw_nearest_pairs(context.out / "nearest_pairs.png", samples.images, own.references, result)
    write_json(context.out / "filter.json", _figures(own, len(samples), len(kept)))
    np.save(context.out / "features.npy", result.features[kept])  # the audit looks at them again
    samples.subset(kept).save(context.out)


def _replace_dropped(context: StageContext, samples: _Samples, own: SiteFilter) -> tuple[_Samples, FilterResult]:
    """All samples and their verdicts, until as many passed as were asked for or the limit is reached.

    Each round draws as many as are missing: of more, some might pass that nobody asked for. At a pass rate of 95 %
    that is 1.05 images drawn for each one kept, in as many rounds as their number has digits.
    """
    sampling = context.stage.settings["sampling"]
    n_asked = len(samples)
    limit = int(sampling["max_sampled_factor"] * n_asked)
    draw = _Draw(sampling, sampling["seed"], len(str(n_asked - 1)))
    result = own.judge(samples.images.images, context.progress)
    while (n_missing := n_asked - int(result.kept.sum())) and len(samples) < limit:
        n_sampled = len(samples)
        others = draw(context, range(n_sampled, min(n_sampled + n_missing, limit)))
        samples = samples.followed_by(others)
        result = joined(result, own.judge(others.images.images, context.progress))
    if n_missing:
        log.warning(
            "%d of the %d images asked for passed the filter, of %d sampled; more are not sampled "
            "(generate.max_sampled_factor=%g)",
            *(n_asked - n_missing, n_asked, len(samples), sampling["max_sampled_factor"]),
        )
    return samples, result


def _draw_histogram(context: StageContext, own: SiteFilter, result: FilterResult) -> None:
    path = context.out / "histogram.png"
    if own.real_to_real is None:
        draw_histogram(path, own.calibration, result.distances[:, 0])
    else:
        draw_p_values(path, result, own.level)


def _figures(own: SiteFilter, n_sampled: int, n_kept: int) -> dict[str, Any]:
    """The aggregate figures that may leave with the package: no name, no single distance."""
    return {
        "rule": own.config.rule,
        "embedder": own.config.embedder,
        "calibration": own.config.calibration,
        "percentile": own.config.percentile,
        "level": own.level,
        "threshold_l2": own.calibration.threshold_l2 if own.real_to_real is None else None,
        "n_references": own.calibration.n_references,
        "n_sampled": n_sampled,
        "n_kept": n_kept,
        "n_dropped": n_sampled - n_kept,
    }


def _embed_real(
    context: StageContext, slices: ImageSet, config: MemorizationConfig, mirrored: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    embedder = site_embedder(config, context.device, context.embeddings)
    features = embedder.embed(slices.images, context.progress)
    return features, embedder.embed(slices.images[..., ::-1], context.progress) if mirrored else None
