"""Finished experiments side by side: paired by patient, judged together, with the settings in which they differ."""

import csv

import numpy as np
import pytest

from common.files import write_json
from evaluation.compare import compare_runs, differing_settings, main
from evaluation.results import write_results


def write_run(folder, *, gain, first_patient=0, kimg=4):
    """Twelve patients of two images; patients are numbered from the first one that this run has."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        level = rng.uniform(0.6, 0.9)
        for image in range(2):
            named = {"model": "real-A", "trained_on": "A", "tested_on": "A", "fold": 0, "seed": 0, "label": "l"}
            named |= {"patient": f"p{number - first_patient + 1:03d}", "case": f"c{number:02d}_{image}"}
            dice = level + rng.normal(0, 0.01) + gain
            if number >= first_patient:
                rows.append(named | {"dice": dice, "iou": dice, "hd95": 9 - 5 * dice, "nsd": dice})
    write_results(folder / "fold_0" / "results.csv", rows)
    for site in "AB":
        settings = {"train": {"n_epochs": 3}, "kimg": kimg}
        manifest = {"stage": "generator", "site": site, "settings": settings}
        write_json(folder / "fold_0" / "generator" / site / "manifest.json", manifest)
    return folder


def test_runs_are_compared_patient_by_patient_and_their_settings_named(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", gain=0.0), write_run(tmp_path / "b", gain=0.05, kimg=8)]
    (row,) = compare_runs(runs).to_dict("records")
    assert row["difference"] == pytest.approx(0.05) and row["n_patients"] == 12 and row["verdict"] == "a gain"
    (distance,) = compare_runs(runs, "hd95").to_dict("records")
    assert distance["difference"] == pytest.approx(-0.25) and distance["verdict"] == "a gain"
    assert differing_settings(runs) == [("generator", "kimg", "4", "8")]  # once, not for each site
    assert main([*map(str, runs), "--out", str(tmp_path / "c.csv")]) == 0
    shown = capsys.readouterr().out
    assert "+5.0" in shown and "a gain" in shown and "kimg" in shown
    assert next(csv.DictReader((tmp_path / "c.csv").open()))["model"] == "real-A"


def test_only_images_that_both_have_count_and_patients_keep_the_references_numbers(tmp_path):
    """A run on fewer cases numbers its patients otherwise: pairing by that number would mix patients."""
    runs = [write_run(tmp_path / "a", gain=0.0), write_run(tmp_path / "b", gain=0.05, first_patient=4)]
    (row,) = compare_runs(runs).to_dict("records")
    assert row["n_patients"] == 8 and row["difference"] == pytest.approx(0.05)


def test_runs_without_results_or_without_a_common_image_are_refused(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", gain=0.0), write_run(tmp_path / "b", gain=0.0, first_patient=12)]
    assert main([str(runs[0])]) == 2 and "nothing to compare with" in capsys.readouterr().err
    assert main([str(runs[0]), str(tmp_path / "absent")]) == 2 and "holds no results" in capsys.readouterr().err
    assert main([*map(str, runs)]) == 2
