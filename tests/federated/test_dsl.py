"""DSL: the exchange is pix2pix training, resumes to the bit, and goes on without a broken site."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.dsl_sites import SEEDS, SHORT, SMALL, run, workers_of, write_site

from common.checkpoints import load_tensors
from common.errors import InputError
from engine.workers import InlineWorkers
from federated.dsl.begin import load_facts
from federated.dsl.data import load_pairs
from federated.dsl.hub import build_generator, draw_batch, train_dsl
from federated.dsl.loss import Lite0Perceptual, discriminator_loss, generator_losses
from federated.dsl.model import PatchDiscriminator, one_hot, place
from federated.dsl.settings import DslSettings, learning_rate, total_iterations
from federated.dsl.site import DslSite
from federated.dsl.tensors import pack


def curves(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def result(out: Path) -> bytes:
    return (out / "generator.safetensors").read_bytes()


# schedule and sampling


def test_the_learning_rate_ends_at_zero(undisturbed):
    """D10: the original's fell to half of its start and no further."""
    settings = DslSettings()
    rates = [learning_rate(settings, i, 1000) for i in range(1001)]
    assert rates[:500] == [2e-4] * 500 and rates[-1] == 0 < rates[-2] <= 2e-4 / 500
    assert np.all(np.diff(rates) <= 0)
    assert curves(undisturbed)[-1]["learning_rate"] == pytest.approx(SHORT.learning_rate / 3)  # the last of 6
    with pytest.raises(InputError, match="ends at 0"):
        DslSettings(constant_share=1.0)


def test_an_epoch_shows_every_mask_of_the_largest_site_once_and_of_the_others_as_often_in_turn(undisturbed):
    settings = DslSettings(batch_size=2, n_epochs=4)
    facts = load_facts(undisturbed)
    assert total_iterations(settings, 6) == 12
    shown = {site: [draw_batch(facts[site], 6, settings, 1, site, i) for i in range(3)] for site in facts}
    assert sorted(key for batch in shown["A"] for key in batch.keys) == [0, 1, 2, 3, 4, 5]
    assert sorted(key for batch in shown["B"] for key in batch.keys) == [0, 0, 1, 1, 2, 2]
    assert total_iterations(DslSettings(n_epochs=200, batch_size=6), 21) == 700


def test_a_crop_lies_inside_and_moves_mask_and_image_alike(undisturbed):
    facts = load_facts(undisturbed)["A"]
    batch = draw_batch(facts, 6, DslSettings(batch_size=50, crop_px=36), 1, "A", 0)
    assert batch.size_px == (32, 36)  # as large as the image where that is smaller
    assert {p[0] for p in batch.placements} == {0} and {p[1] for p in batch.placements} == set(range(5))
    assert {p[2:] for p in batch.placements} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    grid = torch.arange(32 * 40).reshape(1, 1, 32, 40).expand(50, 1, 32, 40)
    cut = place(grid, batch.placements, batch.size_px)
    assert cut.shape == (50, 1, 32, 36)
    _, left, flip_rows, flip_columns = batch.placements[0]
    corner = grid[0, 0, 31 if flip_rows else 0, left + (35 if flip_columns else 0)]
    assert cut[0, 0, 0, 0] == corner


# the exchange


def real_batch(folder: Path, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks and real images of a batch, read without the site's worker."""
    pairs = load_pairs(folder / "slices", folder / "prepare")
    masks = one_hot(torch.from_numpy(pairs.masks[list(batch.keys)]), 1)
    reals = torch.from_numpy(pairs.images.images[list(batch.keys)].astype(np.float32) / 127.5 - 1)
    return tuple(place(maps, batch.placements, batch.size_px) for maps in (masks, reals))


def test_one_site_is_a_plain_pix2pix_step(sites, tmp_path):
    """The weights after an iteration through the exchange are those of end-to-end autograd."""
    from common.seeds import derive_seed

    settings = DslSettings(**{**SMALL, "n_iterations": 1}, weight_perceptual=1.0)
    run({"A": sites["A"]}, tmp_path, settings)
    facts = load_facts(tmp_path)["A"]
    batch = draw_batch(facts, facts.n_images, settings, 1, "A", 0)
    masks, reals = real_batch(sites["A"], batch)

    torch.manual_seed(derive_seed(1, "generator"))
    generator = build_generator(facts, settings)
    torch.manual_seed(derive_seed(SEEDS["A"], "discriminator"))
    discriminator = PatchDiscriminator(1, 1, settings.base_channels)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), weight_decay=5e-4)
        for network in (generator, discriminator)
    ]
    fakes = generator(masks, [derive_seed(1, "dropout", "A", 0, i) for i in range(2)])
    discriminator_loss(discriminator, masks, fakes, reals, settings.weight_d).backward()
    optimizers[1].step()
    losses = generator_losses(discriminator, Lite0Perceptual(), masks, fakes, reals, settings)
    sum(losses.values()).backward()
    optimizers[0].step()
    trained, _ = load_tensors(tmp_path / "generator.safetensors")
    for name, tensor in generator.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=0, atol=1e-6)
    at_site, _ = load_tensors(tmp_path / "sites/A/discriminator_1.safetensors")
    for name, tensor in discriminator.state_dict().items():
        torch.testing.assert_close(at_site[f"network.{name}"], tensor, rtol=0, atol=1e-6)


def test_gradients_count_by_the_sites_sizes(sites, tmp_path, monkeypatch):
    """6 images at A and 3 at B: thirds, read off the generator's own gradient."""
    seen: dict[str, torch.Tensor] = {}

    class Records(InlineWorkers):
        def ask(self, method, arguments):
            answers = super().ask(method, arguments)
            if method == "step":
                seen.update({site: load(answer["gradient"])["gradient"] for site, answer in answers.items()})
            return answers

    given = []
    backward = torch.autograd.backward

    def records(tensors, gradients=None, *others, **keywords):
        if isinstance(tensors, list):
            given.extend(gradients)
        return backward(tensors, gradients, *others, **keywords)

    monkeypatch.setattr(torch.autograd, "backward", records)
    settings = DslSettings(**{**SMALL, "n_iterations": 1}, weight_perceptual=0.0)
    train_dsl(Records(workers_of(sites, tmp_path, settings)._specs), tmp_path, settings, seed=1)
    torch.testing.assert_close(given[0], seen["A"] * 2 / 3)
    torch.testing.assert_close(given[1], seen["B"] / 3)


def test_sites_in_another_order_give_the_same_bits(sites, undisturbed, tmp_path):
    class Backwards(InlineWorkers):
        def __init__(self, specs):
            super().__init__(specs)
            self.sites = tuple(reversed(self.sites))

        def ask(self, method, arguments):
            return super().ask(method, dict(reversed(list(arguments.items()))))

    train_dsl(Backwards(workers_of(sites, tmp_path, SHORT)._specs), tmp_path, SHORT, seed=1)
    assert result(tmp_path) == result(undisturbed)
    assert (tmp_path / "curves.jsonl").read_bytes() == (undisturbed / "curves.jsonl").read_bytes()


class KillsTheHub(DslSite):
    """Kills its process in iteration 3, one after a checkpoint."""

    def step(self, iteration, **asked):
        answer = super().step(iteration, **asked)
        if iteration == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


class KillsWhileSaving(DslSite):
    """Kills its process when the sites have saved and the hub has not."""

    def save(self, iteration):
        super().save(iteration)
        if iteration == 4 and self._seed == SEEDS["B"]:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("factory", ["KillsTheHub", "KillsWhileSaving"])
def test_a_killed_training_goes_on_to_the_same_bits(sites, undisturbed, tmp_path, factory):
    arguments = (sites, tmp_path, SHORT, f"{__name__}:{factory}")
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert load_tensors(tmp_path / "training.safetensors")[1]["iteration"] == 2
    run(sites, tmp_path)
    for name in ("generator.safetensors", "curves.jsonl", "CARD.md", "exchange.json"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes(), name


class SendsNaN(DslSite):
    """Site B's gradient is not finite in iteration 3."""

    def step(self, iteration, **asked):
        answer = super().step(iteration, **asked)
        if iteration == 3 and self._seed == SEEDS["B"]:
            gradient = load(answer["gradient"])["gradient"]
            answer["gradient"] = self.broken(gradient)
        return answer

    def broken(self, gradient):
        return pack(gradient=gradient * torch.nan)


class SendsAnotherShape(SendsNaN):
    def broken(self, gradient):
        return pack(gradient=gradient[:1])


class SendsRubbish(SendsNaN):
    def broken(self, gradient):
        return b"\xff" * 100


class Fails(SendsNaN):
    def broken(self, gradient):
        raise RuntimeError("the site lost its power")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("SendsNaN", "NaN or infinity"),
        ("SendsAnotherShape", "of shape [1,"),
        ("SendsRubbish", "cannot be read"),
        ("Fails", "lost its power"),
    ],
)
def test_an_iteration_goes_on_without_a_site_that_cannot_be_used_and_says_so(sites, tmp_path, caplog, factory, why):
    """And the site, its discriminator as last saved, is back in the next one."""
    run(sites, tmp_path, SHORT, f"{__name__}:{factory}")
    assert "iteration 4 goes on without site B" in caplog.text
    assert [row["n_sites"] for row in curves(tmp_path)] == [2, 2, 2, 1, 2, 2]
    left_out = json.loads((tmp_path / "exchange.json").read_text())["sites"]["B"]["left_out"]
    assert left_out["n_iterations"] == 1 and left_out["first"] == left_out["last"] == 4
    assert why in left_out["last_reason"]
    weights, _ = load_tensors(tmp_path / "generator.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    if factory == "Fails":
        assert "goes on at iteration 4 as it was at 2" in caplog.text


class NobodyAnswers(DslSite):
    def step(self, iteration, **asked):
        raise RuntimeError("no power anywhere")


def test_an_iteration_without_any_site_ends_with_every_sites_reason(sites, tmp_path):
    with pytest.raises(RuntimeError, match=r"A: .*no power anywhere.*B: .*no power anywhere"):
        run(sites, tmp_path, SHORT, f"{__name__}:NobodyAnswers")


def test_sites_of_other_channels_are_refused(sites, tmp_path):
    colour = write_site(tmp_path / "colour", n_channels=3)
    with pytest.raises(InputError, match="B has n_channels 3, A has 1"):
        run({"A": sites["A"], "B": colour}, tmp_path / "out")


def test_a_folder_of_another_training_is_refused(sites, undisturbed):
    with pytest.raises(InputError, match="not this training's"):
        train_dsl(workers_of(sites, undisturbed, SHORT), undisturbed, SHORT, seed=2)
