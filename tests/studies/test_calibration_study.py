"""The study of false drops: sites of the size asked for, strangers judged, and both rules counted."""

from __future__ import annotations

import numpy as np
import pytest
from support.image_makers import textures

from common.errors import InputError
from studies.calibration_study import Draw, draw, format_rows


def test_a_site_is_whole_patients_and_only_others_are_judged() -> None:
    images = textures(26, seed=11)
    features = images.reshape(26, -1).astype(np.float32)
    features -= features.mean(axis=1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    patients = [f"p{i // 2}" for i in range(26)]
    fused, paper = draw(images, (features, features), patients, 11, seed=1)
    assert (fused.rule, paper.rule) == ("fused", "paper's rule")
    assert fused.n_honest == paper.n_honest == 26 - 12  # the sixth patient brings two images
    assert fused.level == pytest.approx(1 / 13)  # twelve images allow no lower one
    assert 0 <= fused.n_dropped < fused.n_honest / 2


def test_a_site_that_leaves_too_few_strangers_is_refused() -> None:
    images = textures(12, seed=12)
    with pytest.raises(InputError, match="leave 2 honest ones"):
        draw(images, (np.eye(12), np.eye(12)), [str(i) for i in range(12)], 10, seed=1)


def test_rows_pool_the_draws_of_a_size() -> None:
    draws = [Draw("fused", 30, 0.05, 40, n, n < 5) for n in (1, 3, 9)]
    assert format_rows(draws)[2] == "| fused | 30 | 3 | 0.050 | 13 of 120 | 0.108 | 2 of 3 |"
