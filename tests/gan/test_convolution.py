"""The three bilinear operations against naive loops, and all their derivatives by finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import gan.convolution
from gan.convolution import Window, correlate, spread, weight_products
from gan.functions import gradients_of_activations

CASES = [
    (Window((1, 1), (1, 1)), (3, 3)),
    (Window((2, 2)), (3, 3)),
    (Window((2, 1), (0, 1)), (3, 3)),
    (Window((1, 3), (1, 0)), (3, 1)),
    (Window((2, 2)), (1, 1)),
]


@pytest.fixture(params=["by products", "by convolutions"], autouse=True)
def way(request, monkeypatch) -> None:
    """Both ways of a CPU, whatever the number of channels."""
    monkeypatch.setattr(gan.convolution, "N_CHANNELS_FOR_PRODUCTS", 1 if request.param == "by products" else 10**9)


def drawn(window: Window, kernel: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """x (2, 3, h, w), y (2, 4, 4, 3) and weights (4, 3, *kernel)."""
    random = torch.Generator().manual_seed(0)
    y = torch.randn(2, 4, 4, 3, generator=random, dtype=torch.float64)
    x = torch.randn(2, 3, *window.size_of_x((4, 3), kernel), generator=random, dtype=torch.float64)
    return x, y, torch.randn(4, 3, *kernel, generator=random, dtype=torch.float64)


def pairs(window: Window, kernel: tuple[int, int], x: Tensor) -> list[tuple[tuple[int, ...], ...]]:
    """(pixel of x, pixel of y, tap) wherever a tap of the kernel over a pixel of y lies on one of x."""
    found = []
    for i, j, row, column in itertools.product(range(4), range(3), range(kernel[0]), range(kernel[1])):
        pixel = (i * window.stride[0] - window.padding[0] + row, j * window.stride[1] - window.padding[1] + column)
        if 0 <= pixel[0] < x.shape[2] and 0 <= pixel[1] < x.shape[3]:
            found.append((pixel, (i, j), (row, column)))
    return found


@pytest.mark.parametrize(("window", "kernel"), CASES)
def test_each_operation_is_its_sum_over_pixels_and_taps(window: Window, kernel: tuple[int, int]) -> None:
    x, y, weight = drawn(window, kernel)
    expected_x, expected_y, expected_weight = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(weight)
    for (h, w), (i, j), (row, column) in pairs(window, kernel, x):
        expected_y[:, :, i, j] += x[:, :, h, w] @ weight[:, :, row, column].t()
        expected_x[:, :, h, w] += y[:, :, i, j] @ weight[:, :, row, column]
        expected_weight[:, :, row, column] += y[:, :, i, j].t() @ x[:, :, h, w]
    torch.testing.assert_close(correlate(x, weight, window), expected_y)
    torch.testing.assert_close(spread(y, weight, window, (x.shape[2], x.shape[3])), expected_x)
    torch.testing.assert_close(weight_products(x, y, window, kernel), expected_weight)


@pytest.mark.parametrize(("window", "kernel"), CASES[1:3])
def test_first_and_second_derivatives_are_those_of_finite_differences(window: Window, kernel: tuple[int, int]) -> None:
    x, y, weight = (tensor.requires_grad_(True) for tensor in drawn(window, kernel))
    size_x = (x.shape[2], x.shape[3])
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for operation, inputs in (
        (lambda a, b, c: correlate(a, b, window, c), (x, weight, bias)),
        (lambda a, b: spread(a, b, window, size_x), (y, weight)),
        (lambda a, b: weight_products(a, b, window, kernel), (x, y)),
    ):
        assert torch.autograd.gradcheck(operation, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(operation, inputs, fast_mode=True)


def test_a_derivative_by_an_image_alone_computes_none_by_weights() -> None:
    x, _, weight = (tensor.requires_grad_(True) for tensor in drawn(*CASES[0]))
    with gradients_of_activations():
        by_x, by_weight = torch.autograd.grad(correlate(x, weight, CASES[0][0]).sum(), (x, weight), allow_unused=True)
    assert by_x.any() and by_weight is None
    (by_weight,) = torch.autograd.grad(correlate(x, weight, CASES[0][0]).sum(), weight)
    assert by_weight.any()
