"""What an experiment asks of every generator: of each YAML in ``config/generator``, and of the toy in tests/support."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.paths import REPOSITORY

from common.errors import InputError
from common.plan import Plan
from engine.store import VOLATILE
from generators.bounded_settings import faults_of_bounded
from generators.interface import SampleRequest, TrainRequest
from generators.registry import built_in_adapters, find_generator

TOYS = [yaml.safe_load(path.read_text()) for path in REPOSITORY.glob("tests/support/*/generator/*.yaml")]
ADAPTERS = {**built_in_adapters(), **{toy["name"]: toy["adapter"] for toy in TOYS}}
every_generator = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
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


def request_of(adapter: str, images: np.ndarray, out: Path, seed: int = 1, **settings: object) -> TrainRequest:
    out.mkdir(exist_ok=True)
    generator = find_generator(adapter)
    checked = generator.check({**generator.tiny_settings, **settings})
    return TrainRequest(images, plan_of(images.shape[-2:], images.shape[1]), KIMG, checked, out, seed)


def train(adapter: str, images: np.ndarray, out: Path, seed: int = 1) -> None:
    find_generator(adapter).train(request_of(adapter, images, out, seed))


def contents(folder: Path, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file by its relative name; ``without``: files and folders of these names."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not set(without) & set(name.parts)}


def grey_images(n_images: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n_images, 1, 16, 16), dtype=np.uint8)


def test_there_are_built_in_generators_and_a_toy() -> None:
    assert {"stylegan2", "ddpm", "ldm"} <= set(built_in_adapters()) and TOYS


@every_generator
def test_an_adapter_has_the_name_that_its_yaml_states(adapter: str) -> None:
    assert ADAPTERS[find_generator(adapter).name] == adapter


@every_generator
@pytest.mark.parametrize(
    "n_channels,size_px,dtype", [(1, (16, 16), np.uint8), (3, (12, 20), np.uint8), (4, (16, 12), np.uint16)]
)
def test_trained_on_any_channels_and_size_it_samples_by_seed_alone(
    adapter: str, n_channels: int, size_px: tuple[int, int], dtype: type, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (6, n_channels, *size_px), dtype=dtype)
    train(adapter, images, tmp_path / "one")
    generator, three = find_generator(adapter), SampleRequest(tmp_path / "one", [5, 6, 7], batch_size=3)
    first = generator.sample(three)
    assert first.shape == (3, n_channels, *size_px) and first.dtype == dtype
    assert np.array_equal(first, generator.sample(three))
    assert np.array_equal(first[2], generator.sample(replace(three, seeds=[7]))[0])
    alone = generator.sample(replace(three, seeds=[7], batch_size=1))[0]
    step = np.iinfo(dtype).max // 255
    assert np.abs(alone.astype(int) - first[2].astype(int)).max() <= step  # another batch may round one grey level
    assert not np.array_equal(first[0], first[1])


@every_generator
def test_training_again_in_a_finished_folder_changes_nothing_and_seeds_matter(adapter: str, tmp_path: Path) -> None:
    """Defect 15 of medimgen: what makes a training repeatable was imported and never called."""
    images = grey_images()
    for folder, seed in (("one", 1), ("two", 1), ("other", 2)):
        train(adapter, images, tmp_path / folder, seed)
    everything, without_times = contents(tmp_path / "one"), contents(tmp_path / "one", VOLATILE)
    train(adapter, images, tmp_path / "one")
    assert contents(tmp_path / "one") == everything
    assert contents(tmp_path / "two", VOLATILE) == without_times
    generator = find_generator(adapter)
    sampled = [generator.sample(SampleRequest(tmp_path / folder, [3])) for folder in ("one", "other")]
    assert not np.array_equal(*sampled)


@every_generator
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(adapter: str, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: float, total: float, unit: str) -> None:
        if done >= total / 2:
            raise Killed

    generator = find_generator(adapter)
    whole, killed = (request_of(adapter, grey_images(), tmp_path / name) for name in ("whole", "killed"))
    resolved = generator.train(whole)
    with pytest.raises(Killed):
        generator.train(replace(killed, progress=kill))
    assert generator.train(killed) == resolved
    one, other = (generator.sample(SampleRequest(request.out, [3, 4])) for request in (whole, killed))
    assert np.array_equal(one, other)


@every_generator
def test_what_a_training_tells_is_what_a_package_may_say(adapter: str, tmp_path: Path) -> None:
    from common.settings import from_dict, to_dict

    generator = find_generator(adapter)
    resolved = generator.train(request_of(adapter, grey_images(), tmp_path))
    if generator.shared_type is None:
        assert list(faults_of_bounded(resolved, "generator")) == []
    else:
        assert to_dict(from_dict(generator.shared_type, resolved)) == resolved


@every_generator
def test_an_unknown_setting_is_refused(adapter: str) -> None:
    with pytest.raises(InputError, match="way out"):
        find_generator(adapter).check({"no_such_setting": 1})


@every_generator
def test_masks_are_made_where_they_are_asked_for(adapter: str, tmp_path: Path) -> None:
    """Those of the dataset, also of a label that this site lacks; images stay what ``sample`` says they are."""
    generator, images = find_generator(adapter), grey_images()
    try:
        request = request_of(adapter, images, tmp_path, with_labels=True)
    except InputError:
        pytest.skip("it makes no masks")
    assert generator.makes_masks(request.settings)
    with pytest.raises(InputError, match="with_labels"):
        generator.train(request)
    masks = (images[:, 0] > 128).astype(np.uint8)
    resolved = generator.train(replace(request, masks=masks, n_mask_labels=2))
    assert resolved["n_label_channels"] == 2
    sampling = SampleRequest(tmp_path, [5, 6, 7], batch_size=3)
    made, made_masks = generator.sample_with_masks(sampling)
    assert np.array_equal(made, generator.sample(sampling))
    assert made_masks.shape == (3, 16, 16) and made_masks.dtype == np.uint8 and made_masks.max() <= 2


@every_generator
@pytest.mark.parametrize("given", ["masks", "class_labels", "second_domain"])
def test_what_it_does_not_learn_from_is_refused(adapter: str, given: str, tmp_path: Path) -> None:
    images, generator = np.zeros((4, 1, 16, 16), np.uint8), find_generator(adapter)
    request = request_of(adapter, images, tmp_path)
    assert not generator.makes_masks(request.settings)
    with pytest.raises(InputError, match=r"masks|label|domain"):
        generator.train(replace(request, **{given: images[:, 0]}))


@every_generator
def test_the_schedule_knows_about_how_long_it_trains(adapter: str) -> None:
    generator = find_generator(adapter)
    assert generator.seconds_per_kimg(generator.check(generator.tiny_settings)) > 0
    assert 0 <= generator.monitor_share() < 1


def test_an_unknown_generator_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="stylegan2"):
        find_generator("vae")


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ("no_such_package.module:Adapter", "no_such_package"),
        ("common.errors:NoSuchClass", "NoSuchClass"),
        ("common.errors:InputError", "cannot be loaded"),
        ("decimal:Decimal", "it lacks check"),
        ("generators.interface:GeneratorBackend", "cannot be loaded"),
    ],
)
def test_an_adapter_that_is_none_is_refused_by_its_name(adapter: str, words: str) -> None:
    with pytest.raises(InputError, match=r"generator\.adapter") as refused:
        find_generator(adapter)
    assert adapter in str(refused.value) and words in str(refused.value)
