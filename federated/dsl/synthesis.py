"""Images from all sites' masks by the trained generator, and their Dist-FID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from common.checkpoints import load_tensors
from common.files import atomic_path, write_json
from common.image_set import ImageEntry, ImageSet, save_image_set
from common.progress import Progress, silent
from common.seeds import derive_seed
from common.settings import from_dict
from dataset.slices import restore_labels
from federated.dsl.begin import SiteFacts, load_facts
from federated.dsl.features import feature_statistics, frechet_distance, pool_statistics
from federated.dsl.hub import build_generator
from federated.dsl.model import MaskGenerator, one_hot
from federated.dsl.settings import DslSettings
from training.pictures import images_to_integers
from training.training_state import RESULT


def synthesise(
    trained: Path,
    out: Path,
    seed: int,
    images_per_mask: int = 1,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, ImageSet]:
    """An image set for every site's masks, under ``out/<site>``, in that site's integers and intensities.

    Beside ``images.npy`` and ``index.json`` stands ``labels.npy`` (n, height, width) uint8 at the size at which the
    images are shared, as the ``label`` stage writes it; ``out/dist_fid.json`` comes last. Dropout stays on (18.1); an
    image depends on (seed, site, mask, copy) alone.

    Raises:
        InputError: ``trained`` holds no finished training.
    """
    tensors, metadata = load_tensors(trained / RESULT)
    facts = load_facts(trained)
    network = build_generator(next(iter(facts.values())), from_dict(DslSettings, metadata["settings"]))
    network.load_state_dict(tensors)
    network.to(device).eval()
    total = images_per_mask * sum(site.n_images for site in facts.values())
    synthetic: dict[str, ImageSet] = {}
    done = 0
    for site, of_site in facts.items():
        seeds = [
            derive_seed(seed, site, mask, copy) for mask in range(of_site.n_images) for copy in range(images_per_mask)
        ]
        masks = np.repeat(of_site.masks, images_per_mask, axis=0)
        images = generate(network, masks, len(of_site.labels), seeds, np.dtype(of_site.dtype))
        synthetic[site] = _save(out / site, site, images, masks, seeds, of_site)
        done += len(seeds)
        progress(done, total, "images")
    write_json(out / "dist_fid.json", dist_fid(facts, synthetic, device))
    return synthetic


def generate(
    network: MaskGenerator, masks: np.ndarray, n_labels: int, seeds: Sequence[int], dtype: np.dtype
) -> np.ndarray:
    """One image a mask (n, height, width), as (n, channels, height, width) integers of ``dtype``.

    One at a time: at these widths a single image fills the device, and no bit depends on what else was in a batch.
    """
    device = next(network.parameters()).device
    images = []
    with torch.inference_mode():
        for mask, seed in zip(masks, seeds, strict=True):
            condition = one_hot(torch.from_numpy(mask)[None], n_labels).to(device)
            images.append(images_to_integers(network(condition, [seed]).cpu(), dtype))
    return np.concatenate(images)


def dist_fid(facts: Mapping[str, SiteFacts], synthetic: Mapping[str, ImageSet], device: str) -> dict[str, object]:
    """Dist-FID: each site's real images against all synthetic ones, weighted by the sites' sizes; lower is better."""
    of_sites = [feature_statistics(np.asarray(images.images), device) for images in synthetic.values()]
    pooled = pool_statistics(of_sites)
    distances = {site: frechet_distance(values.features, pooled) for site, values in facts.items()}
    total = sum(values.n_images for values in facts.values())
    mean = sum(values.n_images / total * distances[site] for site, values in facts.items())
    return {"dist_fid": mean, "sites": distances, "features": "efficientnet_lite0 on 64 random directions"}


def _save(
    folder: Path, site: str, images: np.ndarray, masks: np.ndarray, seeds: Sequence[int], facts: SiteFacts
) -> ImageSet:
    width = len(str(len(seeds) - 1))
    entries = tuple(ImageEntry(f"{site}_syn_{i:0{width}d}", seed=seed) for i, seed in enumerate(seeds))
    with atomic_path(folder / "labels.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, restore_labels(masks, facts.info.scale), allow_pickle=False)
    image_set = ImageSet(images, entries, facts.info)
    save_image_set(folder, image_set)
    return image_set
