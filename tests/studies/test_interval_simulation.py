"""The simulation of intervals, verdicts and seeds, as its page prints it, at the smallest sizes."""

import json

import numpy as np
import pytest

import studies.interval_simulation as simulation
from evaluation.results import write_results
from studies.simulated_dice import DISTRIBUTIONS, real_scores


def test_the_command_prints_every_table_and_keeps_its_cells(tmp_path, monkeypatch, capsys):
    for name in ("N_PATIENTS", "N_IMAGES", "N_SITES", "PATIENTS_OF_REPORT"):
        monkeypatch.setattr(simulation, name, (6,) if name == "N_PATIENTS" else (2,))
    assert simulation.main(["--runs", "2", "--out", str(tmp_path / "cells.json")]) == 0
    shown = capsys.readouterr().out
    for words in ("interval of a", "patients and seeds", "any false verdict"):
        assert words in shown
    (mean,) = [line for line in shown.splitlines() if line.startswith("| mean | normal | 6 | 2 | ")]
    assert mean.split(" | ")[4].startswith("(")  # a report shows no interval of a mean for so few patients
    assert len(json.loads((tmp_path / "cells.json").read_text())) == 2 * 3 + 4 + 3


def test_images_of_one_patient_are_correlated_as_told():
    dice = DISTRIBUTIONS[0].draw(np.random.default_rng(0), 1, 4000, 2)[0, 0]
    assert np.corrcoef(dice.T)[0, 1] == pytest.approx(0.8, abs=0.03)


def test_patients_of_a_real_run_keep_their_scores_and_two_networks_one_mean(tmp_path):
    rows = []
    for number in range(6):
        for image in range(1 + number % 2):
            for model, dice in (("real-A", 0.5 + 0.05 * number), ("syn-real-A", 0.7)):
                named = {"model": model, "trained_on": "A", "tested_on": "A", "fold": 0, "seed": 0, "label": "l"}
                named |= {"patient": f"p{number}", "case": f"c{number}_{image}"}
                rows.append(named | {"dice": dice, "iou": dice, "hd95": 1.0, "nsd": dice})
    write_results(tmp_path / "run" / "fold_0" / "results.csv", rows)
    (population,) = real_scores(tmp_path / "run")
    assert population.true_mean() == pytest.approx(0.5 + 0.05 * 2.5)
    drawn = population.draw(np.random.default_rng(1), 500, 4, 3)
    assert drawn.shape == (2, 500, 4, 3) and drawn.mean(axis=(1, 2, 3)) == pytest.approx([0.625] * 2, abs=0.01)
    assert set(np.round(drawn[0].ravel(), 6)) == {round(0.5 + 0.05 * number, 6) for number in range(6)}
