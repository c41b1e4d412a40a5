"""DSL's networks, losses and distances: the numbers of the papers and of closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.errors import InputError
from federated.dsl.features import FeatureStatistics, feature_statistics, frechet_distance, pool_statistics
from federated.dsl.loss import Lite0Perceptual, Vgg16Perceptual, discriminator_loss, generator_losses
from federated.dsl.model import MaskGenerator, PatchDiscriminator, one_hot
from federated.dsl.settings import DslSettings


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("size_px", [(31, 50), (24, 37), (32, 32)])
def test_images_have_the_size_of_their_masks_whatever_it_is(n_channels, size_px):
    masks = torch.zeros(2, 2, *size_px)
    masks[:, 0, 5:12, 8:20] = 1
    images = MaskGenerator(2, n_channels, base_channels=4, n_blocks=1)(masks, [1, 2])
    assert images.shape == (2, n_channels, *size_px)
    assert images.abs().max() <= 1 and not torch.equal(images[0], images[1])
    logits = PatchDiscriminator(2, n_channels, base_channels=4)(masks, images)
    assert logits.shape[:2] == (2, 1) and logits.isfinite().all()


@pytest.mark.parametrize(("n_labels", "n_channels"), [(1, 1), (4, 3)])
def test_the_papers_networks_have_the_papers_numbers_of_weights(n_labels, n_channels):
    """Closed forms of ResNet-9 and the 70 x 70 PatchGAN; the first is pix2pix's 11.378 million for 3 -> 3."""

    def n_weights(network):
        return sum(parameter.numel() for parameter in network.parameters())

    def conv(n_in, n_out, kernel):
        return n_in * n_out * kernel**2 + n_out

    ends = conv(n_labels, 64, 7) + conv(64, n_channels, 7)
    scaling = conv(64, 128, 3) + conv(128, 256, 3) + conv(256, 128, 3) + conv(128, 64, 3)
    assert n_weights(MaskGenerator(n_labels, n_channels)) == ends + scaling + 18 * conv(256, 256, 3)
    patches = conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4) + conv(512, 1, 4)
    assert n_weights(PatchDiscriminator(n_labels, n_channels)) == conv(n_labels + n_channels, 64, 4) + patches
    assert n_weights(MaskGenerator(3, 3)) == 11_378_179


def test_a_patch_of_the_discriminator_sees_70_pixels():
    network = PatchDiscriminator(1, 1, base_channels=2)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    seen = 1
    for layer in reversed(convolutions):
        seen = (seen - 1) * layer.stride[0] + layer.kernel_size[0]
    assert seen == 70


def test_weights_begin_as_pix2pix_begins():
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for n, p in MaskGenerator(1, 1).named_parameters() if n.endswith("weight")])
    assert abs(weights.std().item() - 0.02) < 1e-4 and abs(weights.mean().item()) < 1e-4


def test_organs_are_channels_and_not_grey_levels():
    """The original passed label / 4 in one channel."""
    labels = torch.tensor([[[0, 1], [2, 3]]])
    assert one_hot(labels, 3)[0].tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 1]]]


def test_the_losses_are_those_of_the_specification():
    torch.manual_seed(0)
    network = PatchDiscriminator(1, 1, base_channels=4)
    masks, fakes, reals = (torch.rand(2, 1, 32, 32) for _ in range(3))
    settings = DslSettings(weight_perceptual=2.0)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    of_fakes, of_reals = network(masks, fakes), network(masks, reals)
    expected = 0.5 * (bce(of_fakes, torch.zeros_like(of_fakes)) + bce(of_reals, torch.ones_like(of_reals)))
    torch.testing.assert_close(discriminator_loss(network, masks, fakes, reals, 0.5), expected)
    mse = torch.nn.functional.mse_loss
    losses = generator_losses(network, mse, masks, fakes, reals, settings)
    torch.testing.assert_close(losses["gan"], bce(of_fakes, torch.ones_like(of_fakes)))
    torch.testing.assert_close(losses["l1"], 150 * (fakes - reals).abs().mean())
    torch.testing.assert_close(losses["perceptual"], 2 * mse(fakes, reals))


@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_the_offline_perceptual_loss_grows_with_the_blur_and_couples_no_images(n_channels):
    perceptual = Lite0Perceptual()
    rng = torch.Generator().manual_seed(0)
    reals = torch.rand(2, n_channels, 48, 56, generator=rng) * 2 - 1

    def blurred(width):
        return torch.nn.functional.avg_pool2d(reals, width, 1, width // 2)

    values = [perceptual(fakes, reals).item() for fakes in (reals, blurred(3), blurred(9))]
    assert values[0] == 0 < values[1] < values[2]
    alone = [perceptual(blurred(3)[i : i + 1], reals[i : i + 1]).item() for i in range(2)]
    assert values[1] == pytest.approx(np.mean(alone), rel=1e-4)


def test_vgg16_is_taken_from_a_file_and_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):
        features = vgg16(weights=None).features[:23]
    features.to_empty(device="cpu")
    for weight in features.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    save_file({f"features.{k}": v.contiguous() for k, v in features.state_dict().items()}, tmp_path / "vgg.safetensors")
    perceptual = Vgg16Perceptual(tmp_path / "vgg.safetensors")
    fakes, reals = torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    expected = []
    for last in (4, 9, 16, 23):
        pair = (features[:last](images.repeat(1, 3, 1, 1)) for images in (fakes, reals))
        expected.append(torch.nn.functional.mse_loss(*pair))
    torch.testing.assert_close(perceptual(fakes, reals), torch.stack(expected).mean())
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not hold VGG-16"):
        Vgg16Perceptual(tmp_path / "other.safetensors")


def test_frechet_distance_of_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((64, 64)) / 8
    a = FeatureStatistics(rng.standard_normal(64), root @ root.T, 100)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    shifted = FeatureStatistics(a.mean + 0.5, 4 * a.covariance, 100)  # sqrt(S 4S) = 2S: the traces leave one S
    assert frechet_distance(a, shifted) == pytest.approx(64 * 0.25 + np.trace(a.covariance))
    axes = [FeatureStatistics(np.zeros(64), np.diag(rng.uniform(0, 2, 64)), 9) for _ in range(2)]
    roots = [np.sqrt(np.diag(one.covariance)) for one in axes]
    assert frechet_distance(*axes) == pytest.approx(np.sum((roots[0] - roots[1]) ** 2))


def test_pooled_statistics_are_those_of_all_images_together():
    images = np.random.default_rng(0).integers(0, 255, (7, 1, 32, 32), dtype=np.uint8)
    together = feature_statistics(images, "cpu")
    pooled = pool_statistics([feature_statistics(images[:3], "cpu"), feature_statistics(images[3:], "cpu")])
    np.testing.assert_allclose(pooled.mean, together.mean, atol=1e-6)
    np.testing.assert_allclose(pooled.covariance, together.covariance, atol=1e-6)
