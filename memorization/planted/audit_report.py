"""The planted-copy audit as a table and as pictures. The sheet of copies shows patients: it stays at the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import atomic_path
from memorization.pictures import DPI, STYLE, displayed
from memorization.planted.planted_audit import RATES, FilterAudit, Recall
from memorization.planted.site_planted import PlantedAudit


def as_markdown(audits: Sequence[FilterAudit], n_images: int, n_patients: int) -> str:
    """Recall by kind for every filter at a measured false-drop rate of 5 %, and of the last filter all strengths."""
    names = [audit.name for audit in audits]
    kinds = list(audits[0].by_kind())
    rate = RATES[0]
    lines = [
        f"{n_images} images of {n_patients} patients. Copies found, by kind (mean over strengths), where at most "
        f"{rate:.0%} of the honest images are dropped:",
        "",
        _row(["kind", *names]),
        _row(["---"] * (len(names) + 1)),
    ]
    by_kind = [audit.by_kind(rate) for audit in audits]
    lines += [_row([kind, *(f"{table[kind]:.2f}" for table in by_kind)]) for kind in kinds]
    lines += [
        _row(["**mean**", *(f"**{np.mean(list(table.values())):.3f}**" for table in by_kind)]),
        _row(["**worst kind**", *(f"**{min(table.values()):.2f}**" for table in by_kind)]),
        _row([f"mean at {RATES[1]:.0%}", *(f"{np.mean(list(a.by_kind(RATES[1]).values())):.3f}" for a in audits)]),
        _row(["mean at its own level", *(f"{np.mean(list(a.by_kind().values())):.3f}" for a in audits)]),
        _row(["level", *(f"{audit.level:.3f}" for audit in audits)]),
        _row(["honest images dropped", *(_share(audit.false_drops) for audit in audits)]),
        _row(["kappa between calibrations", *(f"{audit.consistency:.2f}" for audit in audits)]),
        "",
        f"Every strength, {names[-1]}:",
        "",
        _row(["kind", "strength", "found at its level", "at 5 %", "at 1 %", "AUC"]),
        _row(["---"] * 6),
    ]
    last = audits[-1]
    for condition, recall in last.recall.items():
        strength = f"{condition.strength:g} {condition.unit}".strip()
        at = [_share(last.recall_at[rate][condition]) for rate in RATES]
        lines.append(_row([condition.kind, strength, _share(recall), *at, f"{last.auc[condition]:.3f}"]))
    return "\n".join(lines) + "\n"


@STYLE
def draw_recall(path: Path, audits: Sequence[FilterAudit]) -> None:
    """Kinds down, filters across, the share found in each cell."""
    tables = [audit.by_kind(RATES[0]) for audit in audits]
    rows = {kind: [(table[kind], f"{table[kind]:.2f}") for table in tables] for kind in tables[0]}
    figure, axes = _grid(rows)
    axes.set_xticks(range(len(audits)), [audit.name.replace(", ", "\n") for audit in audits], fontsize=8)
    axes.xaxis.tick_top()
    axes.set_xlabel(f"planted copies found where at most {RATES[0]:.0%} of honest images are dropped")
    _save(figure, path)


@STYLE
def draw_planted(path: Path, audit: PlantedAudit) -> None:
    """Kinds down, their strengths across, in each cell how many of the copies were found; no image is shown."""
    rows: dict[str, list[tuple[float, str]]] = {kind.kind: [] for kind in audit.kinds}
    for one in audit.strengths:
        rows[one.kind].append((one.found / one.n, f"{one.strength:g} {one.unit}".strip() + f": {one.found}/{one.n}"))
    figure, axes = _grid(rows)
    axes.set_xticks([])
    axes.set_xlabel("planted copies found at each strength: green all, red none")
    _save(figure, path)


def _grid(rows: Mapping[str, Sequence[tuple[float, str]]]) -> tuple[Figure, Axes]:
    """Names down, and beside each its cells: a share from 0 to 1 as the colour, and what is written on it."""
    n_columns = max(len(cells) for cells in rows.values())
    values = np.full((len(rows), n_columns), np.nan)
    figure = Figure(figsize=(2.5 + 1.3 * n_columns, 1.2 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, cells in enumerate(rows.values()):
        for column, (value, said) in enumerate(cells):
            values[row, column] = value
            axes.text(column, row, said, ha="center", va="center", fontsize=7)
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.7)  # the writing stays legible
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    return figure, axes


@STYLE
def draw_copies(path: Path, examples: Mapping[str, np.ndarray]) -> None:
    """One image under every kind, a row of strengths each."""
    widest = max(len(images) for images in examples.values())
    figure = Figure(figsize=(1.6 + 0.8 * widest, 0.8 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), widest, squeeze=False)
    for row, (name, images) in zip(axes, examples.items(), strict=True):
        for axis in row:
            axis.axis("off")
        for axis, image in zip(row, images, strict=False):
            axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
        row[0].set_title(name, fontsize=7, loc="left", pad=2)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(recall: Recall) -> str:
    low, high = recall.interval
    return f"{recall.value:.2f} [{low:.2f}, {high:.2f}]"
