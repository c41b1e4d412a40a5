"""The report's section on training across sites: validation by round, who was left out, and what crossed borders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.curves import read_curves
from evaluation.report.approach_pictures import rounds_figure
from evaluation.report.fields import format_bytes, format_number, table_of
from evaluation.report.html import Html, bullets, details, element, heading, join, note, paragraph, picture
from evaluation.report.pictures import curves_figure
from evaluation.report.run import RunFiles, StageFolder, read_mapping
from evaluation.results import format_value

ROUNDS_STAGES = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedbn": "FedBN"}
DSL_STAGE, SITE_LOSS = "dsl", "loss_l1_"
MEANING = (
    "The validation scores the averaged model of each round, at every site, on images that nobody trained on. It "
    "chooses the round; it is not the test. Bytes sent and received are those of one site in one round; in all means "
    "over all sites and rounds."
)


def is_baseline_run(files: RunFiles) -> bool:
    """Whether a run trains across sites and has no generator: then nothing of the main experiment is missing."""
    across = any(files.stage_folders(stage) for stage in (*ROUNDS_STAGES, DSL_STAGE))
    return across and not files.stage_folders("generator")


def federated_section(files: RunFiles) -> Html | None:
    """A part for each strategy that left curves or a summary; None where nothing was trained across sites."""
    in_rounds = [_rounds_part(title, files.stage_folders(stage)) for stage, title in ROUNDS_STAGES.items()]
    shown_rounds, dsl = [part for part in in_rounds if part], _dsl_part(files.stage_folders(DSL_STAGE))
    if not shown_rounds and not dsl:
        return None
    return join(note(MEANING) if shown_rounds else "", *shown_rounds, dsl)


def _rounds_part(title: str, folders: Sequence[StageFolder]) -> Html:
    """One strategy: a panel and a row for each fold."""
    curves = {folder.fold: read_curves(folder.path / "curves.jsonl") for folder in folders}
    summaries = {folder.fold: read_mapping(folder.path / "summary.json") for folder in folders}
    drawn = {fold: curve for fold, curve in curves.items() if curve}
    rows = [_rounds_row(fold, summary, curves[fold]) for fold, summary in summaries.items() if summary]
    if not drawn and not rows:
        return Html("")
    best = {fold: _number(summaries[fold].get("best_round")) for fold in drawn}
    caption = f"{title}: validation Dice by round; the dashed line marks the round whose model was chosen"
    return join(
        heading(title),
        picture(rounds_figure(drawn, best), caption) if drawn else "",
        table_of(rows) if rows else "",
        _weights_sentence(summaries),
        _left_out_list(summaries),
    )


def _rounds_row(fold: int, summary: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    rounds, sites = _number(summary.get("rounds")), summary.get("weights") or {}
    up, down = (_number(summary.get(key)) for key in ("bytes_up", "bytes_down"))
    at_best = [point for point in curve if point["step"] == summary.get("best_round")]
    left_out = summary.get("left_out") or []
    return {
        "fold": str(fold),
        "rounds": format_number(summary.get("rounds", "-")),
        "local epochs": format_number(summary.get("local_epochs", "-")),
        "momentum": str(summary.get("optimizer", "-")),
        "best round": format_number(summary.get("best_round", "-")),
        "validation Dice there, %": format_value(_number(at_best[0].get("val_dice")) if at_best else math.nan, "dice"),
        "sent a round": _bytes(up),
        "received a round": _bytes(down),
        "in all, both ways": _bytes((up + down) * rounds * len(sites)),
        "updates left out": str(len(left_out)),
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _bytes(n_bytes: float) -> str:
    return "-" if math.isnan(n_bytes) else format_bytes(n_bytes)


def _weights_sentence(summaries: Mapping[int, Mapping[str, Any]]) -> Html:
    """The sites' weights, once where they are the same in all folds."""
    folds_of: dict[str, list[int]] = {}
    for fold, summary in summaries.items():
        weights = summary.get("weights") or {}
        words = ", ".join(f"{site} {100 * _number(weight):.1f} %" for site, weight in sorted(weights.items()))
        folds_of.setdefault(words, []).append(fold)
    sentences = [f"Weights in fold {_ranges(folds)}: {words}." for words, folds in folds_of.items() if words]
    return paragraph(" ".join(sentences)) if sentences else Html("")


def _left_out_list(summaries: Mapping[int, Mapping[str, Any]]) -> Html:
    """One line for each site and reason, its rounds together: a site that is down for long is one line."""
    rounds_of: dict[tuple[int, str, str], list[int]] = {}
    for fold, summary in summaries.items():
        for item in summary.get("left_out") or []:
            key = fold, str(item.get("site", "?")), str(item.get("why", "no reason given"))
            rounds_of.setdefault(key, []).append(int(item.get("round", 0)))
    lines = [
        f"Fold {fold}: round {_ranges(rounds)} went on without site {site}: {why}"
        for (fold, site, why), rounds in sorted(rounds_of.items())
    ]
    return bullets(lines) if lines else Html("")


def _ranges(numbers: Iterable[int]) -> str:
    """``3-5, 40``."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _dsl_part(folders: Sequence[StageFolder]) -> Html:
    """DSL: its losses, what crossed borders, and the card of it."""
    curves = [curve for folder in folders if (curve := read_curves(folder.path / "curves.jsonl"))]
    png = curves_figure({"all sites": [_losses(curve) for curve in curves]}) if curves else None
    rows = [row for folder in folders for row in _exchange_rows(folder)]
    cards = [
        details(f"What left the sites, fold {folder.fold}", element("pre", card.read_text("utf-8", errors="replace")))
        for folder in folders
        if (card := folder.path / "CARD.md").is_file()
    ]
    if not png and not rows and not cards:
        return Html("")
    caption = "DSL: losses of the hub's generator and the sites' discriminators; one line a fold"
    return join(heading("DSL"), picture(png, caption) if png else "", table_of(rows) if rows else "", *cards)


def _losses(curve: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The losses without the sites' own, which are drawn as their weighted mean."""
    kept = [key for key in curve[-1] if key.startswith("loss_") and not key.startswith(SITE_LOSS)]
    return [{key: point[key] for key in ("step", "unit", *kept) if key in point} for point in curve]


def _exchange_rows(folder: StageFolder) -> list[dict[str, str]]:
    """``exchange.json``: what each site let out, a row a site."""
    sites = read_mapping(folder.path / "exchange.json").get("sites") or {}
    rows = []
    for site, left in sorted(sites.items()):
        masks, gradients, statistics = (left.get(key) or {} for key in ("masks", "gradients", "feature_statistics"))
        rows.append(
            {
                "fold": str(folder.fold),
                "site": site,
                "real masks sent": format_number(masks.get("n", "-")),
                "masks": _bytes(_number(masks.get("bytes"))),
                "gradients sent": format_number(gradients.get("n", "-")),
                "gradients": _bytes(_number(gradients.get("bytes"))),
                "feature statistics": _bytes(_number(statistics.get("bytes"))),
                "iterations left out": format_number((left.get("left_out") or {}).get("n_iterations", "-")),
            }
        )
    return rows
