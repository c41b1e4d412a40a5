"""The nnU-Net raw dataset that a prepare stage leaves."""

from __future__ import annotations

from pathlib import Path


def raw_dataset(prepared: Path) -> Path:
    """The one nnU-Net raw dataset in a prepare stage's folder."""
    (dataset,) = sorted((prepared / "raw").glob("Dataset*"))
    return dataset
