"""The check across sites: another site's package against this site's patients; the answer is a list of names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from common.image_set import ImageSetInfo
from common.plan import load_plan
from dataset.slices import crop_to_nonzero, encode, fit_to_patch
from engine.run_stage import StageContext
from memorization.filter import SiteFilter, load_site_filter
from pipeline.synthetic_cases import Normalisation, ct_normalisation
from sharing import Package, read_case, read_refusal, verify_package, write_drop_list

log = logging.getLogger(__name__)

OWN_PATIENTS = ("train", "val")  # a patient may be at two sites, so all of this one's count, not only trained ones
IMAGES_AT_ONCE = 256


def check_package(context: StageContext) -> None:
    """Name the cases of another site's package that hold an image too close to one of this site's."""
    folder = context.inputs["package"]
    refusal = read_refusal(folder)
    if refusal is not None:
        log.info("nothing to check: %s", refusal)
        return
    package = verify_package(folder)
    places = context.inputs["calibrate"], context.inputs["slices"]
    own = load_site_filter(*places, context.stage.settings, OWN_PATIENTS, context.device, context.embeddings)
    hounsfield = ct_normalisation(load_plan(context.inputs["plan"] / "plans.json"))
    named: set[str] = set()
    n_done = 0
    for cases, images in _blocks(package, own, hounsfield):
        kept = own.judge(images).kept
        named |= {case for case, is_kept in zip(cases, kept, strict=True) if not is_kept}
        n_done += len(cases)
        context.progress(n_done, package.manifest.n_images, "images")
    log.info("%d of the %d cases of %s are named", len(named), package.manifest.n_cases, package.manifest.site)
    write_drop_list(context.out, context.stage.site, package, named)


def _blocks(package: Package, own: SiteFilter, hounsfield: Normalisation) -> Iterator[tuple[list[str], np.ndarray]]:
    """The package's images as this site's slices are stored, with the case of each."""
    cases: list[str] = []
    blocks: list[np.ndarray] = []
    for case in package.manifest.cases:
        blocks.append(_as_own_slices(read_case(package, case), own, hounsfield))
        cases += [case] * len(blocks[-1])
        if len(cases) >= IMAGES_AT_ONCE:
            yield cases, np.concatenate(blocks)
            cases, blocks = [], []
    if cases:
        yield cases, np.concatenate(blocks)


def _as_own_slices(image: np.ndarray, own: SiteFilter, hounsfield: Normalisation) -> np.ndarray:
    """A case (C, Z, H, W) as its slices would be stored if it were this site's: (Z, C, height, width)."""
    info: ImageSetInfo = own.references.info
    slices = np.moveaxis(image, 1, 0)
    if not info.volumetric:
        slices = np.stack([crop_to_nonzero(pixels) for pixels in slices])
    elif hounsfield:
        mean, std = np.array(hounsfield).T[:, :, None, None]
        slices = (slices - mean) / std
    size_px = own.references.images.shape[-2], own.references.images.shape[-1]
    fitted = np.stack([fit_to_patch(pixels, size_px, info.scale) for pixels in slices])
    return encode(fitted, info.intensity, own.references.images.dtype)
