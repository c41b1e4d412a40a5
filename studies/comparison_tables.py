"""Tables of studies in Markdown, and the comparison of generators: its table, its notes and its picture of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.drawing import drawing
from common.files import atomic_path
from common.markdown import markdown_table
from features.fidelity import Estimate
from memorization.pictures import DPI, STYLE, displayed

HEADER = (
    *("generator", "site", "training, min", "kimg", "Fréchet: samples", "training images", "multiple", "copies %"),
    *("nearest", "images/s", "Dice % syn-real", "real", "difference", "gates"),
)
N_SHOWN = 8
NOTES = """\
Numbers in brackets are 95 % intervals. Row `{all}` is all sites together; its minutes and kimg are the mean of a site.

- **Fréchet**: distance, in the features of the fidelity monitor, to the images of the outer fold's test patients: of
  the samples before the filter, and of the training images. Nobody trained on these patients or chose anything by them.
  The distance falls with the number of images, so both sets have as many as there are training images; for the samples
  it is the mean over disjoint parts of {n_samples} samples a site. Images and patients are resampled. {counts}.
- **multiple**: the first distance over the second, both against the same resampled patients. 1 means as close as real
  images of the same source; a generator that copies also gives 1.
- **copies %**: share of samples that the filter dropped (Clopper-Pearson).
- **nearest**: median distance of a sample to the nearest training image, over the same distance of real images that
  nobody trained on. Below 1 means that samples are nearer to the training images than other patients' images are.
- **images/s**: on one CPU thread with the generator's own sampler. In brackets: the slowest and the fastest of
  {n_rounds} rounds of {n_timed} images.
- **Dice** of the network fine-tuned at the site (syn-real) and of the network trained on the site's own images alone
  (real), on the site's own test cases, and the difference. Patients are resampled.
- **gates**: the gates that refused a site's package. Then only the packages of the other sites are pooled."""


def format_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The Markdown table of the comparison, a row a generator and site."""
    cells = []
    for row in rows:
        refused = (f"{site} refused: {', '.join(gates)}" for site, gates in sorted(row["failed_gates"].items()))
        cells.append(
            [
                row["generator"],
                row["site"],
                f"{row['minutes']:.1f}",
                f"{row['kimg']:.2g}",
                with_interval(row["frechet"], 0),
                with_interval(row["frechet_real"], 0),
                with_interval(row["multiple"], 2),
                with_interval(row["copies"], 1, 100),
                with_interval(row["nearest"], 2),
                with_interval(row["images_per_s"], 1),
                *(with_interval(row[name], 1, 100) for name in ("dice", "dice_real", "dice_gain")),
                "; ".join(refused) or "none refused",
            ]
        )
    return markdown_table(HEADER, cells)


def numbers_of(estimate: Estimate) -> list[float]:
    """A value and its interval, as JSON holds them."""
    return [estimate.value, estimate.low, estimate.high]


def with_interval(numbers: Sequence[float] | None, n_digits: int, factor: float = 1.0) -> str:
    """``value [low, high]``; ``-`` where there is none, the value alone where there is no interval."""
    if numbers is None:
        return "-"
    value, low, high = (f"{factor * number:.{n_digits}f}" for number in numbers)
    return value if np.isnan(numbers[1:]).any() else f"{value} [{low}, {high}]"


@drawing
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
