"""Known ways to weaken the filter, put back one at a time: for each, a test of this suite must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted({path.parent.name for path in ROOT.glob("*/*.py")})


@dataclass(frozen=True)
class Mutation:
    """``was`` stands once in ``file`` of ``memorization/`` and becomes ``is_now``; ``tests`` hold what it breaks."""

    name: str
    file: str
    was: str
    is_now: str
    tests: str


MUTATIONS = (
    Mutation(
        "the threshold is measured against half of the index in use",
        "calibration.py",
        'limit = n_references if config.calibration == "cross_fit" else len(owner)',
        'limit = n_references // 2 if config.calibration == "cross_fit" else len(owner)',
        "test_calibration.py",
    ),
    Mutation(
        "the images that calibrate the fused rule are compared with half of the references",
        "calibration.py",
        "    positions = np.flatnonzero(indexed)\n",
        "    positions = np.flatnonzero(indexed)[::2]\n",
        "test_copy_score.py",
    ),
    Mutation(
        "samples are compared with half of the references",
        "copy_score.py",
        "        self._registered = RegisteredReferences(images)\n",
        "        self._registered = RegisteredReferences(images[: (len(images) + 1) // 2])\n",
        "test_copy_score.py",
    ),
    Mutation(
        "a sample at the threshold is kept",
        "filter.py",
        "kept = closest > threshold_l2 if config.drop_ties else closest >= threshold_l2",
        "kept = closest >= threshold_l2",
        "test_calibration.py",
    ),
    Mutation(
        "a p-value equal to the level is kept",
        "filter.py",
        "kept = p > attainable_level(level, len(real_to_real))",
        "kept = p >= attainable_level(level, len(real_to_real))",
        "test_copy_score.py",
    ),
    Mutation(
        "a real image whose p-value equals the level is not dropped",
        "filter.py",
        "<= attainable_level(level, len(others))",
        "< attainable_level(level, len(others))",
        "test_filter_pvalues.py",
    ),
    Mutation(
        "a real image that is as similar as the sample does not count",
        "filter.py",
        "(others >= (1 - SAME_SCORE) * own[:, None])",
        "(others > (1 + SAME_SCORE) * own[:, None])",
        "test_filter_pvalues.py",
    ),
    Mutation(
        "one statistic of one calibration image decides",
        "filter.py",
        "POWER = 6",
        "POWER = 64",
        "test_filter_pvalues.py",
    ),
    Mutation(
        "mirror images of the references are left out of the index",
        "filter.py",
        "    if mirrored_features is not None:\n",
        "    if False:\n",
        "test_calibration.py",
    ),
    Mutation(
        "mirror images are left out of the calibration's index",
        "calibration.py",
        "features[order][None] if mirrored_features is None else np.stack([features, mirrored_features])[:, order]",
        "features[order][None]",
        "test_calibration.py",
    ),
    Mutation(
        "the fused rule's features know no mirror images",
        "copy_score.py",
        "EmbeddedFeatures(features[None] if mirrored is None else np.stack([features, mirrored]))",
        "EmbeddedFeatures(features[None])",
        "test_copy_score.py",
    ),
    Mutation(
        "what all images show counts as copied",
        "registration/agreement.py",
        "SHARED_BY = 3  #",
        "SHARED_BY = 1000  #",
        "test_registration.py",
    ),
    Mutation(
        "what a few images show counts for nothing, however exact the copy",
        "registration/agreement.py",
        "torch.maximum(correlation * unshared(shared), more_than_others)",
        "correlation * unshared(shared)",
        "test_registration.py",
    ),
    Mutation(
        "text that is the same in all images counts where it is exact",
        "registration/agreement.py",
        "IDENTICAL = 0.98",
        "IDENTICAL = 0.9999",
        "test_registration.py",
    ),
    Mutation(
        "a straight edge tells as much as anything else",
        "registration/agreement.py",
        "TWO_DIRECTIONS = 0.15",
        "TWO_DIRECTIONS = 1e-6",
        "test_registration.py",
    ),
    Mutation(
        "images of the same patient calibrate",
        "calibration.py",
        "features[queries], same_patient[queries], progress)",
        "features[queries], same_patient[queries] & False, progress)",
        "test_copy_score.py",
    ),
)


def test_every_mutation_stands_once_in_its_file() -> None:
    counts = {m.name: (ROOT / "memorization" / m.file).read_text(encoding="utf-8").count(m.was) for m in MUTATIONS}
    assert set(counts.values()) == {1}, [name for name, count in counts.items() if count != 1]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_weakened_filter_fails_its_tests(mutation: Mutation, tmp_path: Path) -> None:
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "memorization" / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.was) == 1, f"{mutation.file} has changed: write this mutation anew"
    file.write_text(text.replace(mutation.was, mutation.is_now), encoding="utf-8")
    tests = f"tests/memorization/{mutation.tests}"
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, f"{mutation.tests} passes a filter in which {mutation.name}:\n{ran.stdout[-2000:]}"
    assert "1 failed" in ran.stdout, ran.stdout[-2000:]
