"""The planted-copy audit of several filters as tables in markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.markdown import markdown_table
from memorization.planted.planted_audit import RATES, FilterAudit, Recall


def as_markdown(audits: Sequence[FilterAudit], n_images: int, n_patients: int) -> str:
    """Recall by kind for every filter at a measured false-drop rate of 5 %, and of the last filter all strengths."""
    names = [audit.name for audit in audits]
    by_kind = [audit.by_kind(RATES[0]) for audit in audits]
    figures = {kind: [f"{table[kind]:.2f}" for table in by_kind] for kind in by_kind[0]} | {
        "**mean**": [f"**{np.mean(list(table.values())):.3f}**" for table in by_kind],
        "**worst kind**": [f"**{min(table.values()):.2f}**" for table in by_kind],
        f"mean at {RATES[1]:.0%}": [f"{np.mean(list(audit.by_kind(RATES[1]).values())):.3f}" for audit in audits],
        "mean at its own level": [f"{np.mean(list(audit.by_kind().values())):.3f}" for audit in audits],
        "level": [f"{audit.level:.3f}" for audit in audits],
        "honest images dropped": [_share(audit.false_drops) for audit in audits],
        "kappa between calibrations": [f"{audit.consistency:.2f}" for audit in audits],
    }
    last = audits[-1]
    strengths = [
        [
            condition.kind,
            f"{condition.strength:g} {condition.unit}".strip(),
            _share(recall),
            *(_share(last.recall_at[rate][condition]) for rate in RATES),
            f"{last.auc[condition]:.3f}",
        ]
        for condition, recall in last.recall.items()
    ]
    lines = [
        f"{n_images} images of {n_patients} patients. Copies found, by kind (mean over strengths), where at most "
        f"{RATES[0]:.0%} of the honest images are dropped:",
        "",
        *markdown_table(["kind", *names], [[name, *cells] for name, cells in figures.items()]),
        "",
        f"Every strength, {names[-1]}:",
        "",
        *markdown_table(["kind", "strength", "found at its level", "at 5 %", "at 1 %", "AUC"], strengths),
    ]
    return "\n".join(lines) + "\n"


def _share(recall: Recall) -> str:
    low, high = recall.interval
    return f"{recall.value:.2f} [{low:.2f}, {high:.2f}]"
