"""A type of experiment from outside: its own configuration, stages, results and report, through the same entry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.tiny_experiment import composed

from pipeline.experiments import FEDERATED, NNUNET, SCALING

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("toy")
    ended = python("support.toy_experiment", "n_numbers=4", cwd=cwd)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 stages, 3 to do" in ended.stdout and "total " in ended.stdout
    return cwd / "runs" / "toy"


def test_it_does_its_stages_and_writes_its_results_and_its_report(run: Path) -> None:
    drawn = [json.loads((run / "fold_0" / "draw" / site / "numbers.json").read_text())["numbers"] for site in "AB"]
    total = sum(map(sum, drawn))
    assert all(len(numbers) == 4 for numbers in drawn)
    assert (run / "fold_0" / "summary.txt").read_text() == f"total {total}\n"
    report = (run / "fold_0" / "report.html").read_text()
    assert f"add up to {total}." in report and "Totals of the toy" in report and "Time per stage" in report
    assert "Memorization filter" not in report


def test_what_is_done_stays_and_a_changed_setting_is_redone(run: Path) -> None:
    again = python("support.toy_experiment", "n_numbers=4", cwd=run.parent.parent)
    assert again.returncode == 0 and "3 stages, 0 to do" in again.stdout
    dry = python("support.toy_experiment", "n_numbers=5", "dry_run=true", cwd=run.parent.parent)
    assert dry.returncode == 0 and "3 stages, 3 to do; nothing was run" in dry.stdout
    assert "5 numbers each of 2 sites" in dry.stdout


def test_the_report_finds_its_sections_again(run: Path) -> None:
    assert json.loads((run / "fold_0" / "run.json").read_text())["experiment"] == "support.toy_experiment:TOY"
    ended = python("evaluation.report", str(run), cwd=run.parent)
    assert ended.returncode == 0, ended.stderr
    assert "Totals of the toy" in (run / "report.html").read_text()


@pytest.mark.parametrize("override", ["n_numbers=0", "++n_numers=3", "n_numbers=many"])
def test_its_own_values_are_checked(override: str, tmp_path: Path) -> None:
    ended = python("support.toy_experiment", override, cwd=tmp_path)
    assert ended.returncode == 2 and "way out: " in ended.stdout + ended.stderr
    assert not (tmp_path / "runs" / "toy" / "fold_0").exists()


@pytest.mark.parametrize("experiment", [NNUNET, FEDERATED, SCALING], ids=lambda experiment: experiment.name)
def test_the_experiments_of_the_release_are_such_objects(experiment) -> None:
    module, name = experiment.imported_as.split(":")
    assert getattr(sys.modules[module], name) is experiment
    assert isinstance(composed(f"{experiment.config_folder.name}/demo"), experiment.config_type)
