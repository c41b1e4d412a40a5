"""The images whose generated and predicted labels agree least, with both outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.drawing import drawing
from evaluation.label_agreement import Pair
from evaluation.report.pictures import (
    add_legend,
    draw_outlined,
    new_panels,
    outline_colour,
    shown_pixels,
    to_png,
)

N_COLUMNS = 3
STYLES = {"generated": "solid", "predicted": "dashed"}


@drawing
def draw_least_alike(
    pairs: Sequence[Pair], images: np.ndarray, generated: np.ndarray, predicted: np.ndarray, labels: Mapping[str, int]
) -> bytes:
    """A PNG of ``images`` (n, channels, height, width), each with both its label maps (n, height, width)."""
    from matplotlib.lines import Line2D

    maps = {"generated": generated, "predicted": predicted}
    colours = {
        (name, source): outline_colour(len(STYLES) * index + second)
        for index, name in enumerate(labels)
        for second, source in enumerate(STYLES)
    }
    figure, panels = new_panels(max(len(pairs), N_COLUMNS), (3.0, 3.2), margin_inch=0.4, n_columns=N_COLUMNS)
    for panel in panels:
        panel.set_axis_off()
    for index, (panel, pair) in enumerate(zip(panels, pairs, strict=False)):
        outlines = [
            (maps[source][index] == labels[name], colour, STYLES[source]) for (name, source), colour in colours.items()
        ]
        draw_outlined(panel, shown_pixels(images[index]), outlines)
        panel.set_title(f"{pair.image}: Dice {pair.dice:.2f}", fontsize=9)
    marks = [
        Line2D([], [], color=colour, ls=STYLES[source], lw=2, label=f"{name}, {source}")
        for (name, source), colour in colours.items()
    ]
    add_legend(figure, marks)
    return to_png(figure)
