"""Generators beside each other: a Markdown table with what its columns mean, and rows of samples as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.files import atomic_path
from features.fidelity import Estimate
from memorization.pictures import DPI, STYLE, displayed

HEADER = (
    *("generator", "site", "training, min", "kimg", "Fréchet: samples", "training images", "multiple", "copies %"),
    *("nearest", "images/s", "Dice % syn-real", "real", "difference", "gates"),
)
N_SHOWN = 8
NOTES = """\
Numbers in brackets are 95 % intervals; row `{all}` is all sites together, its minutes and kimg those of a site.

- **Fréchet**: distance, in the gauge's features, to the images of the outer fold's test patients, whom nobody trained
  on or chose by: of the samples before the filter, and of the training images. Both in equal numbers, as many as there
  are training images, since the distance falls with their number: the mean over disjoint parts of {n_samples} samples a
  site. Images and patients are resampled. {counts}.
- **multiple**: the first over the second, both against the same resampled patients. 1 means as close as real data;
  copying also gives 1.
- **copies %**: share of samples that the filter dropped (Clopper-Pearson).
- **nearest**: median distance of a sample to the nearest training image over that of real images not trained on;
  below 1 samples are nearer than strangers are.
- **images/s**: on one CPU thread with the generator's own sampler; in brackets the slowest and the fastest of
  {n_rounds} rounds of {n_timed} images.
- **Dice** of the network fine-tuned at the site (syn-real) and of its own images alone (real) on its own test cases,
  and the difference; patients are resampled.
- **gates**: which of them refused a site's package; the other sites' packages alone are then pooled."""


def format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "| " + " | ".join(["---"] * len(HEADER)) + " |"]
    return [*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    fractions = (with_interval(row[name], 1, 100) for name in ("dice", "dice_real", "dice_gain"))
    return [
        *(row["generator"], row["site"], f"{row['minutes']:.1f}", f"{row['kimg']:.2g}"),
        *(with_interval(row[name], digits) for name, digits in (("frechet", 0), ("frechet_real", 0), ("multiple", 2))),
        *(with_interval(row["copies"], 1, 100), with_interval(row["nearest"], 2)),
        *(with_interval(row["images_per_s"], 1), *fractions, _gates(row["failed_gates"])),
    ]


def _gates(failed: Mapping[str, Sequence[str]]) -> str:
    refused = (f"{site} refused: {', '.join(gates)}" for site, gates in sorted(failed.items()))
    return "; ".join(refused) or "passed"


def numbers_of(estimate: Estimate) -> list[float]:
    """A value and its interval, as JSON holds them."""
    return [estimate.value, estimate.low, estimate.high]


def with_interval(numbers: Sequence[float] | None, n_digits: int, factor: float = 1.0) -> str:
    """``value [low, high]``; ``-`` where there is none, the value alone where there is no interval."""
    if numbers is None:
        return "-"
    value, low, high = (f"{factor * number:.{n_digits}f}" for number in numbers)
    return value if np.isnan(numbers[1:]).any() else f"{value} [{low}, {high}]"


@STYLE
def draw_samples(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """One row of up to eight images (n, channels, height, width) for each name, the name beside it."""
    figure = Figure(figsize=(1.2 * N_SHOWN + 1.5, 1.25 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), N_SHOWN, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
        line[0].text(-0.1, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})
