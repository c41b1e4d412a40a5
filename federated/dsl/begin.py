"""What the hub asks every site once, before a DSL training: facts, all training masks, feature statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoints import load_tensors, save_tensors
from common.errors import InputError
from common.files import read_json, write_json
from common.image_set import ImageSetInfo
from common.settings import from_dict
from engine.workers import Workers
from federated.dsl.features import N_FEATURES, FeatureStatistics
from federated.dsl.tensors import unpack
from federated.rounds import ask_to_begin

SITES = "sites.json"  # written last: where it is, the sites need not be asked again
MASKS, FEATURES = "masks_{site}.safetensors", "features_{site}.safetensors"


@dataclass(frozen=True)
class SiteFacts:
    """``masks``: (n_images, height, width) uint8 label ids; ``info`` maps stored integers to the site's intensities.

    ``n_empty`` more slices have no label and take no part.
    """

    n_images: int
    n_empty: int
    n_channels: int
    size_px: tuple[int, int]
    dtype: str
    labels: dict[str, int]
    info: ImageSetInfo
    masks: np.ndarray
    features: FeatureStatistics


def begin(workers: Workers, out: Path) -> dict[str, SiteFacts]:
    """Ask every site, once a training, and keep the answers in ``out``; facts by site, in the order of the names.

    Raises:
        RuntimeError: a site could not answer: without its masks there is no training on it.
        InputError: sites of other labels or channels than the others', or answers that are not what they should be.
    """
    if not (out / SITES).is_file():
        nothing: dict[str, dict[str, Any]] = {site: {} for site in workers.sites}
        methods = ("describe", "masks", "features")
        facts, masks, features = (ask_to_begin(workers, method, nothing) for method in methods)
        for site, values in sorted(facts.items()):
            shape = (values["n_images"], *values["size_px"])
            save_tensors(out / MASKS.format(site=site), unpack(masks[site], site, masks=shape), {})
            statistics = unpack(features[site], site, mean=(N_FEATURES,), covariance=(N_FEATURES, N_FEATURES))
            save_tensors(out / FEATURES.format(site=site), statistics, {})
        first, *others = sorted(facts)
        for site in others:
            for key in ("n_channels", "labels"):
                if facts[site][key] != facts[first][key]:
                    raise InputError(
                        f"{site} has {key} {facts[site][key]}, {first} has {facts[first][key]}",
                        where="DSL",
                        fix="let all sites use the same channels and labels",
                    )
        write_json(out / SITES, facts)
    return load_facts(out)


def load_facts(out: Path) -> dict[str, SiteFacts]:
    """What ``begin`` kept, in the order of the sites' names."""
    found = {}
    for site, values in sorted(read_json(out / SITES).items()):
        masks = load_tensors(out / MASKS.format(site=site))[0]["masks"].to(torch.uint8).numpy()
        features, _ = load_tensors(out / FEATURES.format(site=site))
        statistics = FeatureStatistics(features["mean"].numpy(), features["covariance"].numpy(), values["n_images"])
        height, width = values["size_px"]
        info = from_dict(ImageSetInfo, values["info"])
        found[site] = SiteFacts(
            **{**values, "size_px": (height, width), "info": info}, masks=masks, features=statistics
        )
    return found
