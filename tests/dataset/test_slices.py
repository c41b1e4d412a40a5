"""Slices at the plan's patch size: geometry, intensities, thinning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.image_set import Intensity
from common.plan import Plan
from dataset.slices import (
    SliceCase,
    build_slices,
    case_of_image,
    crop_to_nonzero,
    decode,
    encode,
    fit_to_patch,
    restore_scale,
    site_scale,
    thin_indices,
    through_plane_spacing_mm,
)


def plan_of(patch_size_px, n_channels=1, spacing_mm=(1.0, 1.0)):
    scheme = ("ZScoreNormalization",) * n_channels
    return Plan(patch_size_px, ((1, 1),), ((3, 3),), spacing_mm, (0, 1, 2), scheme, (False,) * n_channels, ({},), 2)


def extent(mask):
    """(height, width) in pixels of what is set."""
    return tuple(int(np.ptp(axis)) + 1 for axis in np.nonzero(mask))


def ellipse(height, width, half_height, half_width):
    y, x = np.mgrid[:height, :width]
    inside = ((y - (height - 1) / 2) / half_height) ** 2 + ((x - (width - 1) / 2) / half_width) ** 2 <= 1
    return inside.astype(np.uint8)[None] * 200 + 10


def test_a_tall_ellipse_stays_tall_in_a_patch_that_is_not_square():
    """D2: the original passed (height, width) to an interface of (width, height), so patches came out transposed."""
    case = case_of_image("a", "p", "train", ellipse(80, 40, 30, 10))
    image_set = build_slices([case], plan_of((96, 48)))
    assert image_set.images.shape == (1, 1, 96, 48)
    assert extent(image_set.images[0, 0] > 100) == extent(ellipse(80, 40, 30, 10)[0] > 100)


@pytest.mark.parametrize("shape", [(530, 621), (300, 800), (512, 512), (100, 90)])
def test_one_isotropic_scale_keeps_the_aspect_ratio_and_is_recorded(shape):
    """D11: the original stretched 530 x 621 to 512 x 512 and recorded nothing."""
    patch = (512, 512)
    circle = ellipse(*shape, 40, 40)
    image_set = build_slices([case_of_image("a", "p", "train", circle)], plan_of(patch, spacing_mm=(0.5, 0.5)))
    height, width = extent(image_set.images[0, 0] > 110)
    scale = min(1.0, 512 / shape[0], 512 / shape[1])
    assert image_set.info.scale == pytest.approx(scale)
    assert abs(height - width) <= 1 and abs(height - 80 * scale) <= 2
    assert image_set.info.spacing_mm == pytest.approx((0.5 / scale, 0.5 / scale))


def test_the_scale_is_the_sites_not_the_images():
    assert site_scale([(64, 64), (64, 64), (640, 64)], (64, 64)) == 1.0
    assert site_scale([(128, 64), (128, 64), (64, 64)], (64, 64)) == 0.5


def test_restoring_the_scale_brings_objects_back_to_their_size():
    circle = ellipse(128, 128, 40, 20)
    small = fit_to_patch(circle, (64, 64), 0.5)
    back = restore_scale(small[None].astype(np.float32), 0.5)
    assert back.shape == (1, 1, 128, 128)
    height, width = extent(back[0, 0] > 110)
    assert abs(height - 80) <= 2 and abs(width - 40) <= 2
    assert np.array_equal(restore_scale(small[None], 1.0)[0], small)


def test_padding_repeats_the_edge_and_cropping_is_central():
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4) + 1
    padded = fit_to_patch(image, (5, 4))
    assert padded[0, 0].tolist() == padded[0, 1].tolist() == [1, 2, 3, 4] and padded[0, 4].tolist() == [9, 10, 11, 12]
    assert fit_to_patch(image, (3, 2))[0].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_crop_to_nonzero_matches_nnunets_bounding_box():
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero as reference

    image = np.zeros((2, 20, 30), np.float32)
    image[0, 4:10, 5:9], image[1, 6:15, 7:22] = 1, 2
    assert np.array_equal(crop_to_nonzero(image), reference(image[:, None])[0][:, 0])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16]),
    st.floats(-2000, 1000),
    st.floats(0.5, 5000),
    st.integers(0, 2**32 - 1),
)
def test_encode_decode_errs_by_at_most_half_a_step(dtype, low, width, seed):
    intensity = Intensity("source", (low, low - 5), (low + width, low + width + 7))
    lows, highs = (np.array(side)[:, None, None] for side in (intensity.low, intensity.high))
    values = lows + np.random.default_rng(seed).random((2, 6, 5)) * (highs - lows)
    error = np.abs(decode(encode(values, intensity, np.dtype(dtype)), intensity) - values)
    half_step = (highs - lows) / np.iinfo(dtype).max / 2
    assert np.all(error <= half_step * 1.001 + 4e-7 * np.maximum(np.abs(lows), np.abs(highs)))


def test_negative_hounsfield_units_survive():
    """D6: the original set everything below zero to zero."""
    volume = np.random.default_rng(0).uniform(-1000, 400, (1, 5, 16, 16)).astype(np.float32)
    volume[..., 0], volume[..., 1] = -1000, 400  # air and bone, beyond the percentiles of the window
    case = SliceCase("ct", "p", "train", volume, through_plane_spacing_mm=5.0)
    image_set = build_slices([case], plan_of((16, 16)), volumetric=True)
    assert image_set.images.dtype == np.uint16 and image_set.info.volumetric
    assert decode(image_set.images[:, 0][:, None], image_set.info.intensity) == pytest.approx(
        volume.transpose(1, 0, 2, 3), abs=0.02
    )


def test_normalised_volumes_are_not_clipped_at_the_tenth_percentile():
    """D5: a window from the 10th to the 99th percentile cut a tenth of the intensities away, and was not recorded."""
    volume = np.random.default_rng(0).normal(size=(1, 8, 32, 32)).astype(np.float32)
    case = SliceCase("t2", "p", "train", volume, through_plane_spacing_mm=4.0)
    image_set = build_slices([case], plan_of((32, 32)), space="normalised", volumetric=True)
    back = decode(image_set.images, image_set.info.intensity)[:, 0]
    assert image_set.info.intensity.space == "normalised"
    assert np.mean(np.abs(back - volume[0]) > 1e-3) < 0.003


def test_pixels_outside_the_normalisation_mask_are_background():
    """D7: in normalised space they are 0, the mean, and the original drew them as mid grey."""
    volume = np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32)
    outside = np.zeros((2, 16, 16), bool)
    outside[:, :4] = True
    volume[0][outside] = 0.0
    case = SliceCase("mr", "p", "train", volume, 4.0, outside)
    images = build_slices([case], plan_of((16, 16)), space="normalised", volumetric=True).images
    assert images[:, 0][outside].max() == 0 and np.median(images[:, 0][~outside]) > 2**14


def test_eight_bit_images_are_stored_verbatim_and_sixteen_bit_ones_recoverable():
    eight = [
        case_of_image(f"{i}", "p", "train", np.full((1, 8, 8), 40 + i, np.uint8) + np.eye(8, dtype=np.uint8))
        for i in range(3)
    ]
    image_set = build_slices(eight, plan_of((8, 8)))
    assert image_set.images.dtype == np.uint8 and image_set.info.intensity.high == (255.0,)
    assert np.array_equal(image_set.images[:, 0], np.stack([case.array[0, 0] for case in eight]))
    values = np.random.default_rng(0).integers(100, 4096, (2, 8, 8)).astype(np.uint16)  # 12 bits in 16
    image_set = build_slices([case_of_image("x", "p", "train", values)], plan_of((8, 8), 2))
    assert np.array_equal(np.rint(decode(image_set.images, image_set.info.intensity))[0], values)


def test_thinning_goes_by_the_axis_after_transposition():
    """D26: the original took the spacing of the file's first axis, the slices of the transposed one."""
    spacing_mm, transpose_forward = (0.5, 5.0, 0.5), (1, 0, 2)  # coarse axis second in the file, first in the plan
    through = through_plane_spacing_mm(spacing_mm, transpose_forward)
    assert through == 5.0 and list(thin_indices(6, through)) == [0, 1, 2, 3, 4, 5]
    assert list(thin_indices(10, 1.0)) == [0, 4, 8]
    assert list(thin_indices(10, 1.5)) == [0, 3, 6, 9]
    assert list(thin_indices(3, 4.0)) == [0, 1, 2] and list(thin_indices(1, 0.1)) == [0]


def test_every_case_gives_slices_that_say_whose_they_are():
    """D13: the split travels with each slice; D16: a site with one small case still gives slices."""
    rng = np.random.default_rng(0)
    cases = [
        SliceCase("a", "p1", "train", rng.normal(size=(1, 5, 8, 8)).astype(np.float32), 2.0),
        SliceCase("b", "p2", "val", rng.normal(size=(1, 1, 9, 7)).astype(np.float32), 2.0),
    ]
    passes = []

    def source():
        passes.append(1)
        return iter(cases)

    image_set = build_slices(source, plan_of((8, 8)), space="normalised", volumetric=True)
    assert len(passes) == 2
    entries = [(e.name, e.case, e.slice_index, e.patient, e.split) for e in image_set.entries]
    assert entries == [
        ("a_0000", "a", 0, "p1", "train"),
        ("a_0002", "a", 2, "p1", "train"),
        ("a_0004", "a", 4, "p1", "train"),
        ("b_0000", "b", 0, "p2", "val"),
    ]
    assert len(image_set.of_split("val")) == 1


def test_cases_of_different_kinds_are_refused():
    grey, colour = (np.full((n, 4, 4), 3, np.uint8) for n in (1, 3))
    with pytest.raises(ValueError, match="one kind"):
        build_slices(
            [case_of_image("a", "p", "train", grey), case_of_image("b", "p", "train", colour)], plan_of((4, 4))
        )
