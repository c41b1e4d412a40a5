"""Sites as the stages before DSL leave them, built of blobs."""

from __future__ import annotations

from pathlib import Path

from support.blobs import SPLITS, write_blobs

from common.files import write_json
from common.image_set import save_image_set
from common.plan import Plan
from dataset.images import read_image
from dataset.slices import build_slices, case_of_image

SIZE = (32, 40)  # the blobs are 32 x 48: the slices are cropped


def plan_of(size_px: tuple[int, int], n_channels: int) -> Plan:
    scheme = ("ZScoreNormalization",) * n_channels
    return Plan(size_px, ((1, 1),), ((3, 3),), (1.0, 1.0), (0, 1, 2), scheme, (False,) * n_channels, ({},), 2)


def write_site(folder: Path, size_px=SIZE, n_channels: int = 1, n_train: int = 6, seed: int = 0) -> Path:
    """A site's ``prepare`` and ``slices`` folders, as the stages of these names leave them."""
    dataset = write_blobs(folder / "prepare" / "raw", n_channels, seed=seed)
    splits = {**SPLITS, "train": SPLITS["train"][:n_train]}
    write_json(dataset.parent / "splits.json", splits)
    cases = [
        case_of_image(case, f"patient of {case}", split, read_image(dataset / f"imagesTr/{case}_0000.png").array)
        for split, names in splits.items()
        for case in names
    ]
    save_image_set(folder / "slices", build_slices(cases, plan_of(size_px, n_channels)))
    return folder
