"""DSL: what crosses a site's border is known and counted, and what the generator makes depends on nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.dsl_sites import N_IMAGES, SEEDS, SHORT, SIZE, SMALL, workers_of, write_site

from common.checkpoints import load_tensors
from common.errors import InputError
from common.image_set import ImageSet, load_image_set
from common.settings import to_dict
from engine.workers import InlineWorkers, check_plain
from federated.dsl.begin import load_facts
from federated.dsl.data import load_pairs
from federated.dsl.hub import build_generator, train_dsl
from federated.dsl.loss import clip_and_noise
from federated.dsl.settings import DslSettings
from federated.dsl.site import DslSite
from federated.dsl.synthesis import generate, synthesise
from federated.dsl.tensors import pack


def build_site(folder: Path, out: Path, settings: DslSettings) -> DslSite:
    return DslSite(str(folder / "slices"), str(folder / "prepare"), to_dict(settings), SEEDS["A"], "cpu", str(out))


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
