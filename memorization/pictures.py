"""The filter in pictures. The sheet of nearest pairs shows real patients: it stays at the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from common.drawing import drawing
from common.files import atomic_path
from common.image_set import ImageSet
from memorization.calibration import Calibration
from memorization.filter import FilterResult

N_BINS = 30
DPI = 120
# nnU-Net restyles matplotlib for its whole process; a picture must not depend on what ran before it
STYLE = style.context(["default", {"font.size": 9}], after_reset=True)


@drawing
@STYLE
def draw_histogram(path: Path, calibration: Calibration, sample_distances: np.ndarray) -> None:
    """Nearest distances, real to real of other patients and synthetic to real, with the threshold.

    The axis is logarithmic with a linear piece at 0, so that an exact copy has a place on it (D24).
    """

    real = np.asarray(calibration.distances)
    positive = np.concatenate([real, sample_distances, [calibration.threshold_l2]])
    positive = positive[positive > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1e-3, 1.0)
    edges = np.concatenate([[0.0], np.geomspace(low * 0.9, high * 1.1, N_BINS)])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for values, name in ((real, "real to real, other patients"), (sample_distances, "synthetic to real")):
        share = np.full(len(values), 100 / max(1, len(values)))
        axes.hist(values, bins=edges.tolist(), weights=share.tolist(), alpha=0.6, label=name)
    label = f"threshold {calibration.threshold_l2:.3g} (drops {calibration.expected_drop:.1%} of real images)"
    axes.axvline(calibration.threshold_l2, color="C3", label=label)
    axes.axvspan(*calibration.interval_l2, color="C3", alpha=0.12, label="its 95 % interval")
    axes.set_xscale("symlog", linthresh=low)
    axes.set_xlim(0, high * 1.2)
    axes.set_xlabel(f"squared distance to the nearest image ({calibration.embedder} features)")
    axes.set_ylabel("images (%)")
    axes.legend()
    _save(figure, path)


@drawing
@STYLE
def draw_p_values(path: Path, result: FilterResult, level: float) -> None:
    """The samples' p-values; those of images that are no copies are spread evenly, copies pile up at the left."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    n_samples = len(result.p_values)
    axes.hist(result.p_values, bins=20, range=(0, 1), weights=np.full(n_samples, 100 / max(1, n_samples)).tolist())
    axes.axhline(5, color="0.4", linestyle=":", label="expected where nothing is copied")
    axes.axvline(level, color="C3", label=f"level {level:.3g}: {np.mean(~result.kept):.1%} dropped")
    axes.set_xlim(0, 1)
    axes.set_xlabel("p: share of real images that are at least as similar to one of another patient")
    axes.set_ylabel("synthetic images (%)")
    axes.legend()
    _save(figure, path)


@drawing
@STYLE
def draw_nearest_pairs(
    path: Path, samples: ImageSet, references: ImageSet, result: FilterResult, n_pairs: int = 8
) -> None:
    """The samples most similar to a training image, each above that image, with p-value, verdict and statistic.

    The sheet shows real patients' images: it stays at the site. Images of other than 1 or 3 channels: the first.
    """
    closest = np.lexsort((result.distances[:, 0], result.p_values))[:n_pairs]
    figure = Figure(figsize=(1.5 * max(2, len(closest)), 3.6), layout="constrained")
    axes = figure.subplots(2, len(closest), squeeze=False)
    for column, row in enumerate(closest):
        real = references.images[result.originals[row]]
        for axis, image in zip(axes[:, column], (samples.images[row], real), strict=True):
            axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        verdict = "kept" if result.kept[row] else "dropped"
        axes[0, column].set_title(f"p {result.p_values[row]:.3g}\n{verdict}", fontsize=8)
        axes[1, column].set_xlabel(str(result.seen_by[row]).replace(", ", "\n"), fontsize=7)
    axes[0, 0].set_ylabel("synthetic")
    axes[1, 0].set_ylabel("most similar, real")
    _save(figure, path)


@drawing
@STYLE
def draw_shares(
    path: Path, rows: Mapping[str, Sequence[tuple[float, str]]], label: str, columns: Sequence[str] = ()
) -> None:
    """Row names down, and beside each its cells: a share from 0 to 1 as the colour, and the text on it."""
    n_columns = max(len(cells) for cells in rows.values())
    values = np.full((len(rows), n_columns), np.nan)
    figure = Figure(figsize=(2.5 + 1.3 * n_columns, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, cells in enumerate(rows.values()):
        for column, (value, text) in enumerate(cells):
            values[row, column] = value
            axes.text(column, row, text, ha="center", va="center", fontsize=7)
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.7)  # pale, so that the text is legible
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=8)
    axes.xaxis.tick_top()
    axes.set_xlabel(label)
    _save(figure, path)


@drawing
@STYLE
def draw_rows(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """One row of images (n, channels, height, width) for each name, which stands beside it."""
    widest = max(len(images) for images in rows.values())
    figure = Figure(figsize=(2.0 + widest, 1.05 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), widest, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
        line[0].text(-0.1, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def displayed(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) integers to (height, width) or RGB in [0, 1]; of other channel counts the first."""
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    return np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]
