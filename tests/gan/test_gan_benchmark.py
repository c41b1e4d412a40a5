"""``gan.benchmark``: the interface other implementations are set beside, and what the command prints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import gan.benchmark
from gan.step_cost import INTERVALS, PHASES, Spec, Steps, build, build_textbook, measure

TINY = {"mb": 4, "mbstd": 4, "fmaps": 0.002, "lrate": 0.002, "gamma": 1.0, "map": 2, "ema_kimg": 10.0}


def test_each_phase_trains_the_network_it_is_for() -> None:
    steps, real = build(8, 4, 1, TINY, "cpu"), torch.zeros(4, 1, 8, 8)
    phases = steps.train_step
    for name, network in (
        *(("gmain", phases.generator), ("greg", phases.generator)),
        *(("dmain", phases.discriminator), ("dreg", phases.discriminator)),
    ):
        before = {key: value.clone() for key, value in phases_state(steps).items()}
        getattr(steps, name)(real)
        changed = {
            key.split(".")[0] for key, value in phases_state(steps).items() if not torch.equal(value, before[key])
        }
        assert changed == {"generator" if network is phases.generator else "discriminator"}, name
    before = phases.average.constant.clone()
    steps.ema()
    assert not torch.equal(phases.average.constant, before)


def phases_state(steps: Steps) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, network in (
            ("generator", steps.train_step.generator),
            ("discriminator", steps.train_step.discriminator),
        )
        for key, value in network.state_dict().items()
    }


def test_widths_and_counts_are_those_of_the_standard_configuration() -> None:
    """64 px, fmaps 0.5, RGB: the 22.2 and 23.4 million parameters of the reference (performance.md, 1.3)."""
    with torch.device("meta"):
        steps = build(64, 16, 3, Spec(), "meta")
    assert round(steps.n_parameters["generator"] / 1e6, 1) == 22.2
    assert round(steps.n_parameters["discriminator"] / 1e6, 1) == 23.4


def test_the_textbook_beside_starts_from_the_same_weights_and_does_the_same_step() -> None:
    ours, textbook = build(8, 4, 1, TINY, "cpu"), build_textbook(8, 4, 1, TINY, "cpu")
    assert phases_state(ours).keys() == phases_state(textbook).keys()
    lengths = [steps.train_step.path_length(steps.draws)["path_length"] for steps in (ours, textbook)]
    torch.testing.assert_close(*lengths, rtol=1e-5, atol=0)


def test_half_precision_computes_the_same_to_its_rounding() -> None:
    """bfloat16 has 8 bits: 2^-8 a rounding, some tens of them in a row."""
    losses = [
        build(8, 4, 1, {**TINY, "precision": precision}, "cpu").train_step.generator_main(
            torch.Generator().manual_seed(1)
        )
        for precision in ("fp32", "bf16")
    ]
    assert losses[0]["loss_g"] != losses[1]["loss_g"]
    torch.testing.assert_close(losses[0]["loss_g"], losses[1]["loss_g"], rtol=0.02, atol=0)


def test_an_iteration_is_the_phases_at_their_intervals() -> None:
    found = measure((8, 4, 1, Spec(**TINY), "cpu"), ["ours", "textbook"], 1)
    for name in ("ours", "textbook"):
        times = found["min_s"][name]
        assert times["iteration"] == pytest.approx(sum(times[phase] / INTERVALS[phase] for phase in (*PHASES, "ema")))
    assert all(found["gflop"][phase] > 0 for phase in PHASES)


def test_the_command_prints_every_phase_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--res", "8", "--batch", "4", "--fmaps", "0.002", "--repeats", "1"]
    assert gan.benchmark.main([*sizes, "--alone", "--out", str(tmp_path / "f.json")]) == 0
    printed = capsys.readouterr().out
    assert all(phase in printed for phase in (*PHASES, "iteration", "roofs", "s/kimg", "peak memory"))
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["peak_bytes"]["ours"] > 0 and set(figures["median_s"]) == {"ours"}


@pytest.mark.parametrize("res", [4, 12, 100])
def test_a_size_that_is_no_power_of_two_is_refused(res: int) -> None:
    with pytest.raises(ValueError, match=str(res)):
        build(res, 4, 1, TINY, "cpu")


@pytest.mark.slow
def test_losses_over_two_thousand_iterations_do_not_tell_bfloat16_from_float32() -> None:
    """Means over blocks of 100 iterations, the first 500 left out: as far apart as those of two seeds in float32."""
    curves = [curve_of(*case) for case in (("fp32", 0), ("bf16", 0), ("fp32", 1))]
    blocks = torch.stack(curves)[:, 500:].unflatten(1, (-1, 100)).mean(dim=2)  # (3, blocks, losses)
    means, spread = blocks.mean(dim=1), blocks[0].std(dim=0)
    error = spread * math.sqrt(2 / blocks.shape[1])  # of a difference, were blocks independent
    assert ((means[0] - means[1]).abs() <= torch.maximum(4 * error, 2 * (means[0] - means[2]).abs())).all()


def curve_of(precision: str, seed: int) -> torch.Tensor:
    """(2000, 2) losses of generator and discriminator on 64 images of two blobs each."""
    steps, random = build(16, 8, 1, {**TINY, "mb": 8, "fmaps": 0.004, "precision": precision}, "cpu"), torch.Generator()
    random.manual_seed(0)
    centres, pixels = torch.rand(64, 2, 1, 1, 2, generator=random), torch.linspace(0, 1, 16)
    squares = (pixels[:, None] - centres[..., 0]).square() + (pixels - centres[..., 1]).square()
    images = (-40 * squares).exp().sum(dim=1)[:, None] * 2 - 1
    steps.draws.manual_seed(seed)
    rows = []
    for step in range(2000):
        real = images[torch.randperm(64, generator=random)[:8]]
        loss_g = steps.train_step.generator_main(steps.draws)["loss_g"]
        if step % INTERVALS["greg"] == 0:
            steps.greg(real)
        rows.append(torch.stack([loss_g, steps.train_step.discriminator_main(real, steps.draws)["loss_d"]]))
        if step % INTERVALS["dreg"] == 0:
            steps.dreg(real)
        steps.ema()
    return torch.stack(rows)
