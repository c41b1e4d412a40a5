"""What ``auto`` becomes: always a training that is valid and fits, and never another experiment's settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.gan_trainings import noise_images, plan_of

from common.errors import InputError
from common.plan import Plan, square_plan
from gan.auto import (
    AUTO_KEYS,
    BUDGET_SHARE,
    CHOICE,
    Machine,
    choose,
    complete,
    describe_machine,
    resolve,
    training_bytes,
    training_flop,
)
from gan.model import Discriminator, GeneratorNetwork
from gan.settings import GanConfig, derive_settings
from generators.interface import SampleRequest, TrainRequest
from generators.registry import find_generator

ALL_AUTO = dict.fromkeys(AUTO_KEYS, "auto")
LAPTOP = Machine("cpu", 8.0, False)
H200 = Machine("cuda", 139.0, True)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Anisotropic strides, odd bottlenecks, 1 to 8 stages, up to 640 px."""
    strides = draw(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=7))
    products = [math.prod(stride[axis] for stride in strides) for axis in (0, 1)]
    size = [product * draw(st.integers(1, max(1, min(12, 640 // product)))) for product in products]
    return plan_of((size[0], size[1]), strides)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    plan=plans(),
    n_images=st.integers(2, 100_000),
    n_channels=st.integers(1, 5),
    machine=st.builds(
        Machine, st.sampled_from(["cpu", "cuda"]), st.sampled_from([1.0, 4.0, 16.0, 140.0]), st.booleans()
    ),
    auto=st.frozensets(st.sampled_from(AUTO_KEYS)),
)
def test_every_choice_is_valid_and_fits_or_says_that_nothing_does(
    plan: Plan, n_images: int, n_channels: int, machine: Machine, auto: frozenset[str]
) -> None:
    try:
        choice = choose(plan, n_images, n_channels, machine, GanConfig(), auto)
    except InputError as refused:
        # even the smallest does not fit, or what the user named does not
        assert "GiB" in refused.problem
        smallest = replace(GanConfig(), batch_size=2, channel_base=128)
        needed = training_bytes(derive_settings(plan, n_images, n_channels, None, smallest))
        assert auto != frozenset(AUTO_KEYS) or needed > BUDGET_SHARE * machine.memory_gib * 2**30
        return
    config = replace(
        GanConfig(),
        batch_size=choice.batch_size,
        channel_base=choice.channel_base,
        precision=choice.precision,
        minibatch_std_group=choice.minibatch_std_group,
    )
    derived = derive_settings(plan, n_images, n_channels, choice.kimg, config)
    assert min(derived.channels) >= 1 and choice.batch_size % choice.minibatch_std_group == 0
    assert training_bytes(derived) <= BUDGET_SHARE * machine.memory_gib * 2**30
    assert choice.batch_size <= max(n_images, 2) or "batch_size" not in auto
    assert choice.precision == ("bf16" if machine.has_bf16 and "precision" in auto else "fp32")
    for key in set(AUTO_KEYS) - auto:
        assert getattr(choice, key) == getattr(GanConfig(), key)
    assert choice == choose(plan, n_images, n_channels, machine, GanConfig(), auto)


@pytest.mark.parametrize(
    "size_px,n_images,machine,expected",
    [
        (64, 200, LAPTOP, (8, 1024, "fp32", 4, 83.0)),
        (256, 2500, H200, (16, 16384, "bf16", 4, 2500.0)),
        (512, 60, H200, (4, 32768, "bf16", 4, 200.0)),
        (64, 3, H200, (2, 16384, "bf16", 2, 200.0)),
        (256, 50_000, Machine("cuda", 8.0, False), (4, 8192, "fp32", 4, 10_000.0)),
    ],
)
def test_the_tables_examples(size_px: int, n_images: int, machine: Machine, expected: tuple) -> None:
    """Also in docs/generator.md."""
    plan = square_plan(size_px)
    choice = choose(plan, n_images, 1, machine, GanConfig(), frozenset(AUTO_KEYS))
    group, kimg = choice.minibatch_std_group, choice.kimg
    assert (choice.batch_size, choice.channel_base, choice.precision, group, kimg) == expected


def test_the_estimates_rest_on_the_networks_as_they_are() -> None:
    """Weights within a tenth; 31 GFLOP forward at 64 px and full width, as measured for the reference."""
    settings = derive_settings(square_plan(64), 2, 3, None, GanConfig(channel_base=16384, batch_size=1))
    weights = sum(
        p.numel() for network in (GeneratorNetwork(settings), Discriminator(settings)) for p in network.parameters()
    )
    empty = replace(settings, config=replace(settings.config, batch_size=0))
    assert (training_bytes(empty) - 0.6 * 2**30) / 20 == pytest.approx(weights, rel=0.1)
    assert training_flop(settings) == pytest.approx(204e9, rel=0.1)


def test_what_says_no_auto_is_the_papers(tmp_path: Path) -> None:
    plan = square_plan(16)
    derived = resolve({}, None, plan, 700, 1, tmp_path, "cpu")
    assert derived == derive_settings(plan, 700, 1, None, GanConfig()) and derived.kimg == 700
    assert not (tmp_path / CHOICE).exists()


def test_a_training_moved_to_another_machine_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, settings = square_plan(64), {**ALL_AUTO, "auto_kimg": "device"}
    monkeypatch.setattr("gan.auto.describe_machine", lambda device: H200)
    first = resolve(settings, None, plan, 500, 1, tmp_path, "cpu")
    assert first.kimg == 500 and first.config.channel_base == 16384
    monkeypatch.setattr("gan.auto.describe_machine", lambda device: LAPTOP)
    assert resolve(settings, None, plan, 500, 1, tmp_path, "cpu") == first
    assert resolve(settings, 3.0, plan, 500, 1, tmp_path, "cpu").kimg == 3.0
    assert resolve(settings, None, plan, 500, 1, tmp_path / "new", "cpu") != first


def test_this_machine_is_described() -> None:
    machine = describe_machine("cpu")
    assert machine.kind == "cpu" and machine.memory_gib >= 1


@pytest.mark.parametrize("settings", [{"w_dim": "auto"}, {"channel_base": "automatic"}, {"precision": 16}])
def test_auto_where_there_is_none_is_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        find_generator("stylegan2").check(settings)


@pytest.mark.parametrize("settings", [{"precision": "fp8"}, {"auto_kimg": "long"}])
def test_a_name_that_is_none_is_refused_before_the_training(settings: dict) -> None:
    with pytest.raises(InputError, match="use one of"):
        derive_settings(square_plan(16), 5, 1, None, GanConfig(**settings))


def test_the_pipelines_generator_trains_on_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = find_generator("stylegan2")
    settings = generator.check({**ALL_AUTO, "channel_base": 64, "z_dim": 8, "w_dim": 8})
    assert settings["batch_size"] == "auto" and settings["channel_base"] == 64
    monkeypatch.setattr("gan.auto.describe_machine", lambda device: LAPTOP)
    plan = plan_of((10, 16), [(2, 2), (1, 2)])
    resolved = generator.train(TrainRequest(noise_images(), plan, 0.008, settings, tmp_path, seed=1))
    assert resolved["config"]["batch_size"] == 4 and resolved["kimg"] == 0.008
    assert generator.sample(SampleRequest(tmp_path, [1, 2])).dtype == np.uint8
    assert complete({}, "")["batch_size"] == 8
