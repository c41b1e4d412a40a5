"""What finished runs of several generators say of each, by site and over all sites; nothing is trained here.

Distances are to the outer fold's test patients, whom no stage but ``evaluate`` reads: nobody trained on them, and
nobody chose a snapshot, a threshold or a length by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import read_json
from common.image_set import ImageSet, load_image_set
from common.resampling import bootstrap_weights, clopper_pearson, drawn_counts, percentile_interval
from common.seeds import derive_seed
from dataset.training_splits import HELD_OUT_SPLITS, TRAIN_SPLITS
from evaluation.approaches import LOCAL, OURS
from evaluation.report.run import RunFiles, find_folds
from evaluation.statistics import ScoreTable, estimate, interval, mean_of
from features.fidelity import N_RESAMPLES
from features.fidelity_comparison import ComparedSets, compare_frechet
from features.fidelity_monitor import FidelityMonitor
from features.index import RESOLUTION_L2, nearest
from generators.registry import find_generator
from pipeline.stage_factory import ALL
from sharing import read_refusal
from studies.comparison_tables import numbers_of
from studies.heldout_images import images_of_split

if TYPE_CHECKING:
    import pandas as pd

Numbers = list[float]
"""A value and its 95 % interval: ``[value, low, high]``, as JSON holds it."""


@dataclass(frozen=True)
class Place:
    """One generator's folders at one site in one fold."""

    fold: Path
    site: str

    def folder(self, stage: str) -> Path:
        """A stage's."""
        return self.fold / stage / self.site

    def read(self, stage: str, name: str) -> Any:
        """A stage's JSON file."""
        return read_json(self.folder(stage) / name)

    def failed_gates(self) -> list[str]:
        """Names of the gates that refused the site's package; none where it was written."""
        refusal = read_refusal(self.folder("share"))
        return [] if refusal is None else [gate.name for gate in refusal.failed]


def places_of(run: Path) -> list[Place]:
    """Every site of every fold at which a generator was trained."""
    files = RunFiles(run, find_folds(run))
    return [Place(files.folder(found.fold), found.site) for found in files.stage_folders("generator")]


@dataclass(frozen=True, eq=False)
class Features:
    """Of one generator at one site in one fold: unit vectors, times one factor for all."""

    samples: np.ndarray
    training: np.ndarray
    mirrored: np.ndarray | None  # training images, mirrored, where the generator saw them so
    validation: np.ndarray  # real images it did not train on
    validation_patients: tuple[str, ...]
    test: np.ndarray
    test_patients: tuple[str, ...]

    @property
    def sides(self) -> ComparedSets:
        """Samples and training images, both compared with the test patients' images."""
        return ComparedSets(self.samples, self.training, self.test, self.test_patients)


def read_features(place: Place, n_samples: int, embeddings: Path, device: str) -> Features:
    """Embed the first ``n_samples`` samples, before the filter, and the site's real images; kept in ``embeddings``."""
    trained = place.read("generator", "manifest.json")["settings"]
    slices, test = load_image_set(place.folder("slices")), images_of_split(place.fold, place.site, "test")
    training, others = (slices.of_split(*splits[trained["train_on"]]) for splits in (TRAIN_SPLITS, HELD_OUT_SPLITS))
    validation = ImageSet(np.concatenate([others.images, test.images]), (*others.entries, *test.entries))
    gauge = FidelityMonitor(training, validation, 0, device, embeddings=embeddings)
    is_mirrored = find_generator(trained.get("adapter", trained["name"])).sees_mirrored(trained["settings"])
    return Features(
        samples=gauge.embed(load_image_set(place.folder("sample")).images[:n_samples], keep=True),
        training=gauge.embed(training.images, keep=True),
        mirrored=gauge.embed(training.images[..., ::-1], keep=True) if is_mirrored else None,
        validation=gauge.embed(validation.images, keep=True),
        validation_patients=tuple(entry.patient for entry in validation.entries),
        test=gauge.embed(test.images, keep=True),
        test_patients=tuple(entry.patient for entry in test.entries),
    )


def n_samples_of(places: Sequence[Place]) -> int:
    """As many samples as every place has."""
    return min(len(load_image_set(place.folder("sample"))) for place in places)


def figures_of(generator: str, places: Mapping[Place, Features], results: pd.DataFrame | None) -> list[dict[str, Any]]:
    """One row for all sites, then one a site, as JSON holds them."""
    sites = sorted({place.site for place in places})
    rows = []
    for scope in (ALL, *sites):
        chosen = {place: found for place, found in places.items() if scope in (ALL, place.site)}
        rows.append({"generator": generator, "site": scope, **_figures(chosen), **_dice(chosen, results)})
    return rows


def _figures(places: Mapping[Place, Features]) -> dict[str, Any]:
    cards = [place.read("generator", "card.json") for place in places]
    counts = [place.read("filter", "filter.json") for place in places]
    n_sampled, n_dropped = (sum(int(count[name]) for count in counts) for name in ("n_sampled", "n_dropped"))
    seed = derive_seed("generator figures")
    folds = sorted({place.fold for place in places})
    by_fold = [[found.sides for place, found in places.items() if place.fold == fold] for fold in folds]
    compared = compare_frechet(by_fold, seed)
    return {
        "minutes": float(np.mean([card["time"]["seconds"] for card in cards])) / 60,
        "kimg": float(np.mean([card["length"]["kimg"] for card in cards])),
        "machine": cards[0]["time"]["machine"],
        "n_training": sum(len(found.training) for found in places.values()),
        "n_test": sum(len(found.test) for found in places.values()),
        "n_test_patients": sum(len(set(found.test_patients)) for found in places.values()),
        "frechet": numbers_of(compared.a),
        "frechet_real": numbers_of(compared.b),
        "multiple": numbers_of(compared.ratio),
        "copies": [n_dropped / n_sampled, *clopper_pearson(n_dropped, n_sampled)],
        "nearest": nearest_ratio(list(places.values()), seed),
        "failed_gates": {str(place.site): gates for place in places if (gates := place.failed_gates())},
    }


def nearest_ratio(parts: Sequence[Features], seed: int, n_resamples: int = N_RESAMPLES) -> Numbers:
    """The gauge's figure with its interval over samples and patients: below 1, samples are nearer than strangers are.

    The median distance of a sample to the nearest training image over that of real images not trained on; the mean
    over ``parts``, each of which is compared with its own training images.
    """
    found = [_nearest_ratio(part, derive_seed(seed, i), n_resamples) for i, part in enumerate(parts)]
    value = float(np.mean([one for one, _ in found]))
    return [value, *percentile_interval(np.mean([drawn for _, drawn in found], axis=0), value)]


def _nearest_ratio(part: Features, seed: int, n_resamples: int) -> tuple[float, np.ndarray]:
    index = part.training if part.mirrored is None else np.concatenate([part.training, part.mirrored])
    scale, smallest = 1 / np.sqrt(index.shape[1]), float(np.sqrt(RESOLUTION_L2))
    own, honest = (np.sqrt(nearest(index * scale, x * scale, 1)[0][:, 0]) for x in (part.samples, part.validation))
    rng = np.random.default_rng(seed)
    of_own = drawn_counts(len(own), n_resamples, rng)
    draws = zip(of_own, bootstrap_weights(part.validation_patients, n_resamples, rng), strict=True)

    def ratio(n_own: np.ndarray, n_honest: np.ndarray) -> float:
        return float(np.median(np.repeat(own, n_own)) / max(np.median(np.repeat(honest, n_honest)), smallest))

    value = ratio(np.ones(len(own), int), np.ones(len(honest), int))
    return value, np.array([ratio(*draw) for draw in draws])


def _dice(places: Mapping[Place, Features], results: pd.DataFrame | None) -> dict[str, Numbers | None]:
    """Of syn-real-X and real-X on X's test images, and their difference; None where a network was not trained."""
    found: dict[str, Numbers | None] = dict.fromkeys(("dice", "dice_real", "dice_gain"))
    if results is None:
        return found
    scores, sites = ScoreTable.of(results, "dice").scores, sorted({place.site for place in places})
    ours, local = ([scores.get((f"{family}-{site}", site)) for site in sites] for family in (OURS, LOCAL))
    gains = [a.minus(b) if a and b else None for a, b in zip(ours, local, strict=True)]
    for name, of_sites in zip(found, (ours, local, gains), strict=True):
        known = [one for one in of_sites if one is not None]
        if len(known) == len(sites):
            shown = interval(mean_of([estimate(one) for one in known]))
            found[name] = [shown.mean, shown.low, shown.high]
    return found
