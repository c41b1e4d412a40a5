"""Sites as the stages before DSL leave them, built of blobs."""

from __future__ import annotations

from pathlib import Path

from support.blobs import SPLITS, write_blobs

from common.files import write_json
from common.image_set import save_image_set
from common.plan import Plan
from common.settings import to_dict
from dataset.images import read_image
from dataset.slices import build_slices, case_of_image
from engine.workers import InlineWorkers, WorkerSpec
from federated.dsl.hub import train_dsl
from federated.dsl.settings import DslSettings

SIZE = (32, 40)  # the blobs are 32 x 48: the slices are cropped
SMALL = {"base_channels": 4, "n_blocks": 1, "batch_size": 2, "n_iterations": 6, "n_checkpoints": 3}
SHORT = DslSettings(**SMALL, weight_perceptual=0.0)
SEEDS = {"A": 5, "B": 6}
N_IMAGES = {"A": 6, "B": 3}


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


def workers_of(sites: dict[str, Path], out: Path, settings: DslSettings, factory: str | None = None) -> InlineWorkers:
    """A worker for each site, of the class that ``factory`` names."""
    return InlineWorkers(
        {
            site: WorkerSpec(
                factory or "federated.dsl.site:DslSite",
                {
                    "slices": str(folder / "slices"),
                    "prepared": str(folder / "prepare"),
                    "settings": to_dict(settings),
                    "seed": SEEDS[site],
                    "device": "cpu",
                    "out": str(out / "sites" / site),
                },
            )
            for site, folder in sites.items()
        }
    )


def run(sites: dict[str, Path], out: Path, settings: DslSettings = SHORT, factory: str | None = None) -> Path:
    """Train DSL over the sites' folders and return ``out``."""
    train_dsl(workers_of(sites, out, settings, factory), out, settings, seed=1)
    return out
