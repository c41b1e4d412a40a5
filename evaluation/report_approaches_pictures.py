"""Pictures of the comparison: the gain against contributing sites, and validation over federated rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.approaches import ScalingPoint
from evaluation.report_pictures import PALETTE, new_figure, to_png

SITE_KEY = "val_dice_"


def scaling_figure(points: Sequence[ScalingPoint]) -> bytes:
    """Gain in Dice points with 95 % intervals; named unions of one size stand beside each other."""
    figure = new_figure(6.2, 3.4)
    axes = figure.subplots()
    offset = 0.06
    for index, (title, name) in enumerate((("own test images", "own_test"), ("all test images", "all_tests"))):
        intervals = [getattr(point, name) for point in points]
        steps = [point.n_sites + offset * (2 * index - 1) for point in points]
        means = [100 * interval.mean for interval in intervals]
        below = [100 * max(0.0, interval.mean - interval.low) for interval in intervals]
        above = [100 * max(0.0, interval.high - interval.mean) for interval in intervals]
        marker = "os"[index]
        axes.errorbar(steps, means, yerr=[below, above], fmt=f"{marker}-", color=PALETTE[index], capsize=3, label=title)
    axes.axhline(0, color="#888888", lw=0.8)
    axes.set_xticks(sorted({point.n_sites for point in points}))
    axes.set_xlabel("contributing sites", fontsize=9)
    axes.set_ylabel("Dice gain over own images, points", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def rounds_figure(curve: Sequence[Mapping[str, Any]], best_round: int) -> bytes:
    """Validation Dice of the averaged model: at each site, and smoothed over the sites' mean."""
    figure = new_figure(6.2, 3.0)
    axes = figure.subplots()
    sites = sorted({key.removeprefix(SITE_KEY) for point in curve for key in point if _is_site(key)})
    for index, site in enumerate(sites):
        _draw(axes, curve, f"{SITE_KEY}{site}", color=PALETTE[index % len(PALETTE)], lw=1.0, label=f"at {site}")
    _draw(axes, curve, "val_dice_ema", color="black", lw=2.0, label="smoothed mean")
    axes.axvline(best_round, color="#888888", lw=1.0, ls="--")
    axes.set_xlabel("round", fontsize=9)
    axes.set_ylabel("pseudo-Dice", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=4)
    return to_png(figure)


def _draw(axes: Any, curve: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    drawn = [point for point in curve if key in point]
    axes.plot([point["step"] for point in drawn], [point[key] for point in drawn], **style)


def _is_site(key: str) -> bool:
    return key.startswith(SITE_KEY) and key != "val_dice_ema"
