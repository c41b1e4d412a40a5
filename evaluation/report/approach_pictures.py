"""Pictures of the comparison: the gain against contributing sites, and validation over federated rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.drawing import drawing
from evaluation.approaches import ScalingPoint, is_named
from evaluation.report.pictures import PALETTE, colour_of, draw_curve, new_figure, new_panels, to_png
from evaluation.statistics import Interval

SITE_KEY, MEAN_KEYS = "val_dice_", ("val_dice_ema",)
OFFSET = 0.05  # in sites, between marks at one number of sites


@drawing
def scaling_figure(points: Sequence[ScalingPoint]) -> bytes:
    """Gain in Dice points with 95 % intervals; a line through the first n sites, named unions as marks of their own."""
    figure = new_figure(6.6, 3.6)
    axes = figure.subplots()
    for index, (title, name) in enumerate((("own test images", "own_test"), ("all test images", "all_tests"))):
        series = [(point, getattr(point, name)) for point in points if not is_named(point.union)]
        style = {"color": PALETTE[index], "marker": "os"[index], "capsize": 3}
        _draw_gains(axes, series, OFFSET * (2 * index - 1), ls="-", label=title, **style)
        named = [(point, getattr(point, name)) for point in points if is_named(point.union)]
        _draw_gains(axes, named, OFFSET * (2 * index + 2), ls="", mfc="white", **style)
    for point in filter(lambda point: is_named(point.union), points):
        shown = axes.annotate(point.union, (point.n_sites + 6 * OFFSET, 100 * point.own_test.mean), fontsize=7)
        shown.set(color="#444444", verticalalignment="center")
    axes.axhline(0, color="#888888", lw=0.8)
    axes.set_xticks(sorted({point.n_sites for point in points}))
    axes.set_xlabel("contributing sites", fontsize=9)
    axes.set_ylabel("Dice gain over own images, points", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def _draw_gains(axes: Any, gains: Sequence[tuple[ScalingPoint, Interval]], offset: float, **style: Any) -> None:
    if not gains:
        return
    means = [100 * interval.mean for _, interval in gains]
    # one fold without cases to draw from has no interval: a mark alone
    bounds = [(interval.mean - interval.low, interval.high - interval.mean) for _, interval in gains]
    reach = [[100 * max(0.0, pair[side]) if pair[side] == pair[side] else 0.0 for pair in bounds] for side in (0, 1)]
    axes.errorbar([point.n_sites + offset for point, _ in gains], means, yerr=reach, **style)


@drawing
def rounds_figure(curves: Mapping[int, Sequence[Mapping[str, Any]]], best_rounds: Mapping[int, float]) -> bytes:
    """Validation Dice of the averaged model, one panel a fold: at each site, and their smoothed mean, which chooses.

    Args:
        curves: fold -> points with ``step``, ``val_dice``, ``val_dice_ema`` and ``val_dice_<site>``.
        best_rounds: fold -> the chosen round; NaN where none is known.
    """
    figure, panels = new_panels(len(curves), (max(3.6, 5.4 / len(curves)), 2.5), margin_inch=0.4, sharey=True)
    keys = sorted({key for curve in curves.values() for point in curve for key in point if key.startswith(SITE_KEY)})
    for panel, (fold, curve) in zip(panels, curves.items(), strict=True):
        for index, key in enumerate(key for key in keys if key not in MEAN_KEYS):
            style = {"color": colour_of(index), "ls": "-" if index < len(PALETTE) else ":", "lw": 0.9}
            draw_curve(panel, curve, key, label=key.removeprefix(SITE_KEY), **style)
        draw_curve(panel, curve, "val_dice_ema", color="black", lw=1.8, label="mean of the sites, smoothed")
        best = best_rounds.get(fold, math.nan)
        if not math.isnan(best):
            panel.axvline(best, color="#666666", lw=1.0, ls="--")
        panel.set_title(f"fold {fold}" + ("" if math.isnan(best) else f", best round {best:.0f}"), fontsize=9)
        panel.set_xlabel(str(curve[0].get("unit", "round")), fontsize=8)
    panels[0].set_ylabel("validation Dice", fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=9, fontsize=8, frameon=False)
    return to_png(figure)
