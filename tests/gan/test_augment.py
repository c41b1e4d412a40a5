"""DiffAugment against a loop with the same random numbers, its first and second derivatives included."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from support.slow_references import assert_equal_to_second_order, normal
from torch import Tensor

from common.plan import Pair
from gan.augment import augment


def slow_color(image: Tensor, numbers: list[float]) -> Tensor:
    brightness, saturation, contrast = numbers[0] - 0.5, numbers[1] * 2, numbers[2] + 0.5
    channels, height, width = image.shape
    pixels = {}
    for row, column in itertools.product(range(height), range(width)):
        bright = [image[channel, row, column] + brightness for channel in range(channels)]
        grey = sum(bright) / channels
        for channel in range(channels):
            pixels[channel, row, column] = grey + (bright[channel] - grey) * saturation
            if channels == 1:
                pixels[channel, row, column] = bright[channel]
    mean = sum(pixels.values()) / len(pixels)
    return torch.stack([mean + (pixels[at] - mean) * contrast for at in sorted(pixels)]).reshape(image.shape)


def slow_translation(image: Tensor, numbers: list[float]) -> Tensor:
    _, height, width = image.shape
    reach = [math.floor(size / 8 + 0.5) for size in (height, width)]
    # the numbers' lowest are the farthest down and to the right
    down, right = (r - math.floor(number * (2 * r + 1)) for r, number in zip(reach, numbers, strict=True))
    moved = torch.zeros_like(image)
    for row, column in itertools.product(range(height), range(width)):
        if 0 <= row - down < height and 0 <= column - right < width:
            moved[:, row, column] = image[:, row - down, column - right]
    return moved


def slow_cutout(image: Tensor, numbers: list[float]) -> Tensor:
    _, height, width = image.shape
    ranges = []
    for size, number in zip((height, width), numbers, strict=True):
        length = math.floor(size / 2 + 0.5)
        # an even length has its centre between two pixels: one position more
        first = math.floor(number * (size + 1 if length % 2 == 0 else size)) - length // 2
        ranges.append(range(first, first + length))
    cut = image.clone()
    for row, column in itertools.product(range(height), range(width)):
        if row in ranges[0] and column in ranges[1]:
            cut[:, row, column] = 0
    return cut


SLOW_AUGMENTATIONS = {"color": (slow_color, 3), "translation": (slow_translation, 2), "cutout": (slow_cutout, 2)}


@pytest.mark.parametrize("n_channels,size", [(1, (4, 12)), (3, (5, 9))])
@pytest.mark.parametrize("names", [("color",), ("translation",), ("cutout",), ("color", "translation", "cutout")])
def test_augmentations_are_those_of_a_loop_with_the_same_random_numbers(names, n_channels: int, size: Pair) -> None:
    n_images = 6

    def slow(images: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(7)
        for name in names:
            function, n_numbers = SLOW_AUGMENTATIONS[name]
            numbers = [torch.rand(n_images, generator=random).tolist() for _ in range(n_numbers)]
            images = torch.stack([function(image, list(drawn)) for image, *drawn in zip(images, *numbers, strict=True)])
        return images

    images = normal(n_images, n_channels, *size)
    assert_equal_to_second_order(lambda x: augment(x, names, torch.Generator().manual_seed(7)), slow, [images])
