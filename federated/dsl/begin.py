"""What a site lets the hub know before a DSL training: facts, all training masks, feature statistics; asked once."""

from __future__ import annotations

from collections.abc import Mapping
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
from engine.workers import Failure, Workers
from federated.dsl.features import N_FEATURES, FeatureStatistics
from federated.dsl.tensors import unpack

SITES = "sites.json"  # written last: where it is, the sites need not be asked again


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
        facts = _answers(workers, "describe")
        masks, features = _answers(workers, "masks"), _answers(workers, "features")
        for site, values in facts.items():
            shape = (values["n_images"], *values["size_px"])
            save_tensors(_masks_file(out, site), unpack(masks[site], site, masks=shape), {})
            statistics = unpack(features[site], site, mean=(N_FEATURES,), covariance=(N_FEATURES, N_FEATURES))
            save_tensors(_features_file(out, site), statistics, {})
        _check_alike(facts)
        write_json(out / SITES, facts)
    return load_facts(out)


def load_facts(out: Path) -> dict[str, SiteFacts]:
    """What ``begin`` kept, in the order of the sites' names."""
    return {site: _load_site(out, site, values) for site, values in sorted(read_json(out / SITES).items())}


def _answers(workers: Workers, method: str) -> dict[str, Any]:
    answers = workers.ask(method, {site: {} for site in workers.sites})
    failed = {site: answer.problem for site, answer in answers.items() if isinstance(answer, Failure)}
    if failed:
        reasons = "; ".join(f"{site}: {problem}" for site, problem in sorted(failed.items()))
        raise RuntimeError(f"sites could not begin: {reasons}")
    return dict(sorted(answers.items()))


def _check_alike(facts: Mapping[str, Mapping[str, Any]]) -> None:
    first, *others = facts
    for site in others:
        for key in ("n_channels", "labels"):
            if facts[site][key] != facts[first][key]:
                raise InputError(
                    f"{site} has {key} {facts[site][key]}, {first} has {facts[first][key]}",
                    where="DSL",
                    fix="let all sites use the same channels and labels",
                )


def _load_site(out: Path, site: str, values: Mapping[str, Any]) -> SiteFacts:
    features, _ = load_tensors(_features_file(out, site))
    return SiteFacts(
        n_images=values["n_images"],
        n_empty=values["n_empty"],
        n_channels=values["n_channels"],
        size_px=(values["size_px"][0], values["size_px"][1]),
        dtype=values["dtype"],
        labels=dict(values["labels"]),
        info=from_dict(ImageSetInfo, values["info"]),
        masks=load_tensors(_masks_file(out, site))[0]["masks"].to(torch.uint8).numpy(),
        features=FeatureStatistics(features["mean"].numpy(), features["covariance"].numpy(), values["n_images"]),
    )


def _masks_file(out: Path, site: str) -> Path:
    return out / f"masks_{site}.safetensors"


def _features_file(out: Path, site: str) -> Path:
    return out / f"features_{site}.safetensors"
