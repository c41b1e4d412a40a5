"""The smallest dataset that nnU-Net learns something on: bright discs on a dark ground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from skimage import io


def write_blobs(
    root: Path, n_channels: int = 1, n_cases: int = 8, shape: tuple[int, int] = (32, 48), seed: int = 0
) -> Path:
    """A raw dataset of bright discs on a dark ground; returns the dataset's folder."""
    dataset = root / "Dataset101_blobs"
    (dataset / "imagesTr").mkdir(parents=True)
    (dataset / "labelsTr").mkdir()
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for case in range(n_cases):
        disc = np.hypot(rows - rng.integers(10, 22), columns - rng.integers(10, 38)) < 8
        channels = [rng.normal(60 + 40 * c, 5, shape) + (90 - 20 * c) * disc for c in range(n_channels)]
        image = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8).squeeze()
        io.imsave(dataset / "imagesTr" / f"case{case}_0000.png", image, check_contrast=False)
        io.imsave(dataset / "labelsTr" / f"case{case}.png", disc.astype(np.uint8), check_contrast=False)
    names = {"0": "grey"} if n_channels == 1 else {"0": "R", "1": "G", "2": "B"}
    content = {"channel_names": names, "labels": {"background": 0, "disc": 1}, "numTraining": n_cases}
    (dataset / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))
    return dataset


SPLITS = {"train": [f"case{i}" for i in range(6)], "val": ["case6", "case7"]}
