"""Reading every format as stored, and mapping masks to label ids."""

import numpy as np
import PIL.Image
import pytest
import tifffile

from common.errors import InputError
from dataset.convert import read_pair, write_raw_dataset
from dataset.folds import Split
from dataset.images import area_resize, limit_size, read_image, read_mask, write_array
from dataset.source import Case, SourceConfig

GREY = np.arange(15, dtype=np.uint8).reshape(5, 3) * 17
GREY16 = GREY.astype(np.uint16) * 257 - 3 * (GREY > 0).astype(np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
LABELS = {"lung": 1}


def save_volume(path, array, spacing=(0.5, 0.7, 4.0), origin=(1.0, 2.0, 3.0)):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing + (1.0,) * (array.ndim - 3))
    image.SetOrigin(origin + (0.0,) * (array.ndim - 3))
    SimpleITK.WriteImage(image, str(path))
    return path


def refused(call, *mentions):
    with pytest.raises(InputError) as caught:
        call()
    assert all(str(mention) in str(caught.value) for mention in (*mentions, "way out: ")), str(caught.value)


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("grey.png", GREY, GREY[None]),
        ("grey16.png", GREY16, GREY16[None]),
        ("la.png", np.stack([GREY, np.full_like(GREY, 9)], axis=-1), GREY[None]),
        ("colour.png", COLOUR, np.moveaxis(COLOUR, -1, 0)),
        ("rgba.png", np.dstack([COLOUR, GREY]), np.moveaxis(COLOUR, -1, 0)),
    ],
)
def test_png_is_read_as_stored_without_alpha(tmp_path, name, pixels, expected):
    PIL.Image.fromarray(pixels).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.array.dtype == expected.dtype and np.array_equal(image.array, expected)
    assert image.spacing_mm == (1.0, 1.0) and not image.is_volume


def test_png_of_16_bit_colour_keeps_its_16_bits(tmp_path):
    import imagecodecs

    colour16 = COLOUR.astype(np.uint16) * 250 + 7
    (tmp_path / "c.png").write_bytes(imagecodecs.png_encode(colour16))
    assert np.array_equal(read_image(tmp_path / "c.png").array, np.moveaxis(colour16, -1, 0))


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (GREY16, {}, GREY16[None]),
        (COLOUR, {"photometric": "rgb", "compression": "lzw"}, np.moveaxis(COLOUR, -1, 0)),
        (np.moveaxis(COLOUR, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, np.moveaxis(COLOUR, -1, 0)),
        (GREY, {"photometric": "miniswhite"}, 255 - GREY[None]),
        (np.dstack([GREY16, GREY16 * 0 + 5]), {"photometric": "minisblack", "planarconfig": "contig"}, GREY16[None]),
    ],
)
def test_tiff_is_read_as_stored(tmp_path, pixels, options, expected):
    tifffile.imwrite(tmp_path / "image.tif", pixels, **options)
    image = read_image(tmp_path / "image.tif")
    assert image.array.dtype == expected.dtype and np.array_equal(image.array, expected)


def test_palettes_are_colours_in_images_and_ids_in_masks(tmp_path):
    indices = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indices.save(tmp_path / "colour.png")
    assert read_image(tmp_path / "colour.png").array[:, 0, 1].tolist() == [255, 0, 0]
    assert read_mask(tmp_path / "colour.png", None, {"a": 1, "b": 2}).tolist() == [[0, 1], [2, 1]]
    grey = PIL.Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    grey.putpalette([255, 255, 255, 0, 0, 0])  # white first, as some encoders order it
    grey.save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", None, LABELS).tolist() == [[1, 0], [0, 1]]


def test_jpeg_and_one_bit_png(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8) * 2
    PIL.Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").array[0].astype(int) - smooth).max() <= 4
    PIL.Image.fromarray(GREY > 100).save(tmp_path / "bit.png")
    assert np.array_equal(read_mask(tmp_path / "bit.png", None, LABELS), GREY > 100)


def test_nifti_is_read_in_slice_row_column_order(tmp_path):
    volume = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
    image = read_image(save_volume(tmp_path / "v.nii.gz", volume))
    assert np.array_equal(image.array, volume[None]) and image.spacing_mm == pytest.approx((4.0, 0.7, 0.5))
    channels = np.stack([volume, volume + 1]).astype(np.float32)
    image = read_image(save_volume(tmp_path / "c.nii", channels))
    assert np.array_equal(image.array, channels) and image.spacing_mm == pytest.approx((4.0, 0.7, 0.5))


def test_nan_in_a_volume_is_counted_and_located(tmp_path):
    """ITK, the reader of nnU-Net, turns them into 0 silently."""
    volume = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    volume[2, 3, 1], volume[3, 0, 0] = np.nan, np.inf
    refused(lambda: read_image(save_volume(tmp_path / "v.nii.gz", volume)), "v.nii.gz", "2 NaN", "(2, 3, 1)")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.nii.gz", "a.png.nii"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    refused(lambda: read_image(tmp_path / name), tmp_path / name, "not a readable")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_truncated_files_are_named(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_image(tmp_path / name), tmp_path / name, "not a readable image")


def test_kinds_that_are_not_read_say_what_to_do(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.random.default_rng(0).integers(0, 9, (5, 8, 8), dtype=np.uint8))
    refused(lambda: read_image(tmp_path / "stack.tif"), "5 pages", "NIfTI")
    tifffile.imwrite(tmp_path / "float.tif", GREY.astype(np.float32))
    refused(lambda: read_image(tmp_path / "float.tif"), "float32", "NIfTI")
    refused(lambda: read_image(tmp_path / "a.dcm"), ".dcm", ".nii.gz")
    refused(lambda: read_image(tmp_path / "none.png"), "none.png", "no such file")


def test_mask_values_map_to_ids_and_strays_are_refused(tmp_path):
    """The real electron-microscopy masks hold 0, 127, 255 and stray 130 and 233."""
    PIL.Image.fromarray(np.array([[0, 127, 255, 130]], np.uint8)).save(tmp_path / "m.png")
    two = {"myelin": 1, "axon": 2}
    refused(
        lambda: read_mask(tmp_path / "m.png", {0: 0, 127: 1, 255: 2}, two), "m.png", "[130]", "1 pixels", "mask_values"
    )
    assert read_mask(tmp_path / "m.png", {0: 0, 127: 1, 130: 1, 255: 2}, two).tolist() == [[0, 1, 2, 1]]
    refused(lambda: read_mask(tmp_path / "m.png", None, LABELS), "[127, 130, 255]")


def test_masks_of_ids_equal_channels_jpeg_and_floats(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:20] = 1
    PIL.Image.fromarray(mask).save(tmp_path / "ids.png")
    PIL.Image.fromarray(np.dstack([mask * 255] * 3)).save(tmp_path / "rgb.png")
    PIL.Image.fromarray(mask * 255).save(tmp_path / "lossy.jpg", quality=60)
    for name in ("ids.png", "rgb.png", "lossy.jpg"):
        assert np.array_equal(read_mask(tmp_path / name, None, LABELS), mask), name
    PIL.Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    refused(lambda: read_mask(tmp_path / "colour.png", None, LABELS), "3 different channels", "palette")
    half = save_volume(tmp_path / "half.nii.gz", np.full((2, 3, 4), 0.5, np.float32))
    refused(lambda: read_mask(half, None, LABELS), "0.5", "nearest")


def test_large_images_shrink_isotropically_with_their_mask():
    image = np.zeros((1, 40, 20), np.uint16)
    image[:, :, 10:] = 1000
    mask = np.zeros((40, 20), np.uint8)
    mask[:10], mask[10:15, :7] = 1, 2
    small, labels = limit_size(image, mask, 10)
    assert small.shape == (1, 10, 5) and labels.shape == (10, 5) and small.dtype == np.uint16
    assert small[0, 0].tolist() == [0, 0, 500, 1000, 1000]  # the mean over the area, not one pixel of it
    assert labels[:, 0].tolist() == [1, 1, 1 if labels[2, 0] == 1 else 2, 2, 0, 0, 0, 0, 0, 0]
    half = np.kron(np.array([[1, 0], [1, 0]], np.uint8), np.ones((2, 1), np.uint8))
    assert limit_size(half[None], half, 2)[1].tolist() == [[1], [1]]  # half and half counts as foreground
    assert limit_size(image, mask, 40)[0] is image


def test_area_resize_keeps_the_mean():
    image = np.random.default_rng(0).normal(size=(2, 31, 17))
    assert area_resize(image, (13, 5)).mean(axis=(1, 2)) == pytest.approx(image.mean(axis=(1, 2)))


def test_volume_mask_must_lie_where_its_image_lies(tmp_path):
    volume = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    image = save_volume(tmp_path / "i.nii.gz", volume)
    mask = save_volume(tmp_path / "m.nii.gz", (volume > 0).astype(np.uint8), origin=(1.0, 2.0, 8.0))
    refused(lambda: read_pair(Case("c", image, mask, "p", "A"), SourceConfig()), "m.nii.gz", "origin", "8.0")
    write_array(mask, (volume > 0).astype(np.uint8), like=image)
    read_pair(Case("c", image, mask, "p", "A"), SourceConfig())


def test_raw_dataset_keeps_bit_depth_colour_and_geometry(tmp_path):
    import imagecodecs
    import SimpleITK

    colour16 = np.ascontiguousarray(COLOUR.astype(np.uint16) * 250 + 7)
    mask = (GREY > 100).astype(np.uint8)
    volume = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)

    def convert(kind, image, mask):
        split = Split((kind,), (), ())
        out = tmp_path / kind / "Dataset101_x"
        names = tuple("abc") if kind != "volume" else ("CT",)
        write_raw_dataset([Case(kind, image, mask, "p", "A")], split, out, SourceConfig(channel_names=names))
        return out

    PIL.Image.fromarray(mask).save(tmp_path / "m.png")
    tifffile.imwrite(tmp_path / "8.tif", COLOUR, photometric="rgb")
    (tmp_path / "16.png").write_bytes(imagecodecs.png_encode(colour16))
    colour = convert("colour", tmp_path / "8.tif", tmp_path / "m.png")
    assert np.array_equal(np.asarray(PIL.Image.open(colour / "imagesTr/colour_0000.png")), COLOUR)
    deep = convert("deep", tmp_path / "16.png", tmp_path / "m.png")
    channels = [np.asarray(PIL.Image.open(deep / f"imagesTr/deep_{c:04d}.png")) for c in range(3)]
    assert np.array_equal(np.stack(channels, axis=-1), colour16)
    image = save_volume(tmp_path / "i.nii.gz", volume)
    flat = convert("volume", image, save_volume(tmp_path / "m.nii.gz", (volume > 0).astype(np.uint8)))
    written, label = (
        SimpleITK.ReadImage(str(flat / name)) for name in ("imagesTr/volume_0000.nii.gz", "labelsTr/volume.nii.gz")
    )
    assert np.array_equal(SimpleITK.GetArrayFromImage(written), volume)
    for stored in (written, label):
        assert stored.GetSpacing() == pytest.approx((0.5, 0.7, 4.0)) and stored.GetOrigin() == pytest.approx((1, 2, 3))
