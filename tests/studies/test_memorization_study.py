"""The memorization study on phantom patients: a generator that copies is caught, one that does not passes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_makers import textures

from common.errors import InputError
from common.files import write_json
from common.image_set import ImageEntry, ImageSet
from dataset.phantom import PhantomConfig, write_phantom
from pipeline.entry import compose_experiment
from studies.generator_study import StudySite
from studies.judged_site import calibrate_site, pixel_correlation
from studies.memorization_study import site_of_few, study_site, summarise, train_well
from studies.memorization_tables import KEPT, OVERTRAINED, SAMPLES, WELL_TRAINED, format_study, goals

N_TRAINED_ON, N_BESIDE, N_UNSEEN, N_SAMPLES = 12, 4, 8, 12
CONFIG = compose_experiment("demo", [])


def image_set(images: np.ndarray, patients: list[str]) -> ImageSet:
    entries = tuple(ImageEntry(f"image{i}", patient=patient) for i, patient in enumerate(patients))
    return ImageSet(images, entries)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """(n, 1, 32, 32), each of another patient of one site."""
    folder = tmp_path_factory.mktemp("phantom")
    n = N_TRAINED_ON + N_BESIDE + N_UNSEEN + N_SAMPLES
    write_phantom(PhantomConfig(1, n, (1, 1), 32), folder)
    files = sorted((folder / "images").iterdir())
    return np.stack([np.asarray(Image.open(file))[None] for file in files])


@pytest.fixture(scope="module")
def site(phantoms: np.ndarray) -> StudySite:
    ends = np.cumsum([N_TRAINED_ON, N_BESIDE, N_UNSEEN])
    parts = np.split(phantoms[: ends[-1]], ends[:-1])
    return StudySite(*(image_set(part, [f"{side}{i}" for i in range(len(part))]) for side, part in enumerate(parts)))


def copies_of(images: np.ndarray, n: int) -> np.ndarray:
    """With a little noise, every second one brighter."""
    rng = np.random.default_rng(0)
    copied = images[rng.integers(0, len(images), n)].astype(float) + rng.normal(0, 3, (n, *images.shape[1:]))
    copied[::2] = 0.9 * copied[::2] + 20
    return np.clip(np.rint(copied), 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_a_copier_is_dropped_and_refused_and_an_honest_generator_passes(
    site: StudySite, phantoms: np.ndarray, tmp_path: Path
) -> None:
    made = {OVERTRAINED: copies_of(site.trained_on.images, N_SAMPLES), WELL_TRAINED: phantoms[-N_SAMPLES:]}
    parts = {name: study_site(name, site, {SAMPLES: images}, CONFIG, tmp_path, 0) for name, images in made.items()}
    study = summarise(parts, CONFIG)
    copying, honest = study["parts"][OVERTRAINED], study["parts"][WELL_TRAINED]
    found, n_copies, *_ = copying["filter"][SAMPLES]["copies_dropped"]["0.95"]
    assert n_copies == N_SAMPLES and found >= 0.95 * N_SAMPLES
    assert copying["audits"][KEPT]["verdict"] == "refused"
    assert honest["filter"][SAMPLES]["dropped"][2] <= 0.05 and honest["audits"][KEPT]["verdict"] != "refused"
    met = {goal: answer for goal, _, answer in goals(study)}
    assert [answer for goal, answer in met.items() if "dropped" in goal or "export" in goal] == ["yes"] * 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studies.memorization_study.calibrate_site", None)  # what was judged is not judged again
        again = {name: study_site(name, site, {SAMPLES: images}, CONFIG, tmp_path, 0) for name, images in made.items()}
        patch.setattr("studies.memorization_study.code_of", lambda roots: {"all": "changed"})
        with pytest.raises(TypeError):  # but by another filter it is
            study_site(WELL_TRAINED, site, {SAMPLES: made[WELL_TRAINED]}, CONFIG, tmp_path, 0)
    assert again == study["parts"]
    table = format_study(study)
    assert sum(line.startswith("| dropped share |") for line in table) == 4
    assert len({line.count("|") for line in table if re.match(r"\| (overtrained|well-trained) ", line)}) == 1
    assert Image.open(tmp_path / "overtrained_beside_nearest.png").size == (12 * 32, 2 * 32)


def test_a_copy_is_told_by_its_pixels_also_mirrored_darker_and_noisy(site: StudySite) -> None:
    references = site.trained_on.images
    altered = (0.5 * copies_of(references, 10)[..., ::-1]).astype(np.uint8)
    assert (pixel_correlation(altered, references)[0] >= 0.95).all()
    correlation, nearest = pixel_correlation(references[3:5], references)
    assert np.allclose(correlation, 1) and list(nearest) == [3, 4]
    assert (pixel_correlation(255 - references, references)[0] < 0.95).all()


def test_rows_of_the_calibration_know_their_patients_also_where_duplicates_are_left_out(site: StudySite) -> None:
    images = textures(8, seed=1)
    images[6] = images[2]  # one image under two names
    trained_on, validation = (image_set(images[part], list("abcdefgh"[part])) for part in (slice(0, 5), slice(5, 8)))
    calibrated = calibrate_site(StudySite(trained_on, validation, site.unseen), CONFIG.memorization, False, 0)
    assert len(calibrated.calibration) == 7 and list(calibrated.calibration_patients) == list("abcdefh")


def test_the_overtrained_generator_sees_one_image_a_patient_and_no_patient_is_on_two_sides(site: StudySite) -> None:
    few = site_of_few(site, 9, 0)
    sides = [{entry.patient for entry in part.entries} for part in (few.trained_on, few.validation, few.unseen)]
    assert [len(side) for side in sides] == [9, N_TRAINED_ON + N_BESIDE - 9, N_UNSEEN] and len(few.trained_on) == 9
    assert len(set.union(*sides)) == sum(len(side) for side in sides)
    with pytest.raises(InputError, match="use 2 to 14"):
        site_of_few(site, 15, 0)


@pytest.mark.parametrize("n_images,named", [(None, "no finished generator"), (99, "trained on 99 images")])
def test_a_generator_of_other_images_is_refused(
    n_images: int | None, named: str, site: StudySite, tmp_path: Path
) -> None:
    if n_images is not None:
        (tmp_path / "generator.safetensors").touch()
        write_json(tmp_path / "card.json", {"data": {"n_images": n_images}})
    chosen = type("Chosen", (), {"well_trained": tmp_path})()
    with pytest.raises(InputError, match=named):
        train_well(CONFIG, site, chosen)
