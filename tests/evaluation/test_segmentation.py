"""Dice, IoU, HD95 and NSD against closed forms and against all pairs of border pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.segmentation import METRICS, score_case

LABELS = {"background": 0, "object": 1}


def square(shape, top, left, size):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


def test_a_depth_one_volume_scores_like_the_2d_image():
    """D4: as a 3D object a PNG is all surface: 1600 border pixels instead of 156 for a square of 40, HD95 9 for 10."""
    reference, prediction = square((100, 100), 20, 20, 40), square((100, 100), 20, 30, 40)
    flat = score_case(reference, prediction, (1, 1), LABELS)
    assert flat[0].hd95 == 10.0
    assert score_case(reference[None], prediction[None], (999, 1, 1), LABELS) == flat
    assert score_case(reference[..., None], prediction[..., None], (1, 1, 999), LABELS) == flat


def test_shifted_squares_have_their_closed_form_scores():
    (score,) = score_case(square((64, 64), 10, 10, 20), square((64, 64), 10, 14, 20), (1, 1), LABELS)
    assert score.dice == pytest.approx(2 * 20 * 16 / (2 * 400))
    assert score.iou == pytest.approx(320 / 480)
    assert score.hd95 == 4.0
    # within 2 px of the other border: 18 pixels of the top row, 18 of the bottom row, 4 of the right column
    assert score.nsd == pytest.approx(40 / 76)


def test_anisotropic_spacing_counts_in_mm():
    reference, prediction = np.zeros((2, 9, 12, 12), np.uint8)
    reference[2, 5, 5], prediction[5, 5, 5] = 1, 1
    (score,) = score_case(reference, prediction, (3.0, 0.5, 0.5), LABELS, nsd_tolerance=9.0)
    assert score.hd95 == 9.0 and score.nsd == 1.0 and score.dice == 0.0
    (score,) = score_case(reference, prediction, (3.0, 0.5, 0.5), LABELS, nsd_tolerance=8.9)
    assert score.nsd == 0.0


def test_identical_masks_are_perfect_even_where_they_fill_the_image():
    full = np.ones((5, 7), np.uint8)
    (score,) = score_case(full, full, (1, 1), LABELS)
    assert (score.dice, score.iou, score.hd95, score.nsd) == (1.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("missed_is_reference", [True, False])
def test_a_total_miss_is_penalised_never_dropped(missed_is_reference):
    """D4: the original made a miss NaN, so that missing an object improved the mean HD95."""
    full, empty = square((30, 40), 0, 0, 1), np.zeros((30, 40), np.uint8)
    pair = (empty, full) if missed_is_reference else (full, empty)
    (miss,) = score_case(*pair, (2.0, 1.0), LABELS)
    assert (miss.dice, miss.iou, miss.nsd) == (0.0, 0.0, 0.0) and miss.hd95 == math.hypot(60, 40)
    (worst_hit,) = score_case(full, square((30, 40), 29, 39, 1), (2.0, 1.0), LABELS)
    assert worst_hit.hd95 < miss.hd95


def test_both_empty_is_undefined_and_leaves_other_labels_alone():
    mask = square((16, 16), 4, 4, 6)
    absent, present = score_case(mask, mask, (1, 1), {"background": 0, "absent": 2, "present": 1})
    assert all(math.isnan(getattr(absent, name)) for name in METRICS)
    assert present.label == "present" and present.dice == 1.0


def test_unfit_inputs_are_refused():
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        score_case(mask, mask[:3], (1, 1), LABELS)
    with pytest.raises(ValueError, match="spacing"):
        score_case(mask, mask, (999, 1, 1), LABELS)
    with pytest.raises(ValueError, match="spacing"):
        score_case(mask, mask, (0, 1), LABELS)


def border_points(mask, spacing):
    """Border by definition, pixel by pixel."""
    points = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = index.copy()
                neighbour[axis] += step
                if not (0 <= neighbour[axis] < mask.shape[axis]) or not mask[tuple(neighbour)]:
                    points.append(index * spacing)
                    break
            else:
                continue
            break
    return np.array(points)


@st.composite
def mask_pairs(draw):
    shape = draw(st.one_of(st.tuples(*[st.integers(2, 7)] * 2), st.tuples(*[st.integers(2, 4)] * 3)))
    spacing = tuple(draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in shape)
    masks = [draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) for _ in range(2)]
    return masks[0], masks[1], spacing


@settings(max_examples=80, deadline=None)
@given(mask_pairs())
def test_distances_equal_those_of_all_pairs_of_border_pixels(pair):
    reference, prediction, spacing = pair
    (score,) = score_case(reference, prediction, spacing, LABELS, nsd_tolerance=1.2)
    if not reference.any() or not prediction.any():
        assert math.isnan(score.dice) == (not reference.any() and not prediction.any())
        return
    borders = [border_points(mask.astype(bool), np.array(spacing)) for mask in (reference, prediction)]
    between = np.linalg.norm(borders[0][:, None] - borders[1][None], axis=-1)
    pooled = np.concatenate([between.min(axis=1), between.min(axis=0)])
    assert score.hd95 == pytest.approx(np.percentile(pooled, 95))
    assert score.nsd == pytest.approx(np.mean(pooled <= 1.2))
    assert score.iou == pytest.approx(score.dice / (2 - score.dice))
    swapped = score_case(prediction, reference, spacing, LABELS, nsd_tolerance=1.2)[0]
    assert (swapped.dice, swapped.hd95, swapped.nsd) == pytest.approx((score.dice, score.hd95, score.nsd))
