"""DSL trains on the slices with the masks that lie where the slices show them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.blobs import write_blobs
from support.dsl_sites import plan_of, write_site

from common.errors import InputError
from common.files import write_json
from common.image_set import save_image_set
from dataset.slices import build_slices, case_of_image
from federated.dsl.data import load_pairs
from federated.dsl.model import MaskGenerator


def test_an_empty_mask_gives_a_flat_image_so_such_slices_are_left_out(tmp_path):
    """Instance norm of a constant is 0, and dropout of 0 is 0: the paper's generator can make nothing of it."""
    from skimage import io

    images = MaskGenerator(1, 1, base_channels=4, n_blocks=1)(torch.zeros(1, 1, 32, 32), [1])
    assert images.std() < 1e-6
    folder = write_site(tmp_path)
    label = folder / "prepare/raw/Dataset101_blobs/labelsTr/case2.png"
    io.imsave(label, np.zeros((32, 48), np.uint8), check_contrast=False)
    pairs = load_pairs(folder / "slices", folder / "prepare")
    assert pairs.n_empty == 1 and "case2" not in {entry.case for entry in pairs.images.entries}
    assert len(pairs.masks) == len(pairs.images) == 5 and pairs.masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize("size_px", [(32, 40), (36, 60), (16, 20)])
def test_masks_lie_where_their_images_show_them(tmp_path, size_px):
    """Cropped, padded or shrunk: the disc is bright in the image where it is set in the mask."""
    folder = write_site(tmp_path, size_px)
    pairs = load_pairs(folder / "slices", folder / "prepare")
    assert len(pairs.masks) == 6 and pairs.labels == {"disc": 1}  # the validation patients' masks stay
    bright = pairs.images.images[:, 0] > 105
    overlap = 2 * (bright & (pairs.masks == 1)).sum() / (bright.sum() + pairs.masks.sum())
    assert pairs.masks.shape[1:] == size_px and overlap > 0.97


def test_a_mask_is_cropped_with_its_image_to_the_non_zero_part(tmp_path):
    from skimage import io

    dataset = write_blobs(tmp_path / "prepare" / "raw", n_cases=1)
    image, label = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    image[3:35, 17:57] = 50
    image[10:20, 30:40], label[10:20, 30:40] = 200, 1
    label[0, 0] = 1  # outside the image's non-zero part: it must not widen the box
    io.imsave(dataset / "imagesTr/case0_0000.png", image, check_contrast=False)
    io.imsave(dataset / "labelsTr/case0.png", label, check_contrast=False)
    cases = [case_of_image("case0", "p", "train", image[None])]
    save_image_set(tmp_path / "slices", build_slices(cases, plan_of((32, 40), 1)))
    pairs = load_pairs(tmp_path / "slices", tmp_path / "prepare")
    assert np.array_equal(pairs.masks[0] == 1, pairs.images.images[0, 0] == 200)


def test_masks_of_volumes_are_those_of_the_preprocessed_slices(tmp_path):
    """Transposed, resampled and thinned with their images by nnU-Net and the slices stage."""
    import SimpleITK

    from dataset.slices import SliceCase
    from nnunetv2_mod import PlanSettings, plan_dataset, read_preprocessed

    dataset = tmp_path / "prepare" / "raw" / "Dataset001_ct"
    for part in ("imagesTr", "labelsTr"):
        (dataset / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["c0", "c1", "c2"]
    for name in names:
        rows, columns, _ = np.mgrid[:40, :36, :6]
        organ = np.hypot(rows - rng.integers(14, 26), columns - rng.integers(12, 22)) < 8
        ct = (rng.normal(-300, 10, organ.shape) + 250 * organ).astype(np.int16)
        for file, array in ((f"imagesTr/{name}_0000", ct), (f"labelsTr/{name}", organ.astype(np.uint8))):
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing((3.0, 1.0, 1.0))
            SimpleITK.WriteImage(volume, str(dataset / f"{file}.nii.gz"))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 3}
    write_json(dataset / "dataset.json", {**content, "file_ending": ".nii.gz"})
    plan_dataset(dataset, tmp_path / "plan", PlanSettings(base_features=4), {"train": names[:2], "val": names[2:]})
    cases = []
    for name in names[:2]:
        case = read_preprocessed(tmp_path / "plan", name)
        cases.append(SliceCase(name, name, "train", case.array, 3.0, case.outside))
    images = build_slices(cases, plan_of((44, 36), 1), space="normalised", volumetric=True)
    save_image_set(tmp_path / "slices", images)
    pairs = load_pairs(tmp_path / "slices", tmp_path / "prepare", tmp_path / "plan")
    assert pairs.masks.shape == (6, 44, 36)  # 3 mm apart: every second slice of 6, of 2 cases
    bright = pairs.images.images[:, 0] > 0  # nnU-Net clips a CT to all but the ends of its foreground's range
    assert not bright[pairs.masks == 0].any() and bright[pairs.masks == 1].mean() > 0.98
    with pytest.raises(InputError, match="volumes need their plan"):
        load_pairs(tmp_path / "slices", tmp_path / "prepare")
