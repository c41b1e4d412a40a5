"""Two sites of blobs and an undisturbed DSL training of theirs, made once for all files that look at them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dsl_sites import N_IMAGES, SEEDS, SIZE, run, write_site


@pytest.fixture(scope="session")
def sites(tmp_path_factory) -> dict[str, Path]:
    """Two sites whose images differ in number and size."""
    sizes = {"A": SIZE, "B": (30, 34)}
    return {
        site: write_site(tmp_path_factory.mktemp(site), sizes[site], n_train=N_IMAGES[site], seed=SEEDS[site])
        for site in SEEDS
    }


@pytest.fixture(scope="session")
def undisturbed(sites, tmp_path_factory) -> Path:
    """A finished training of both sites."""
    return run(sites, tmp_path_factory.mktemp("undisturbed"))
