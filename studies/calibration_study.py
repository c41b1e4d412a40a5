"""How many images that are no copies a filter drops, by the size of a site.

    python -m studies.calibration_study --site-images images --out draws.json

Of a folder's patients, as many as give ``n`` images are a site; the images of the others are *honest*: real, no copies,
and never seen by the site. Sites are drawn again and again, so that the figure does not depend on one draw.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.command import command
from common.errors import InputError
from common.files import write_json
from common.markdown import markdown_table
from common.progress import shown_progress
from common.seeds import derive_seed
from common.settings import to_dict
from features.embedders import build_embedder
from memorization.audit import EMBEDDER_BATCH, add_image_arguments, read_site_images
from memorization.calibration import MemorizationConfig, calibrate, real_to_real
from memorization.copy_score import EmbeddedFeatures, FusedIndex
from memorization.filter import attainable_level, p_values
from memorization.planted.planted_audit import recall_of

log = logging.getLogger(__name__)

FUSED, PAPER = "fused", "paper's rule"
COLUMNS = ("rule", "images of a site", "sites drawn", "level", "honest images dropped", "share", "sites with it inside")
MAX_HONEST = 100  # a draw's honest images


@dataclass(frozen=True)
class Draw:
    """What one site dropped of the honest images, and the level that it promised."""

    rule: str
    n_images: int  # asked for; the last patient drawn may bring more
    level: float
    n_honest: int
    n_dropped: int
    is_inside: bool  # the level is in the 95 % Clopper-Pearson interval of the share dropped


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_arguments(parser, size_px=64)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of every draw")
    parser.add_argument("--n-images", type=int, nargs="+", default=[30, 100, 300], help="sizes of the sites drawn")
    parser.add_argument("--n-draws", type=int, default=5, help="sites of each size")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Draw, judge, print."""
    images, patients = read_site_images(chosen.site_images, chosen.patient, chosen.size_px, chosen.patients)
    embedder = build_embedder(chosen.embedder, batch_size=EMBEDDER_BATCH, device="cpu", weights=chosen.weights)
    features = [embedder.embed(view) for view in (images, images[..., ::-1])]
    draws = []
    with shown_progress() as progress:
        pairs = [(n, number) for n in chosen.n_images for number in range(chosen.n_draws)]
        for done, (n_images, number) in enumerate(pairs, start=1):
            draws += draw(images, features, patients, n_images, derive_seed(chosen.seed, n_images, number))
            progress(done, len(pairs), "sites")
    write_json(chosen.out, {"draws": [to_dict(one) for one in draws]})
    sys.stdout.write("\n".join(format_rows(draws)) + "\n")


def draw(
    images: np.ndarray, features: Sequence[np.ndarray], patients: Sequence[str], n_images: int, seed: int
) -> list[Draw]:
    """One site of ``n_images``, judged by either rule.

    Args:
        images: (n, channels, height, width); features: theirs (n, d) and those of their mirror images.

    Raises:
        InputError: fewer than 10 images are left as honest ones.
    """
    owners = np.asarray(patients)
    site = _site(owners, n_images, seed)
    honest = np.random.default_rng(derive_seed(seed, "honest")).permutation(np.flatnonzero(~site))[:MAX_HONEST]
    if len(honest) < 10:
        raise InputError(
            f"{len(owners)} images leave {len(honest)} honest ones beside a site of {n_images}",
            where="--n-images",
            fix="ask for smaller sites, or give more images",
        )
    plain, mirrored = features
    calibration = real_to_real(images[site], plain[site], mirrored[site], owners[site], np.ones(site.sum(), bool))
    index = FusedIndex(images[site], plain[site], mirrored[site])
    level = attainable_level(0.05, len(calibration.values))
    dropped = p_values(calibration.values, index.compare(images[honest], plain[honest]).values) <= level
    paper = MemorizationConfig(rule="percentile", calibration="paper_half", drop_ties=False, mirror="never")
    threshold = calibrate(plain[site], [str(name) for name in owners[site]], n_images, paper, seed).threshold_l2
    distances = np.exp(-EmbeddedFeatures(plain[site][None]).compare(plain[honest]).values[:, 0])
    return [
        _counted(FUSED, n_images, level, dropped),
        _counted(PAPER, n_images, paper.percentile / 100, distances < threshold),
    ]


def format_rows(draws: Sequence[Draw]) -> list[str]:
    """A markdown table, a row for each rule and size."""
    lines = []
    for rule, asked in sorted({(one.rule, one.n_images) for one in draws}):
        rows = [one for one in draws if (one.rule, one.n_images) == (rule, asked)]
        dropped, honest = sum(one.n_dropped for one in rows), sum(one.n_honest for one in rows)
        inside, level = sum(one.is_inside for one in rows), np.mean([one.level for one in rows])
        counts = [f"{dropped} of {honest}", f"{dropped / honest:.3f}", f"{inside} of {len(rows)}"]
        lines.append([rule, str(asked), str(len(rows)), f"{level:.3f}", *counts])
    return markdown_table(COLUMNS, lines)


def _site(owners: np.ndarray, n_images: int, seed: int) -> np.ndarray:
    """(n,) True for the images of patients drawn until there are ``n_images``."""
    names = np.unique(owners)
    np.random.default_rng(seed).shuffle(names)
    counts = np.cumsum([np.sum(owners == name) for name in names])
    return np.isin(owners, names[: int(np.searchsorted(counts, n_images)) + 1])


def _counted(rule: str, n_images: int, level: float, dropped: np.ndarray) -> Draw:
    counted = recall_of(dropped)
    low, high = counted.interval
    return Draw(rule, n_images, level, counted.n, counted.found, low <= level <= high)


if __name__ == "__main__":
    sys.exit(main())
