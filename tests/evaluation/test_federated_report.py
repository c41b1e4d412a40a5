"""The report's section on training across sites, from whatever files a strategy left."""

from __future__ import annotations

import json

import pytest

from common.files import write_json, write_text
from evaluation.report.page import write_report

WEIGHTS = {"A": 0.4, "B": 0.6}


def section(text: str) -> str:
    _, _, rest = text.partition('<section id="federated">')
    return rest.partition("</section>")[0]


def write_rounds(folder, n_rounds=4, **summary):
    lines = []
    for index in range(1, n_rounds + 1):
        by_site = {"val_dice_A": 0.2 * index, "val_dice_B": 0.1 * index}
        means = {"val_dice": 0.15 * index, "val_dice_ema": 0.1 * index, "train_loss": -0.1}
        lines.append(json.dumps({"step": index, "unit": "round"} | means | by_site))
    write_text(folder / "curves.jsonl", "\n".join(lines) + "\n")
    if summary:
        write_json(folder / "summary.json", summary)


@pytest.fixture
def run(tmp_path):
    left_out = [{"round": index, "site": "B", "why": "lost its <power>"} for index in (9, 3, 2, 4)]
    facts = {"rounds": 4, "local_epochs": 1, "best_round": 2, "optimizer": "keep", "weights": WEIGHTS}
    sizes = {"bytes_up": 2_000_000, "bytes_down": 3_000_000}
    write_rounds(tmp_path / "fold_0" / "fedavg" / "all", **facts, **sizes, left_out=left_out)
    return tmp_path


def test_rounds_are_shown_with_the_best_one_and_what_crossed_borders(run):
    shown = section(write_report(run).read_text())
    assert "<td>2</td>" in shown and "30.0" in shown  # the chosen round, and the sites' mean in it, not smoothed
    # two megabytes up and three down, at two sites in four rounds
    assert all(size in shown for size in ("2.0 MB", "3.0 MB", "40.0 MB")) and "A 40.0 %, B 60.0 %" in shown


def test_a_site_that_stays_away_is_one_line(run):
    assert "Fold 0: round 2-4, 9 went on without site B: lost its &lt;power&gt;" in section(
        write_report(run).read_text()
    )


def test_a_strategy_still_running_shows_its_curves(tmp_path):
    write_rounds(tmp_path / "fold_0" / "fedbn" / "all")
    write_rounds(tmp_path / "fold_1" / "fedbn" / "all", best_round=3)
    text = write_report(tmp_path).read_text()
    assert "FedBN: validation Dice by round" in section(text) and "could not be built" not in text


def test_dsl_shows_what_left_each_site_and_its_card(tmp_path):
    folder = tmp_path / "fold_0" / "dsl" / "all"
    point = {"step": 1, "unit": "iteration", "n_sites": 2, "loss_l1": 0.4, "loss_l1_A": 0.3, "loss_l1_B": 0.5}
    write_text(folder / "curves.jsonl", json.dumps(point) + "\n")
    left = {"masks": {"n": 17, "bytes": 1_500_000}, "gradients": {"n": 900, "bytes": 7_000}}
    write_json(folder / "exchange.json", {"sites": {"A": left, "B": {}}})
    write_text(folder / "CARD.md", "Masks of <real> patients\n")
    shown = section(write_report(tmp_path).read_text())
    assert all(text in shown for text in ("<td>17</td>", "1.5 MB", "7.0 kB", "Masks of &lt;real&gt; patients"))
    assert "losses of the hub" in shown


def test_a_run_without_training_across_sites_has_no_such_section(tmp_path):
    (tmp_path / "fold_0" / "fedavg" / "all").mkdir(parents=True)
    assert 'id="federated"' not in write_report(tmp_path).read_text()
