"""What the pipeline asks of every generator it can name; a new one joins by its entry in ``GENERATORS``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InputError
from common.plan import Plan
from common.progress import silent
from engine.store import VOLATILE
from generators.registry import GENERATORS, find_generator
from sharing.schema import GENERATORS as SETTINGS_OF_GENERATORS

DIFFUSION = {"channels": [8, 16], "n_res_blocks": 1, "batch_size": 4, "n_snapshots": 2, "n_evaluations": 4}
SMALL: dict[str, dict[str, Any]] = {
    "stylegan2": {"channel_base": 128, "channel_max": 8, "z_dim": 8, "w_dim": 8, "batch_size": 4},
    "ddpm": DIFFUSION,
    "ldm": {**DIFFUSION, "autoencoder": {"channels": [8, 16]}},
}
KIMG = 0.02


def plan_of(size_px: tuple[int, int], n_channels: int) -> Plan:
    return Plan(
        patch_size=size_px,
        strides=((1, 1), (2, 2), (2, 2)),
        kernel_sizes=((3, 3),) * 3,
        spacing_mm=(1.0, 1.0),
        transpose_forward=(0, 1, 2),
        normalization_schemes=("ZScoreNormalization",) * n_channels,
        use_mask_for_norm=(False,) * n_channels,
        intensity=({},) * n_channels,
        batch_size=2,
    )


def train(name: str, images: np.ndarray, out: Path, seed: int = 1) -> None:
    out.mkdir(exist_ok=True)
    plan = plan_of(images.shape[-2:], images.shape[1])
    generator = find_generator(name)
    generator.train(images, plan, KIMG, generator.check(SMALL[name]), out, seed, "cpu", silent)


def contents(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file by its relative name; ``without``: files and folders of these names."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not set(without) & set(name.parts)}


def test_a_package_of_every_generator_can_be_checked() -> None:
    assert SETTINGS_OF_GENERATORS.keys() == GENERATORS.keys()


@pytest.mark.parametrize("name", sorted(GENERATORS))
@pytest.mark.parametrize(
    "n_channels,size_px,dtype", [(1, (16, 16), np.uint8), (3, (12, 20), np.uint8), (4, (16, 12), np.uint16)]
)
def test_trained_on_any_channels_and_size_it_samples_by_seed_alone(
    name: str, n_channels: int, size_px: tuple[int, int], dtype: type, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (6, n_channels, *size_px), dtype=dtype)
    train(name, images, tmp_path / "one")
    generator = GENERATORS[name]
    first = generator.sample(tmp_path / "one", [5, 6, 7], 3, "cpu", silent)
    assert first.shape == (3, n_channels, *size_px) and first.dtype == dtype
    assert np.array_equal(first, generator.sample(tmp_path / "one", [5, 6, 7], 3, "cpu", silent))
    assert np.array_equal(first[2], generator.sample(tmp_path / "one", [7], 3, "cpu", silent)[0])
    alone = generator.sample(tmp_path / "one", [7], 1, "cpu", silent)[0]
    step = np.iinfo(dtype).max // 255
    assert np.abs(alone.astype(int) - first[2].astype(int)).max() <= step  # another batch may round one grey level
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_training_again_in_a_finished_folder_changes_nothing_and_seeds_matter(name: str, tmp_path: Path) -> None:
    """Defect 15 of medimgen: what makes a training repeatable was imported and never called."""
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 16, 16), dtype=np.uint8)
    for folder, seed in (("one", 1), ("two", 1), ("other", 2)):
        train(name, images, tmp_path / folder, seed)
    everything, without_times = contents(tmp_path / "one"), contents(tmp_path / "one", VOLATILE)
    train(name, images, tmp_path / "one")
    assert contents(tmp_path / "one") == everything
    assert contents(tmp_path / "two", VOLATILE) == without_times
    sampled = [GENERATORS[name].sample(tmp_path / folder, [3], 1, "cpu", silent) for folder in ("one", "other")]
    assert not np.array_equal(*sampled)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="way out"):
        find_generator(name).check({"no_such_setting": 1})


@pytest.mark.parametrize("name", ["ddpm", "ldm"])
def test_labels_are_generated_where_they_are_asked_for(name: str, tmp_path: Path) -> None:
    """Those of the dataset, also of a label that this site lacks; images stay what ``sample`` says they are."""
    generator, plan = GENERATORS[name], plan_of((16, 16), 1)
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 16, 16), dtype=np.uint8)
    settings = generator.check({**SMALL[name], "with_labels": True})
    assert generator.generates_labels(settings) and not generator.generates_labels(generator.check(SMALL[name]))
    labels = (images[:, 0] > 128).astype(np.uint8)
    arguments = (images, plan, KIMG, settings, tmp_path, 1, "cpu", silent)
    with pytest.raises(InputError, match="with_labels"):
        generator.train(*arguments)
    resolved = generator.train(*arguments, labels=labels, n_labels=2)
    assert resolved["n_label_channels"] == 2
    made, made_labels = generator.sample_with_labels(tmp_path, [5, 6, 7], 3, "cpu", silent)
    assert np.array_equal(made, generator.sample(tmp_path, [5, 6, 7], 3, "cpu", silent))
    assert made_labels.shape == (3, 16, 16) and made_labels.dtype == np.uint8 and made_labels.max() <= 2


def test_labels_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    images, plan = np.zeros((4, 1, 16, 16), np.uint8), plan_of((16, 16), 1)
    for name in sorted(GENERATORS):
        settings = GENERATORS[name].check(SMALL[name])
        assert not GENERATORS[name].generates_labels(settings)
        with pytest.raises((InputError, ValueError), match="label"):
            GENERATORS[name].train(images, plan, KIMG, settings, tmp_path, 1, "cpu", silent, labels=images[:, 0])


def test_an_unknown_generator_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="stylegan2"):
        find_generator("vae")
