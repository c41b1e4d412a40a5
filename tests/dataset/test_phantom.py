"""The offline phantom."""

import csv
from collections import defaultdict

import numpy as np
import PIL.Image
import pytest

from common.errors import InputError
from dataset.phantom import PhantomConfig, write_phantom


def read(folder):
    with (folder / "metadata.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    images = {row["file"]: np.asarray(PIL.Image.open(folder / "images" / row["file"])).astype(float) for row in rows}
    masks = {row["file"]: np.asarray(PIL.Image.open(folder / "masks" / row["file"])) for row in rows}
    return rows, images, masks


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(PhantomConfig(n_patients=8, images_per_patient=(2, 2)), folder)
    return folder, *read(folder)


def test_same_config_same_bytes_other_seed_other_patients(phantom, tmp_path):
    folder = phantom[0]
    write_phantom(PhantomConfig(n_patients=8, images_per_patient=(2, 2)), tmp_path / "again")
    write_phantom(PhantomConfig(n_patients=8, images_per_patient=(2, 2), seed=1), tmp_path / "other")
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert len(files) == 2 * 32 + 1
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert (folder / "masks/A000_0.png").read_bytes() != (tmp_path / "other/masks/A000_0.png").read_bytes()


def test_sites_differ_in_brightness_noise_and_sharpness(phantom):
    _, rows, images, _ = phantom
    by_site = defaultdict(list)
    for row in rows:
        by_site[row["site"]].append(images[row["file"]])
    a, b = np.stack(by_site["A"]), np.stack(by_site["B"])
    centre = (slice(None), slice(16, 48), slice(16, 48))
    assert a[centre].mean() - b[centre].mean() > 3 * max(a[centre].mean((1, 2)).std(), b[centre].mean((1, 2)).std())
    abdomen = (slice(None), slice(54, 60), slice(20, 44))  # smooth tissue: differences of neighbours are noise

    def noise(site):
        return np.diff(site[abdomen], axis=2).std()

    assert noise(b) > 1.5 * noise(a)


def test_masks_are_two_dark_lungs(phantom):
    from scipy.ndimage import label

    _, _, images, masks = phantom
    for name, mask in masks.items():
        assert set(np.unique(mask)) == {0, 255}
        sizes = np.bincount(label(mask)[0].ravel())[1:]
        assert np.sort(sizes)[-2:].sum() > 0.97 * sizes.sum() and 0.12 < (mask > 0).mean() < 0.45
        lung, heart = images[name][mask > 0].mean(), images[name][28:44, 30:38].mean()
        assert heart > lung + 20


def test_images_of_one_patient_are_more_alike_than_those_of_two(phantom):
    _, rows, _, masks = phantom

    def dice(first, second):
        a, b = masks[first] > 0, masks[second] > 0
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    names = [row["file"] for row in rows if row["site"] == "A"]
    same = [dice(f"A{p:03d}_0.png", f"A{p:03d}_1.png") for p in range(8)]
    other = [dice(a, b) for a in names for b in names if a[:4] < b[:4]]
    assert np.mean(same) > np.mean(other) + 0.01
    assert max(same) < 1.0  # a small change of pose, not a copy


def test_more_sites_and_sizes(tmp_path):
    write_phantom(PhantomConfig(n_sites=3, n_patients=1, images_per_patient=(1, 1), size_px=48), tmp_path)
    rows, images, _ = read(tmp_path)
    assert [row["site"] for row in rows] == ["A", "B", "C"] and images["C000_0.png"].shape == (48, 48)
    with pytest.raises(InputError, match=r"phantom\.size_px"):
        write_phantom(PhantomConfig(size_px=4), tmp_path)
