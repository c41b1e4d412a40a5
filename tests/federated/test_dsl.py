"""DSL: the exchange is pix2pix training, resumes to the bit, goes on without a broken site; what leaves is known."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.dsl_sites import SIZE, write_site

from common.checkpoints import load_tensors
from common.errors import InputError
from common.image_set import ImageSet, load_image_set
from common.settings import to_dict
from engine.workers import InlineWorkers, WorkerSpec, check_plain
from federated.dsl.begin import load_facts
from federated.dsl.data import load_pairs
from federated.dsl.hub import build_generator, draw_batch, train_dsl
from federated.dsl.loss import Lite0Perceptual, clip_and_noise, discriminator_loss, generator_losses
from federated.dsl.model import PatchDiscriminator, one_hot, place
from federated.dsl.settings import DslSettings, learning_rate, total_iterations
from federated.dsl.site import DslSite
from federated.dsl.synthesis import generate, synthesise
from federated.dsl.tensors import pack

SMALL = {"base_channels": 4, "n_blocks": 1, "batch_size": 2, "n_iterations": 6, "n_checkpoints": 3}
SHORT = DslSettings(**SMALL, weight_perceptual=0.0)
SEEDS = {"A": 5, "B": 6}
N_IMAGES = {"A": 6, "B": 3}


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> dict[str, Path]:
    """Two sites whose images differ in number and size."""
    sizes = {"A": SIZE, "B": (30, 34)}
    return {
        site: write_site(tmp_path_factory.mktemp(site), sizes[site], n_train=N_IMAGES[site], seed=SEEDS[site])
        for site in SEEDS
    }


def workers_of(sites: dict[str, Path], out: Path, settings: DslSettings, factory: str | None = None) -> InlineWorkers:
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
    train_dsl(workers_of(sites, out, settings, factory), out, settings, seed=1)
    return out


def build_site(folder: Path, out: Path, settings: DslSettings) -> DslSite:
    return DslSite(str(folder / "slices"), str(folder / "prepare"), to_dict(settings), SEEDS["A"], "cpu", str(out))


def curves(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def result(out: Path) -> bytes:
    return (out / "generator.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(sites, tmp_path_factory) -> Path:
    return run(sites, tmp_path_factory.mktemp("undisturbed"))


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


# what crosses a site's border


def test_only_masks_gradients_fakes_statistics_and_numbers_cross(sites, tmp_path):
    """No pixel of a real image, no case's or patient's name, and nothing of a validation patient."""
    passed: list[tuple[str, object]] = []

    class Records(InlineWorkers):
        def ask(self, method, arguments):
            answers = super().ask(method, arguments)
            passed.extend((method, value) for value in (dict(arguments), answers))
            return answers

    train_dsl(Records(workers_of(sites, tmp_path, SHORT)._specs), tmp_path, SHORT, seed=1)
    blobs, texts = [], []

    def walk(value):
        if isinstance(value, dict):
            for item in value.items():
                walk(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        else:
            (blobs if isinstance(value, bytes) else texts).append(value)

    for _, value in passed:
        check_plain(value)
        walk(value)
    names = {name for blob in blobs for name in load(blob)}
    assert {method for method, _ in passed} == {"describe", "masks", "features", "restore", "step", "save"}
    assert names == {"masks", "fakes", "gradient", "mean", "covariance"}
    assert not [text for text in texts if isinstance(text, str) and ("case" in text or "patient" in text)]
    for folder in sites.values():
        stored = load_image_set(folder / "slices")
        assert np.unique(stored.images[0, 0, 16]).size > 5  # rows that could not be there by chance
        scaled = stored.images.astype(np.float32) / 127.5 - 1
        for blob in blobs:
            assert not any(row.tobytes() in blob for row in (*stored.images[:, 0, 16], *scaled[:, 0, 16]))
    masks = load(next(a["B"] for m, a in passed if m == "masks" and isinstance(a["B"], bytes)))["masks"]
    assert len(masks) == N_IMAGES["B"]


def test_the_record_counts_what_left(undisturbed):
    record = json.loads((undisturbed / "exchange.json").read_text())["sites"]
    assert record["A"]["masks"] == {"n": 6, "bytes": 6 * 32 * 40}
    assert record["B"]["gradients"] == {"n": 12, "bytes": 12 * 30 * 34 * 4}
    assert record["A"]["feature_statistics"]["bytes"] == 8 * 64 * 65
    card = (undisturbed / "CARD.md").read_text()
    assert "real segmentation of a real patient" in card and "bisection" in card
    assert re.search(r"\| B \| 3 \| .* \| 12 \|", card)


def test_a_hub_that_chooses_its_fakes_reads_a_real_image_as_the_card_says(sites, tmp_path):
    """The L1 term's gradient is a sign in every pixel: eight questions and eight bits are known."""
    site = build_site(sites["A"], tmp_path, DslSettings(**SMALL, weight_perceptual=0.0))
    image = load_image_set(sites["A"] / "slices").images[0, 0].astype(int)
    low, high = np.zeros(image.shape, int), np.full(image.shape, 255)
    for iteration in range(8):
        middle = (low + high) // 2
        fakes = torch.from_numpy((middle + 0.5).astype(np.float32) / 127.5 - 1)[None, None]
        asked = {"iteration": iteration, "rate": 2e-4, "keys": [0], "placements": [[0, 0, 0, 0]]}
        answer = site.step(**asked, size_px=list(image.shape), fakes=pack(fakes=fakes))
        above = load(answer["gradient"])["gradient"][0, 0].numpy() > 0
        low, high = np.where(above, low, middle + 1), np.where(above, middle, high)
    assert np.mean(low == image) > 0.99


def test_a_protected_gradient_is_bounded_and_noisy():
    draws = torch.Generator().manual_seed(0)
    gradient = torch.randn(4, 1, 60, 60, generator=draws) * torch.tensor([1e-6, 1, 10, 100])[:, None, None, None]
    clipped = clip_and_noise(gradient, 2.0, 0.0, draws)
    norms = clipped.flatten(1).norm(dim=1)
    torch.testing.assert_close(clipped[0], gradient[0])  # far below the bound: as it was
    torch.testing.assert_close(norms[1:], torch.full((3,), 2.0 / 4))
    noisy = clip_and_noise(gradient, 2.0, 3.0, draws)
    assert (noisy - clipped).std().item() == pytest.approx(3.0 * 2.0 / 4, rel=0.05)


def test_noise_without_a_bound_is_refused():
    with pytest.raises(InputError, match="dp_clip_norm"):
        DslSettings(dp_noise_multiplier=1.0)


# synthesis


def test_every_mask_becomes_an_image_of_its_site_that_depends_on_nothing_else(undisturbed, tmp_path):
    synthetic = synthesise(undisturbed, tmp_path / "one", seed=3)
    synthesise(undisturbed, tmp_path / "two", seed=3)
    facts = load_facts(undisturbed)
    shared = {"A": (38, 48), "B": (42, 48)}  # scales of 40 / 48 and 34 / 48 undone
    for site, size_px in (("A", SIZE), ("B", (30, 34))):
        for name in ("images.npy", "index.json", "labels.npy"):
            assert (tmp_path / "one" / site / name).read_bytes() == (tmp_path / "two" / site / name).read_bytes()
        stored = load_image_set(tmp_path / "one" / site)
        assert stored.images.shape == (N_IMAGES[site], 1, *size_px) and stored.images.dtype == np.uint8
        assert stored.info == facts[site].info
        labels = np.load(tmp_path / "one" / site / "labels.npy")
        assert labels.dtype == np.uint8 and labels.shape == (N_IMAGES[site], *shared[site])
    weights, _ = load_tensors(undisturbed / "generator.safetensors")
    network = build_generator(facts["A"], SHORT)
    network.load_state_dict(weights)
    entry = synthetic["A"].entries[4]
    alone = generate(network, facts["A"].masks[4:5], 1, [entry.seed], np.dtype(np.uint8))
    assert np.array_equal(alone[0], synthetic["A"].images[4])
    other = generate(network, facts["A"].masks[4:5], 1, [entry.seed + 1], np.dtype(np.uint8))
    assert not np.array_equal(other, alone)  # dropout is on: in evaluation mode the original's images were blank
    record = json.loads((tmp_path / "one" / "dist_fid.json").read_text())
    assert record["dist_fid"] == pytest.approx((6 * record["sites"]["A"] + 3 * record["sites"]["B"]) / 9)


def test_images_and_labels_are_shared_at_the_size_of_real_images(tmp_path):
    """Where slices were shrunk to the patch, the labels grow back with their images (D11)."""
    from dataset.slices import restore_labels, restore_scale

    folder = write_site(tmp_path, (16, 24))
    pairs = load_pairs(folder / "slices", folder / "prepare")
    scale = pairs.images.info.scale
    assert scale == 0.5
    labels = restore_labels(pairs.masks, scale)
    images = restore_scale(pairs.images.images.astype(np.float32), scale)[:, 0]
    assert labels.shape == images.shape == (6, 32, 48)
    for image, label in zip(images, labels):
        centres = [np.argwhere(disc).mean(axis=0) for disc in (image > 105, label == 1)]
        assert np.abs(centres[0] - centres[1]).max() < 0.3


def test_images_per_mask_share_the_mask_and_differ(undisturbed, tmp_path):
    synthetic = synthesise(undisturbed, tmp_path, seed=3, images_per_mask=2)
    labels = np.load(tmp_path / "B" / "labels.npy")
    images: ImageSet = synthetic["B"]
    assert len(images) == len(labels) == 6 and len({entry.seed for entry in images.entries}) == 6
    assert np.array_equal(labels[0], labels[1]) and not np.array_equal(images.images[0], images.images[1])
