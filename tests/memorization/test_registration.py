"""Copies are found under changes nobody told the search about, at the right original, and the alignment is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.image_makers import textures

from memorization.copy_score import REGISTRATION
from memorization.filter import p_values
from memorization.planted.copies import KINDS, plant
from memorization.registration.agreement import (
    Agreement,
    best_local_correlation,
    beyond_shared,
    shared_places,
    two_directions,
)
from memorization.registration.bands import POSED_NAMES
from memorization.registration.maps import (
    SIZE_PX,
    Poses,
    align,
    bend,
    displaced,
    grey,
    middle_map,
    pooled,
    smooth,
    symmetries,
    warped,
)
from memorization.registration.search import FINE, MIDDLE, Look, PartSearch

N_REFERENCES, N_HONEST = 10, 6
BY_NAME = {kind.name: kind for kind in KINDS}


def in_place() -> Poses:
    """The first query over the first reference as it is."""
    return Poses(torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1), torch.eye(2)[None], torch.zeros(1, 2))


@pytest.fixture(scope="module")
def site():
    """References, their index, honest images, and the honest likeness between references."""
    references = textures(N_REFERENCES, seed=1)
    index = REGISTRATION.index(references)
    honest = index.compare(references, np.eye(N_REFERENCES, dtype=bool)).values
    return references, index, textures(N_HONEST, seed=2), honest


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_copy_is_more_alike_its_original_than_any_honest_image(site, kind: str) -> None:
    references, index, others, honest = site
    for strength in BY_NAME[kind].strengths:
        copies = plant(BY_NAME[kind], strength, references[:1], others[:1], seed=3)
        found = index.compare(copies)
        assert (p_values(honest, found.values) == 1 / (N_REFERENCES + 1)).all(), strength


def test_kinds_that_are_on_no_list_are_found_too(site) -> None:
    """A swirl, every second column gone, a solarised image, a grid of holes, and a mirrored half of it."""
    references, index, _, honest = site
    image = references[0, 0].astype(float)
    line = np.arange(SIZE_PX) - (SIZE_PX - 1) / 2
    rows, columns = np.meshgrid(line, line, indexing="ij")
    angle = 0.5 * np.exp(-(np.hypot(rows, columns) / 20))
    place = [np.cos(angle) * rows - np.sin(angle) * columns, np.sin(angle) * rows + np.cos(angle) * columns]
    swirl = ndimage.map_coordinates(image, [axis + (SIZE_PX - 1) / 2 for axis in place], order=1, mode="nearest")
    halved = np.repeat(image[:, ::2], 2, axis=1)
    solarised = np.where(image > 170, 340 - image, image)
    holes = np.where((rows.astype(int) % 16 < 4) & (columns.astype(int) % 16 < 4), 0, image)
    half = np.where(columns < 0, image[:, ::-1], 128)
    unseen = np.stack([swirl, halved, solarised, holes, half])[:, None].clip(0, 255).astype(np.uint8)
    found = index.compare(unseen)
    assert (p_values(honest, found.values) == 1 / (N_REFERENCES + 1)).all()


def test_honest_images_spread_over_the_levels(site) -> None:
    _, index, others, honest = site
    p = p_values(honest, index.compare(others).values)
    assert p.max() > 0.3 and np.mean(p <= 1 / (N_REFERENCES + 1)) <= 0.5


def test_the_likeness_does_not_depend_on_what_else_is_compared(site) -> None:
    references, index, others, _ = site
    together = index.compare(np.concatenate([others, references]))
    alone = np.concatenate([index.compare(image[None]).values for image in others])
    np.testing.assert_allclose(together.values[: len(others)], alone, atol=2e-3)


def test_images_of_the_same_patient_are_left_out(site) -> None:
    references, index, _, _ = site
    found = index.compare(references[:3], np.arange(3)[:, None] == np.arange(N_REFERENCES))
    assert (found.nearest != np.arange(3)[:, None]).all()


def test_images_of_the_same_patient_are_left_out_where_nothing_agrees_at_all() -> None:
    """All scores are equal then, and the first of equals is the image itself."""
    flat = np.full((3, 1, SIZE_PX, SIZE_PX), 90, np.uint8)
    found = REGISTRATION.index(flat).compare(flat, np.eye(3, dtype=bool))
    assert (found.nearest != np.arange(3)[:, None]).all()


def framed(images: np.ndarray) -> np.ndarray:
    """With corners cut off, a dark box and burnt-in text, as endoscopes and scanners leave them on every image."""
    line = np.abs(np.arange(SIZE_PX) - (SIZE_PX - 1) / 2)
    marked = np.where(line[:, None] + line > 52, 0, images)
    marked[..., 44:, :20] = 0
    marked[..., 4:9, 6:40] = np.where(np.random.default_rng(0).random((5, 34)) < 0.5, 255, marked[..., 4:9, 6:40])
    return marked.astype(np.uint8)


def lettered(images: np.ndarray) -> np.ndarray:
    """With a black strip of text on top, the same to the last bit on every image."""
    marked = images.copy()
    marked[..., :12, :] = 0
    marked[..., 2:9, 6:56] = np.where(np.random.default_rng(0).random((7, 50)) < 0.5, 255, 0)
    return marked


@pytest.mark.parametrize("mark", [framed, lettered])
def test_a_pasted_part_is_found_though_all_images_have_a_frame_and_burnt_in_text_in_common(
    mark: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Places that many share are exactly alike: were they counted, no part could be more alike than honest images."""
    references, others = mark(textures(24, seed=11)), mark(textures(24, seed=12))
    index = REGISTRATION.index(references)
    honest = index.compare(others).values
    part = BY_NAME["paste elsewhere"]
    copies = index.compare(plant(part, 0.125, references, others, seed=0))
    assert (p_values(honest, copies.values) == 1 / 25).mean() > 0.8  # framed 0.17, lettered 0 if what they share counts


def test_a_place_is_its_own_unless_three_others_that_count_show_the_same_and_are_other_scenes() -> None:
    alike = torch.zeros(8, 8, 10)
    alike[:, 1:5, 0] = 1  # one place that every reference shares with four others
    alike[6] = 1  # a reference whose others are alike all over: of one patient
    shared = shared_places(8, lambda these, others: alike[these, others])
    assert shared.shared[6].eq(0).all() and shared.shared[0, 1:].eq(0).all() and shared.shared[[0, 5, 7], 0].eq(1).all()
    without = torch.ones(2, 8, dtype=torch.bool)
    without[1, 1:3] = False  # an image that calibrates, and its patient's other one
    assert shared.among(torch.tensor([0, 0]), without)[:, 0].tolist() == [1, 0]
    assert shared_places(3, lambda these, others: torch.ones(len(these), 4)).shared.eq(0).all()  # too few to tell


def test_what_others_show_too_says_nothing_unless_the_correlation_is_of_another_order() -> None:
    shared = torch.tensor([0.2, 0.6, 0.75, 0.95, 0.95, 0.95, 0.99, 1.0])
    found = torch.tensor([0.9, 0.9, 0.8, 0.96, 0.99, 0.9995, 1.0, 1.0])
    expected = torch.tensor([0.9, 0.9, 0.4, 0.0, 0.2, 0.96, 0.0, 0.0])
    torch.testing.assert_close(beyond_shared(found, shared).clamp_min(0), expected)


def test_a_place_with_one_straight_edge_tells_nothing_though_any_other_edge_is_like_it() -> None:
    rows = torch.arange(SIZE_PX, dtype=torch.float32)
    for direction in (0.0, 0.4, 1.2):
        across = rows[:, None] * np.sin(direction) + rows[None] * np.cos(direction)
        edge = torch.tanh((across - across.mean()) / 2)[None, None]
        softer = torch.tanh((across - across.mean()) / 3)[None, None]
        middle = (across.flatten() - across.mean()).abs().view(16, 4, 16, 4)[:, 0, :, 0].flatten() < 2
        assert best_local_correlation(edge, softer, 9)[0, middle].min() > 0.9
        assert two_directions(edge, 9)[0, middle].max() < 0.2
    assert two_directions(torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)), 9).min() == 1


def test_an_image_that_calibrates_is_as_alike_as_if_the_index_had_never_held_it() -> None:
    """Else it would have a say in what is shared, as a new patient's image has not, and look less alike than that."""
    images = framed(textures(7, seed=13))
    inside = REGISTRATION.index(images).compare(images[:2], np.eye(7, dtype=bool)[:2] | (np.arange(7) < 2))
    outside = REGISTRATION.index(images[2:]).compare(images[:2])
    np.testing.assert_allclose(inside.values, outside.values, atol=2e-3)


def test_means_over_windows_and_gaussians_are_scipys() -> None:
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for sigma in (0.7, 2.5):
        radius = int(np.ceil(3 * sigma))
        expected = ndimage.gaussian_filter(
            x.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, radius, radius)
        )
        np.testing.assert_allclose(smooth(x, sigma).numpy(), expected, atol=1e-6)
    for window in (3, 9):
        inside = ndimage.uniform_filter(np.ones((32, 32)), window, mode="constant")
        expected = ndimage.uniform_filter(x.double().numpy(), (0, 0, window, window), mode="constant") / inside
        np.testing.assert_allclose(pooled(x, window).numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(pooled(x, window, 16).numpy(), expected[:, :, ::2, ::2], atol=1e-6)


@pytest.mark.parametrize("look", [MIDDLE, FINE], ids=["middle", "fine"])
@pytest.mark.parametrize("symmetry", range(8))
def test_a_part_is_found_under_every_symmetry_and_sign_at_its_exact_shift(symmetry: int, look: Look) -> None:
    references = textures(4, seed=5)
    pixels = grey(references)
    matrix = symmetries()[symmetry]
    posed, _ = warped(pixels[2:3], matrix.T[None], torch.zeros(1, 2), SIZE_PX)  # the copy
    query = (1 - posed if symmetry % 2 else posed).roll((3, -5), (2, 3))
    best = PartSearch(pixels, look).votes(query, 0, 1, torch.arange(4), torch.ones(4).bool())
    assert best.reference.tolist() == [2] and best.sign.tolist() == [-1.0 if symmetry % 2 else 1.0]
    seen, inside = warped(query, best.matrix, best.shift, SIZE_PX)
    difference = ((seen - (1 - pixels[2] if symmetry % 2 else pixels[2])).abs() * inside)[:, :, 8:-8, 8:-8]
    assert difference.mean() < 1e-3


def test_alignment_recovers_an_affine_map_and_ignores_what_is_covered() -> None:
    pixels = grey(textures(1, seed=6))
    matrix = torch.tensor([[[0.98, 0.09], [-0.12, 1.07]]])
    copy, _ = warped(pixels, matrix, torch.tensor([[0.04, -0.03]]), SIZE_PX)
    copy[:, :, :24, :30] = 0.5
    found, agreement = align(middle_map(copy), middle_map(pixels), in_place(), 16)
    inverse = torch.linalg.inv(matrix)
    np.testing.assert_allclose(found.matrix.numpy(), inverse.numpy(), atol=0.02)
    assert agreement > 0.5


def test_a_bend_is_found_again_to_a_third_of_a_pixel_and_the_detail_agrees_then() -> None:
    pixels = grey(textures(1, seed=7))
    random = torch.randn(2, 1, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))
    field = smooth(random, 9.0).view(1, 2, SIZE_PX, SIZE_PX)
    field = 1.5 * field / field.norm(dim=1).median()
    copy, _ = displaced(pixels, torch.eye(2)[None], torch.zeros(1, 2), field)
    found = bend(copy, pixels, in_place())
    laid_back, _ = displaced(copy, torch.eye(2)[None], torch.zeros(1, 2), found)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    line = torch.linspace(-1, 1, SIZE_PX)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    places = places + found.permute(0, 2, 3, 1) * 2 / (SIZE_PX - 1)  # there the first bend moves back
    residual = found + torch.nn.functional.grid_sample(field, places, align_corners=True)
    assert residual[inner].norm(dim=1).median() < 0.33
    assert (laid_back - pixels)[inner].abs().mean() < 0.4 * (copy - pixels)[inner].abs().mean()


def test_a_noisy_copy_is_like_its_original_once_the_noise_is_taken_off_and_a_stranger_gains_nothing() -> None:
    pixels, stranger = grey(textures(2, seed=8)).split(1)
    noisy = pixels + 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    agreement = Agreement(pixels)
    plain, corrected = (POSED_NAMES.index(f"0.7 to 1.6 px, frame{how}") for how in ("", ", noise taken off"))
    of_copy, of_stranger = (
        1 - torch.exp(-agreement.measure(x, in_place(), torch.ones(1, 1).bool())[0]) for x in (noisy, stranger)
    )
    assert of_copy[plain] < 0.8 and of_copy[corrected] > 0.9
    assert abs(of_stranger[corrected] - of_stranger[plain]) < 0.1


def test_a_copy_of_light_and_shade_alone_is_seen_by_its_grey_values() -> None:
    """As a generator makes them: the detail is its own (docs/results/memorization.md)."""
    references = grey(textures(2, seed=9))
    shade = smooth(references[:1], 5.0) + 0.5 * (references[1:] - smooth(references[1:], 5.0))
    values = Agreement(references[:1]).measure(shade, in_place(), torch.ones(1, 1).bool())[0]
    coarser = POSED_NAMES.index("coarser than 4 px")
    assert values[coarser] > -np.log(1 - 0.95) and values[: POSED_NAMES.index("2.5 to 6 px, best 50 %")].max() < 2


def test_the_likeness_does_not_depend_on_the_number_of_threads(site) -> None:
    references, index, _, _ = site
    images = np.concatenate([textures(7, seed=4), references])  # a block and one image more
    n_threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(index.compare(images))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(n_threads)
    assert np.array_equal(found[0].values, found[1].values) and np.array_equal(found[0].nearest, found[1].nearest)
