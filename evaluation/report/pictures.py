"""The report's pictures as PNG bytes: images with outlined labels, curves, scores with intervals, time per stage."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.drawing import drawing
from common.image_set import load_image_set
from evaluation.report.run import StageRecord, read_mapping, stage_rank
from training.monitor import (
    COPIED_TRAIN,
    DIVERSITY,
    FRECHET_HELDOUT,
    FRECHET_TRAIN,
    KERNEL_HELDOUT,
    KERNEL_TRAIN,
    NEAREST_TRAIN,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#444444")
OUTLINES = ("#FFD400", "#00E5FF", "#FF4FD8", "#7CFF4F", "#FF7A1A", "#9D8CFF", "#FFFFFF", "#FF3B3B")
N_SHOWN = 8
ERROR = "_error"  # with the key it is the standard error of: drawn as a band, no panel of its own
CURVE_TITLES = {
    KERNEL_HELDOUT: "kernel distance to held-out patients\n(band: one standard error)",
    FRECHET_HELDOUT: "Fréchet distance to held-out patients",
    KERNEL_TRAIN: "kernel distance to the training images",
    FRECHET_TRAIN: "Fréchet distance to the training images",
    COPIED_TRAIN: "share of copies, by features alone\n(0.05: as for images of unseen patients)",
    NEAREST_TRAIN: "distance to the nearest training image\n(1: as near as an unseen patient; below: copies)",
    DIVERSITY: "diversity of the samples\n(1: that of the real images)",
}
REFERENCE_VALUES = {KERNEL_HELDOUT: 0.0, NEAREST_TRAIN: 1.0, COPIED_TRAIN: 0.05, DIVERSITY: 1.0}


@dataclass(frozen=True)
class ShownCase:
    """One image to show: ``image`` (height, width) or (height, width, 3) in 0..1, ``label_map`` (height, width).

    ``aspect`` is the height of a pixel over its width; ``label_map`` is None where there is no label.
    """

    name: str
    image: np.ndarray
    label_map: np.ndarray | None
    aspect: float = 1.0


def load_shown_cases(dataset: Path, n_shown: int = N_SHOWN) -> list[ShownCase]:
    """Cases evenly spaced over the sorted names of an nnU-Net raw dataset; a volume is shown by its middle slice."""
    ending = str(read_mapping(dataset / "dataset.json").get("file_ending", ".png"))
    suffix = f"_0000{ending}"
    names = sorted(path.name.removesuffix(suffix) for path in dataset.glob(f"imagesTr/*{suffix}"))
    shown = []
    for name in _evenly(names, n_shown):
        pixels, aspect = _read_plane(dataset / "imagesTr" / f"{name}{suffix}")
        label = dataset / "labelsTr" / f"{name}{ending}"
        shown.append(ShownCase(name, _windowed(pixels), _read_plane(label)[0] if label.is_file() else None, aspect))
    return shown


def load_shown_slices(folder: Path, n_shown: int = N_SHOWN) -> list[ShownCase]:
    """Images of a stored image set, evenly spaced, without labels."""
    image_set = load_image_set(folder)
    return [
        ShownCase(image_set.entries[index].name, shown_pixels(np.asarray(image_set.images[index])), None)
        for index in _evenly(range(len(image_set)), n_shown)
    ]


def shown_pixels(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) as colours or, where there are not three channels, the first one; in 0..1."""
    return _windowed(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0])


def _evenly(items: Sequence[Any], n: int) -> list[Any]:
    indices = np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int))
    return [items[int(index)] for index in indices]


def _read_plane(path: Path) -> tuple[np.ndarray, float]:
    """A file's pixels as (height, width[, 3]) and the pixels' height over width."""
    if path.suffix.lower() in (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"):
        from skimage import io as image_io

        pixels = np.squeeze(np.asarray(image_io.imread(path)))
        is_colour = pixels.ndim == 3 and pixels.shape[-1] in (3, 4)
        return (pixels[..., :3], 1.0) if is_colour else (_middle(pixels, 0), 1.0)
    import SimpleITK

    volume = SimpleITK.ReadImage(str(path))
    pixels, spacing = SimpleITK.GetArrayFromImage(volume), volume.GetSpacing()[::-1]
    if pixels.ndim == 2:
        return pixels, spacing[0] / spacing[1]
    across = int(np.argmin(pixels.shape)) if 1 in pixels.shape else int(np.argmax(spacing))
    height_mm, width_mm = (step for axis, step in enumerate(spacing) if axis != across)
    return _middle(pixels, across), height_mm / width_mm


def _middle(pixels: np.ndarray, axis: int) -> np.ndarray:
    return pixels if pixels.ndim == 2 else np.take(pixels, pixels.shape[axis] // 2, axis=axis)


def _windowed(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3 and pixels.dtype == np.uint8:
        return pixels / 255.0
    low, high = np.percentile(pixels, [0.5, 99.5])
    return np.clip((pixels - low) / max(high - low, 1e-9), 0.0, 1.0)


@drawing
def real_beside_synthetic(rows: Mapping[str, Sequence[ShownCase]], labels: Mapping[str, Any]) -> bytes:
    """One row of images for each entry of ``rows`` (its key is the row's title), label outlines in colour."""
    n_columns = max(len(cases) for cases in rows.values())
    figure = new_figure(1.55 * n_columns, 1.85 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    shown_labels = {name: value for name, value in labels.items() if value != 0}
    for axes_row, (title, cases) in zip(grid, rows.items(), strict=True):
        for axes in axes_row:
            axes.set_axis_off()
        for axes, case in zip(axes_row, cases, strict=False):
            masks = [] if case.label_map is None else [np.isin(case.label_map, v) for v in shown_labels.values()]
            outlines = [(mask, outline_colour(index), "solid") for index, mask in enumerate(masks)]
            draw_outlined(axes, case.image, outlines, case.aspect)
        axes_row[0].set_title(title, fontsize=9, loc="left", fontweight="bold")
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=outline_colour(index), lw=2, label=name) for index, name in enumerate(shown_labels)]
    add_legend(figure, marks)
    return to_png(figure)


def add_legend(figure: Figure, marks: Sequence[Any]) -> None:
    """Below the pictures, on a grey that all outlines stand out from."""
    legend = figure.legend(handles=marks, loc="outside lower left", ncols=8, fontsize=8, facecolor="#666666")
    for text in legend.get_texts():
        text.set_color("white")


def outline_colour(index: int) -> str:
    """The colour of the outline at ``index``."""
    return OUTLINES[index % len(OUTLINES)]


def draw_outlined(
    axes: Any, image: np.ndarray, outlines: Sequence[tuple[np.ndarray, str, str]], aspect: float = 1.0
) -> None:
    """An image in 0..1 with the outlines of masks (height, width), each with its colour and line style."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    for mask, colour, style in outlines:
        if mask.any() and min(mask.shape) > 1:
            # a frame of background closes outlines that reach the image's edge
            rows, columns = (np.arange(-1, length + 1) for length in mask.shape)
            framed = np.pad(mask, 1).astype(float)
            axes.contour(columns, rows, framed, [0.5], colors=[colour], linewidths=1.1, linestyles=style)
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


@drawing
def curves_figure(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> bytes | None:
    """Small multiples, one for each number of the curves; ``curves``: site -> one list of points a fold.

    A site has one colour, a fold one line. None where there is nothing to draw.
    """
    points = [point for folds in curves.values() for fold in folds for point in fold]
    found = dict.fromkeys(key for point in points for key, value in point.items() if _is_number(value))
    keys = [key for key in found if key != "step" and key.removesuffix(ERROR) not in found.keys() - {key}]
    if not keys:
        return None
    figure, panels = new_panels(len(keys), (3.6, 2.5))
    for panel, key in zip(panels, keys, strict=True):
        for number, (site, folds) in enumerate(curves.items()):
            for index, fold in enumerate(folds):
                draw_curve(panel, fold, key, color=colour_of(number), lw=1.2, label=site if index == 0 else None)
                banded = [point for point in fold if _is_number(point.get(key + ERROR))]
                if banded:
                    at, middle, error = np.array([(p["step"], p[key], p[key + ERROR]) for p in banded]).T
                    panel.fill_between(at, middle - error, middle + error, color=colour_of(number), alpha=0.15, lw=0)
        if key in REFERENCE_VALUES:
            panel.axhline(REFERENCE_VALUES[key], color="#8a93a0", lw=0.8, ls="--")
        panel.set_title(CURVE_TITLES.get(key, key), fontsize=9)
        panel.set_xlabel(str(points[0].get("unit", "step")), fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=8, fontsize=8, frameon=False)
    return to_png(figure)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@drawing
def scores_figure(summary: pd.DataFrame, metric: str, title: str, scale: float) -> bytes:
    """Means and intervals, one panel a tested site, one line a model; ``summary``: rows of one label and metric."""
    chosen = summary[summary["metric"] == metric]
    sites, models = sorted(chosen["tested_on"].unique()), list(dict.fromkeys(chosen["model"]))
    size_inch = (2.5 + 1.2 / min(4, len(sites)), 0.7 + 0.28 * len(models))
    figure, panels = new_panels(len(sites), size_inch, margin_inch=0.0, n_columns=4, sharey=True, sharex=True)
    for panel, site in zip(panels, sites, strict=True):
        for row in chosen[chosen["tested_on"] == site].to_dict("records"):
            height = models.index(row["model"])
            colour = PALETTE[0] if row["model"].startswith("syn-real") else "#8a93a0"
            panel.plot([scale * row["low"], scale * row["high"]], [height, height], color=colour, lw=2)
            panel.plot(scale * row["mean"], height, "o", color=colour, ms=6)
        panel.set_title(f"tested on {site}", fontsize=9)
        panel.set_xlabel(title, fontsize=8)
        panel.grid(axis="x", color="#e6e9ee", lw=0.8)
        panel.set_yticks(range(len(models)), models, fontsize=8)
    panels[0].invert_yaxis()
    return to_png(figure)


@drawing
def stage_times_figure(records: Sequence[StageRecord]) -> bytes:
    """Minutes of each stage, all folds together, the sites' shares in their colours."""
    stages = sorted({record.stage for record in records}, key=lambda stage: (stage_rank(stage), stage))
    sites = sorted({record.site for record in records})
    figure = new_figure(9.0, 0.9 + 0.3 * len(stages))
    axes = figure.subplots()
    left = np.zeros(len(stages))
    for index, site in enumerate(sites):
        minutes = np.array([sum(r.seconds for r in records if (r.stage, r.site) == (s, site)) / 60 for s in stages])
        axes.barh(range(len(stages)), minutes, left=left, color=colour_of(index), label=site, height=0.7)
        left += minutes
    axes.set_yticks(range(len(stages)), stages, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("minutes, all sites and folds", fontsize=8)
    axes.legend(fontsize=8, frameon=False, ncols=min(8, len(sites)), loc="lower right")
    axes.grid(axis="x", color="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    return to_png(figure)


@drawing
def exposure_figure(n_nearest: Sequence[int]) -> bytes:
    """Bars of a site's patients, the most exposed first; the line shows the number if all were equally exposed."""
    figure = new_figure(9.0, 2.6)
    axes = figure.subplots()
    axes.bar(range(1, len(n_nearest) + 1), n_nearest, color=PALETTE[0], width=0.8)
    axes.axhline(float(np.mean(n_nearest)), color="#52606d", lw=1.2, ls="--", label="if all were equally exposed")
    axes.set_xlabel("patients that the generator was trained on, most exposed first", fontsize=8)
    axes.set_ylabel("synthetic images nearest to theirs", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(axis="y", color="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    return to_png(figure)


def colour_of(index: int) -> str:
    """The colour of the site at ``index``."""
    return PALETTE[index % len(PALETTE)]


def new_figure(width_inch: float, height_inch: float) -> Figure:
    """An empty figure that lays itself out."""
    from matplotlib.figure import Figure

    # no pyplot: it keeps figures alive and picks a backend for the whole process
    return Figure(figsize=(width_inch, height_inch), dpi=110, layout="constrained")


def new_panels(
    n_panels: int, size_inch: tuple[float, float], margin_inch: float = 0.3, *, n_columns: int = 3, **sharing: Any
) -> tuple[Figure, Sequence[Any]]:
    """A figure of ``n_panels`` axes of this size (width, height) in rows; what is left of the last row stays empty."""
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    figure = new_figure(size_inch[0] * n_columns, size_inch[1] * n_rows + margin_inch)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, **sharing).ravel()
    for panel in panels[n_panels:]:
        panel.set_axis_off()
    return figure, panels[:n_panels]


def draw_curve(panel: Any, points: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    """The numbers under ``key`` against ``step``; marked where they are too few to make a line."""
    drawn = [(point["step"], point[key]) for point in points if _is_number(point.get(key))]
    steps, values = zip(*drawn, strict=True) if drawn else ((), ())
    panel.plot(steps, values, **{"marker": "o" if len(drawn) < 3 else "", "ms": 3, **style})


def to_png(figure: Figure) -> bytes:
    """The figure's bytes, in the report's style."""
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
