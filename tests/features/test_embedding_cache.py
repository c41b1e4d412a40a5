"""Every image is embedded once: what counts as the same image and the same embedder, and files that are not whole."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from features.embedders import IMAGES_PER_FILE, NetworkEmbedder, build_embedder, cached

IMAGENET = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


class CountingNetwork(torch.nn.Module):
    """Two weights; counts the images that pass."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.n_passed = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.n_passed += len(images)
        parts = images.unfold(2, 56, 56).unfold(3, 56, 56).mean(dim=(1, 4, 5)).flatten(1)
        return self.weight + parts


def network_embedder(network: torch.nn.Module, name: str = "counting", size: int = 4) -> NetworkEmbedder:
    return NetworkEmbedder(name, network, 16, IMAGENET, "bilinear", size, "cpu")


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 16, 12), dtype=np.uint8)


def test_a_second_call_passes_no_image_through_the_network(tmp_path: Path) -> None:
    network, images = CountingNetwork(), pictures(IMAGES_PER_FILE + 20)
    expected = network_embedder(CountingNetwork()).embed(images)
    np.testing.assert_array_equal(cached(network_embedder(network), tmp_path).embed(images), expected)
    assert network.n_passed == len(images)
    again = cached(network_embedder(network), tmp_path)
    order = np.random.default_rng(1).permutation(len(images))
    np.testing.assert_array_equal(again.embed(images[order]), expected[order])
    np.testing.assert_array_equal(again.embed(images[[3, 3, 5]]), expected[[3, 3, 5]])
    assert network.n_passed == len(images)
    again.embed(np.concatenate([images[:5], pictures(2, seed=9), pictures(2, seed=9)]))
    assert network.n_passed == len(images) + 2  # the new ones, once each
    assert again.embed(images[:0]).shape == (0, 16)


def test_mirrored_images_other_shapes_and_other_types_are_other_images(tmp_path: Path) -> None:
    network, images = CountingNetwork(), pictures(3)
    embedder = cached(network_embedder(network), tmp_path)
    alone = network_embedder(CountingNetwork())
    for others in (images, images[..., ::-1], images.reshape(3, 1, 12, 16), images.astype(np.uint16)):
        np.testing.assert_array_equal(embedder.embed(others), alone.embed(others))
    assert network.n_passed == 12


@pytest.mark.parametrize("change", [{"network": CountingNetwork(2.0)}, {"name": "other"}])
def test_another_embedder_or_other_weights_find_nothing(tmp_path: Path, change: dict) -> None:
    images = pictures(4)
    cached(network_embedder(CountingNetwork()), tmp_path).embed(images)
    other = network_embedder(**{"network": CountingNetwork(), **change})
    np.testing.assert_array_equal(cached(other, tmp_path).embed(images), other.embed(images))
    assert other._network.n_passed == 8


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64])
def test_a_file_that_is_not_whole_counts_for_nothing_and_is_replaced(tmp_path: Path, spoil) -> None:
    network, images = CountingNetwork(), pictures(4)
    expected = cached(network_embedder(network), tmp_path).embed(images)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(spoil(path.read_bytes()))
    path.with_name(f".half.{path.name}").write_bytes(b"of a process that was killed")
    for n_passed in (8, 8):
        np.testing.assert_array_equal(cached(network_embedder(network), tmp_path).embed(images), expected)
        assert network.n_passed == n_passed


def _embed_all(folder: Path, seed: int) -> None:
    embedder = cached(network_embedder(CountingNetwork()), folder)
    for start in np.random.default_rng(seed).permutation(40):
        embedder.embed(pictures(60)[start : start + 20])


def test_two_processes_at_once_leave_features_that_are_right(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_embed_all, args=(tmp_path, seed)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    network = CountingNetwork()
    found = cached(network_embedder(network), tmp_path).embed(pictures(60))
    assert network.n_passed <= 1  # of the last image, which only one of the starts reaches
    np.testing.assert_array_equal(found, network_embedder(CountingNetwork()).embed(pictures(60)))


def test_features_do_not_depend_on_the_batch_they_were_embedded_in() -> None:
    """Else a stage's result would depend on which stage came first."""
    images = pictures(5)
    whole, others = (build_embedder("efficientnet_lite0", batch_size=size, device="cpu") for size in (5, 2))
    np.testing.assert_array_equal(whole.embed(images), others.embed(images[::-1])[::-1])
