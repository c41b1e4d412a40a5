"""From slices to kept synthetic images: generator, samples, threshold, filter."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.image_set import ImageEntry, ImageSet, load_image_set, save_image_set
from common.plan import load_plan
from common.seeds import derive_seed
from common.settings import from_dict, to_dict
from memorization.calibration import Calibration, MemorizationConfig, calibrate
from memorization.embedders import Embedder, build_embedder
from memorization.filter import filter_samples, write_scores
from memorization.pictures import draw_histogram, draw_nearest_pairs
from pipeline.config import IMAGES_PER_TRAINING_IMAGE
from pipeline.gauge import FeatureGauge
from pipeline.generators import find_generator
from pipeline.run_stage import StageContext

N_SPLITS = {"train": ("train",), "train_and_val": ("train", "val")}
HELD_OUT: dict[str, tuple[str, ...]] = {"train": ("val",), "train_and_val": ()}  # never the fold's test patients


def train_generator(context: StageContext) -> None:
    """Train the generator on the site's slices of the named splits."""
    settings = context.stage.settings
    slices = load_image_set(context.inputs["slices"])
    images = slices.of_split(*N_SPLITS[settings["train_on"]])
    generator = find_generator(settings["name"])
    gauge = FeatureGauge(
        images,
        slices.of_split(*HELD_OUT[settings["train_on"]]),
        context.seed,
        context.device,
        generator.sees_mirrored(settings["settings"]),
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
    )
    write_json(context.out / "settings.json", {"name": settings["name"], "n_images": len(images), **resolved})


def sample(context: StageContext) -> None:
    """Sample images whose seeds follow from site, fold and experiment (the original's were 0, 1, 2, ... everywhere)."""
    settings = context.stage.settings
    trained = context.inputs["generator"]
    n_trained_on = read_json(trained / "settings.json")["n_images"]
    n_images = settings["n_images"] if settings["n_images"] != "auto" else IMAGES_PER_TRAINING_IMAGE * n_trained_on
    seeds = [derive_seed(context.seed, index) for index in range(int(n_images))]
    images = find_generator(settings["name"]).sample(
        trained, seeds, _number_or_none(settings["batch_size"]), context.device, context.progress
    )
    width = len(str(len(seeds) - 1))
    entries = tuple(ImageEntry(f"{context.stage.site}_syn_{i:0{width}d}", seed=seed) for i, seed in enumerate(seeds))
    save_image_set(context.out, ImageSet(images, entries, load_image_set(context.inputs["slices"]).info))


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


def filter_copies(context: StageContext) -> None:
    """Drop samples too close to an image the generator saw; the record of every image stays at the site."""
    settings = context.stage.settings
    config = context.settings(MemorizationConfig, "memorization")
    calibration = from_dict(Calibration, read_json(context.inputs["calibrate"] / "calibration.json"))
    samples = load_image_set(context.inputs["sample"])
    slices = load_image_set(context.inputs["slices"])
    indices = [i for i, entry in enumerate(slices.entries) if entry.split in N_SPLITS[settings["train_on"]]]
    references = slices.subset(indices)
    features = np.load(context.inputs["calibrate"] / "features.npy")[indices]
    mirrored_file = context.inputs["calibrate"] / "features_mirrored.npy"
    mirrored = np.load(mirrored_file)[indices] if mirrored_file.is_file() else None
    embedded = _embedder(context, config).embed(samples.images, context.progress)
    result = filter_samples(features, embedded, calibration.threshold_l2, config, mirrored)
    kept = np.flatnonzero(result.kept)
    if not len(kept):
        raise InputError(
            f"all {len(samples)} synthetic images were dropped as too close to real ones",
            where=context.out,
            fix="train the generator on more patients or for fewer kimg (train.gan.kimg)",
        )
    write_scores(
        context.out / "scores.csv",
        [entry.name for entry in samples.entries],
        result,
        [entry.name for entry in references.entries],
    )
    draw_histogram(context.out / "histogram.png", calibration, result.distances[:, 0])
    draw_nearest_pairs(context.out / "nearest_pairs.png", samples, references, result)
    write_json(context.out / "filter.json", _figures(calibration, config, len(samples), len(kept)))
    np.save(context.out / "features.npy", embedded[kept])  # the audit looks at them again
    save_image_set(context.out, samples.subset(kept))


def _figures(calibration: Calibration, config: MemorizationConfig, n_sampled: int, n_kept: int) -> dict[str, Any]:
    """The aggregate figures that may leave with the package: no name, no single distance."""
    return {
        "embedder": config.embedder,
        "calibration": config.calibration,
        "percentile": config.percentile,
        "threshold_l2": calibration.threshold_l2,
        "n_references": calibration.n_references,
        "n_sampled": n_sampled,
        "n_kept": n_kept,
        "n_dropped": n_sampled - n_kept,
    }


def _embedder(context: StageContext, config: MemorizationConfig) -> Embedder:
    return build_embedder(config.embedder, batch_size=config.batch_size, device=context.device, weights=config.weights)


def _embed_real(
    context: StageContext, slices: ImageSet, config: MemorizationConfig, mirrored: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    embedder = _embedder(context, config)
    features = embedder.embed(slices.images, context.progress)
    return features, embedder.embed(slices.images[..., ::-1], context.progress) if mirrored else None
