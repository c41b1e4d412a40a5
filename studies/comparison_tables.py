"""Tables of studies in Markdown, and the comparison of generators: its table and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.markdown import markdown_table
from features.fidelity import Estimate

HEADER = (
    *("generator", "site", "training, min", "kimg", "Fréchet: samples", "training images", "multiple", "copies %"),
    *("nearest", "images/s", "Dice % syn-real", "real", "difference", "gates"),
)
FIGURES = {  # digits after the point, and factor
    **{"frechet": (0,), "frechet_real": (0,), "multiple": (2,), "copies": (1, 100), "nearest": (2,)},
    **{"images_per_s": (1,), "dice": (1, 100), "dice_real": (1, 100), "dice_gain": (1, 100)},
}
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
        length = (f"{row['minutes']:.1f}", f"{row['kimg']:.2g}")
        figures = (with_interval(row[name], *form) for name, form in FIGURES.items())
        cells.append([row["generator"], row["site"], *length, *figures, "; ".join(refused) or "none refused"])
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
