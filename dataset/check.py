"""Finds everything that is wrong with a source before any training, and draws a sheet of its images and masks.

    python -m dataset.check root=/data/cxr image_column=file patient_column=patient_id site_column=projection \\
        mask_dir=lung_masks out=sheet.png

Lists are written ``a,b``, maps ``lungs:1,heart:2``, the phantom's keys ``phantom.size_px=128``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from common.command import command
from common.errors import InputError, raise_all
from common.files import sha256_of_file
from dataset.convert import channel_names, read_pair
from dataset.enough_patients import gate_lines
from dataset.folds import too_few_patients
from dataset.images import write_array
from dataset.key_values import add_settings, option, read_settings
from dataset.source import Case, SourceConfig, check_labels, load_report

_TILE_PX = 192
_OUTLINES = ((255, 64, 64), (64, 200, 255), (255, 220, 0), (120, 255, 120), (255, 120, 255), (255, 160, 60))


@dataclass(frozen=True)
class CheckOptions:
    """Options of the command beside the source's keys."""

    out: str = option("contact_sheet.png", "file to write")
    data_dir: str = option(".", "what root is relative to")


@dataclass(frozen=True)
class SiteCount:
    """Size of one site."""

    n_patients: int
    n_images: int


@dataclass(frozen=True)
class CheckReport:
    """What a source holds, as it will be used (after ``max_size_px``)."""

    sites: dict[str, SiteCount]
    shapes_px: dict[tuple[int, ...], int]  # image size (without channels) -> number of images
    dtype: str
    channels: tuple[str, ...]
    label_fractions: dict[str, float]  # share of all pixels
    warnings: tuple[str, ...] = field(default=())

    def text(self) -> str:
        """The report as lines for a reader."""
        lines = [f"site {site}: {c.n_patients} patients, {c.n_images} images" for site, c in self.sites.items()]
        shapes = sorted(self.shapes_px.items(), key=lambda item: (-item[1], item[0]))
        more = f" and {len(shapes) - 3} other sizes" if len(shapes) > 3 else ""
        sizes = ", ".join(f"{' x '.join(map(str, shape))} ({n_images})" for shape, n_images in shapes[:3])
        lines.append(f"pixels: {self.dtype}, channels {', '.join(self.channels)}, size {sizes}{more}")
        lines += gate_lines({site: count.n_patients for site, count in self.sites.items()})
        lines += [f"label {name}: {fraction:.2%} of all pixels" for name, fraction in self.label_fractions.items()]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)]) + "\n"


def check_cases(cases: Sequence[Case], config: SourceConfig) -> CheckReport:
    """Decode every image and mask and count what is there.

    Raises:
        InputError: unreadable, constant or NaN images, sizes that differ, labels outside the map, mixed kinds of images
            or too few patients at a site: the first problem, and a list of the others.
    """
    check_labels(config)
    kind_of: dict[str, str] = {}  # of the cases that can be read: volume or not, channels, dtype
    n_pixels: dict[str, np.ndarray] = {}  # of each label by id, background first
    shapes_px: Counter[tuple[int, ...]] = Counter()
    problems: list[InputError] = []
    for case in cases:
        try:
            image, mask = read_pair(case, config)
        except InputError as error:
            problems.append(error)
        else:
            n_channels, dtype = len(image.array), str(image.array.dtype)
            kind_of[case.case_id] = f"{'a volume' if image.is_volume else '2D'} of {n_channels} channels, {dtype}"
            n_pixels[case.case_id] = np.bincount(mask.ravel(), minlength=len(config.labels) + 1)
            shapes_px[image.shape_px] += 1

    # every site has a patient for each fold
    patients: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        patients[case.site].add(case.patient)
    n_images = Counter(case.site for case in cases)
    sites = {site: SiteCount(len(patients[site]), n_images[site]) for site in patients}
    problems += [p for site, count in sites.items() if (p := too_few_patients(site, count.n_patients))]

    # all images are of the kind that most of them are
    kinds = Counter(kind_of.values())
    usual = min(kinds, key=lambda kind: (-kinds[kind], kind), default="")
    problems += [
        InputError(
            f"it is {kind_of[case.case_id]}, but {kinds[usual]} other images are {usual}",
            where=case.image,
            fix="convert all images of a source to one number of channels and one bit depth",
        )
        for case in cases
        if kind_of.get(case.case_id, usual) != usual
    ]
    raise_all(problems)

    # byte-identical images under two patients would leak between folds
    copies: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        copies[sha256_of_file(case.image)].append(case)
    empty = sorted(case_id for case_id, of_label in n_pixels.items() if not of_label[1:].any())
    warnings = [f"{len(empty)} masks are empty, for example {', '.join(empty[:5])}"] if empty else []
    warnings += [
        f"the same image is stored as {', '.join(case.case_id for case in same)} of different patients: keep one"
        for same in copies.values()
        if len({case.patient for case in same}) > 1
    ]
    n_total = np.sum(list(n_pixels.values()), axis=0)
    return CheckReport(
        sites=sites,
        shapes_px=dict(shapes_px),
        dtype=dtype,
        channels=channel_names(config, n_channels),
        label_fractions={name: float(n_total[label] / n_total.sum()) for name, label in config.labels.items()},
        warnings=tuple(warnings),
    )


def write_contact_sheet(path: Path, cases: Sequence[Case], config: SourceConfig, n_per_site: int = 8) -> None:
    """Write a PNG: a row or more a site, ``n_per_site`` images spread over its cases, their masks outlined.

    Of a volume the slice with most foreground is shown.
    """
    rows = []
    for site in dict.fromkeys(case.site for case in cases):
        of_site = [case for case in cases if case.site == site]
        chosen = np.unique(np.linspace(0, len(of_site) - 1, min(n_per_site, len(of_site))).round().astype(int))
        tiles = [_tile(of_site[index], config) for index in chosen]
        rows.append(np.hstack(tiles + [np.zeros_like(tiles[0])] * (n_per_site - len(tiles))))
    write_array(path, np.vstack(rows))


@command(partial(add_settings, options=CheckOptions, source=SourceConfig))
def main(chosen: argparse.Namespace) -> None:
    """Check a source and draw its contact sheet."""
    options, config = read_settings(chosen.settings, CheckOptions, SourceConfig)
    loaded = load_report(config, Path(options.data_dir))
    report = check_cases(loaded.cases, config)
    write_contact_sheet(Path(options.out), loaded.cases, config)
    sys.stdout.write("".join(f"warning: {warning}\n" for warning in loaded.warnings))
    sys.stdout.write(f"{report.text()}contact sheet: {options.out}\n")


def _tile(case: Case, config: SourceConfig) -> np.ndarray:
    """(_TILE_PX, _TILE_PX, 3) uint8: the image stretched to its 1st..99th percentile, outlines, the case id."""
    import PIL.Image
    import PIL.ImageDraw
    from scipy.ndimage import binary_erosion

    image, mask = read_pair(case, config)
    pixels = image.array
    if image.is_volume:
        index = int(np.argmax((mask > 0).sum(axis=(1, 2))))
        pixels, mask = pixels[:, index], mask[index]
    factor = _TILE_PX / max(mask.shape)
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    shown = (pixels if len(pixels) == 3 else pixels[:1]).astype(np.float64)  # the first channel unless there are three
    low, high = np.percentile(shown, (1, 99))
    grey = np.clip((shown - low) / max(high - low, 1e-9), 0.0, 1.0) * 255
    colours = np.ascontiguousarray(np.broadcast_to(np.moveaxis(grey, 0, -1), (*mask.shape, 3)).astype(np.uint8))
    picture = np.array(PIL.Image.fromarray(colours).resize(size, PIL.Image.Resampling.BILINEAR))
    enlarged = np.array(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))
    for label in range(1, len(config.labels) + 1):
        region = enlarged == label
        picture[region & ~binary_erosion(region)] = _OUTLINES[(label - 1) % len(_OUTLINES)]
    tile = PIL.Image.new("RGB", (_TILE_PX, _TILE_PX))
    tile.paste(PIL.Image.fromarray(picture))
    text = f"{case.site}  {case.case_id}"[:30]
    PIL.ImageDraw.Draw(tile).text((3, 2), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(tile)


if __name__ == "__main__":
    sys.exit(main())
