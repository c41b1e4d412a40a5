"""What one unit more can do to a step of the real training: the accountant assumes one clipping norm at most.

Two trainings on adjacent sets of images take the same steps: the sum that a step makes of real images is looked at and
replaced by zeros, so that both have the same weights at every step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.gan_trainings import noise_images, tiny_settings
from support.private_trainings import private_settings as settings
from support.private_trainings import seven_images, training
from torch import Tensor

import gan.privacy
from common.errors import InputError
from gan.batches import Batches
from gan.privacy import GRID_OF_A_CLIP, Population, derive_mechanism
from gan.secret import Secret
from gan.training import CHECKPOINT, Training

N_STEPS = 8
LARGEST = 1 + 1e-6  # clipping norms
PATIENTS = ["a", "a", "a", "b", "c", "c", "d"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every step's sum, in clipping norms; the trainings get zeros in its place, and all of them one secret."""
    sums: list[Tensor] = []
    clipped_sum = gan.privacy.clipped_sum

    def look(*arguments) -> Tensor:
        sums.append(clipped_sum(*arguments) / GRID_OF_A_CLIP)
        return torch.zeros_like(sums[-1])

    monkeypatch.setattr(gan.privacy, "clipped_sum", look)
    monkeypatch.setattr(Secret, "new", lambda: Secret("5ec4" * 16))
    return sums


def sums(seen: list[Tensor], run: Training, n_steps: int = N_STEPS) -> list[Tensor]:
    seen.clear()
    for _ in range(n_steps):
        run.advance()
    return list(seen)


def distances(some: list[Tensor], others: list[Tensor]) -> list[float]:
    return [float((one - other).norm()) for one, other in zip(some, others, strict=True)]


@pytest.mark.parametrize("left_out", [0, 1, 4, 5, 6])
def test_an_image_more_moves_a_step_by_at_most_one_clipping_norm(seen: list[Tensor], left_out: int) -> None:
    """With augmentation and mirroring; the first, the last, one of two equal ones, both of them, a white one."""
    whole = sums(seen, training(seven_images(), settings()))
    found = distances(whole, sums(seen, training(np.delete(seven_images(), left_out, axis=0), settings())))
    assert 0.999 < max(found) <= LARGEST, found
    assert min(found) == 0  # where the image was not drawn, nothing at all is different


def test_so_it_is_with_empty_steps_and_after_a_resumption(seen: list[Tensor], tmp_path: Path) -> None:
    few = settings(n_steps=4 * N_STEPS, sampling_rate=0.15)
    whole = sums(seen, training(seven_images(), few), 20)
    assert any(not one.any() for one in whole) and any(one.any() for one in whole)
    # the adjacent training is left after half of the steps; another process, with another secret, goes on with it
    before = training(seven_images()[1:], few)
    adjacent = sums(seen, before, 10)
    before.snapshot(tmp_path)
    after = training(seven_images()[1:], few)
    after.private_batches = after._private_batches(Secret("0" * 64))
    after.resume(tmp_path)
    found = distances(whole, adjacent + sums(seen, after, 10))
    assert 0.999 < max(found) <= LARGEST, found


def test_the_order_of_the_images_means_nothing(seen: list[Tensor]) -> None:
    """The sum is of whole numbers, so it is the same to the last bit in any order."""
    whole = sums(seen, training(seven_images(), settings()), 4)
    assert max(distances(whole, sums(seen, training(seven_images()[::-1].copy(), settings()), 4))) == 0


@pytest.mark.parametrize("left_out", ["a", "b", "d"])
def test_a_patient_more_moves_a_step_by_at_most_one_clipping_norm(seen: list[Tensor], left_out: str) -> None:
    of = settings(unit="patient", images_per_patient=2)
    whole = sums(seen, training(seven_images(), of, PATIENTS))
    kept = [i for i, name in enumerate(PATIENTS) if name != left_out]
    found = distances(whole, sums(seen, training(seven_images()[kept], of, [PATIENTS[i] for i in kept])))
    assert 0.999 < max(found) <= LARGEST, found


def test_where_the_unit_is_an_image_a_patient_moves_a_step_by_more(seen: list[Tensor]) -> None:
    """And by at most as many clipping norms as the patient has images."""
    whole = sums(seen, training(seven_images(), settings(), PATIENTS))
    found = distances(whole, sums(seen, training(seven_images()[3:], settings(), PATIENTS[3:])))
    assert 1.5 < max(found) <= 3 * LARGEST, found


def test_nothing_follows_from_the_number_of_units_where_all_is_set() -> None:
    mechanisms = [derive_mechanism(settings(), Population(n_images)) for n_images in (5, 500)]
    assert mechanisms[0] == mechanisms[1] and mechanisms[0] is not None
    assert derive_mechanism(settings(sampling_rate="auto"), Population(500)) != mechanisms[0]


def test_a_private_training_refuses_no_image_for_what_it_shows() -> None:
    """To refuse is to tell: whether all images are equal depends on each of them."""
    equal = np.zeros((3, 1, 10, 16), np.uint8)
    training(equal, settings()).advance()
    with pytest.raises(InputError, match="different training images"):
        Batches(equal, tiny_settings(), 3)


def test_a_private_training_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """The noise would be the same on both: their difference would show the image."""
    training(seven_images(), settings()).snapshot(tmp_path)
    training(seven_images()[::-1].copy(), settings()).load(tmp_path / CHECKPOINT)
    for other in (seven_images()[1:], np.concatenate([seven_images(), noise_images()[:1]])):
        with pytest.raises(InputError, match="other images"):
            training(other, settings()).resume(tmp_path)


def test_the_patient_is_the_unit_only_where_it_is_known_whose_the_images_are() -> None:
    with pytest.raises(InputError, match="whose the images are"):
        training(seven_images(), settings(unit="patient"))
    mechanism = derive_mechanism(settings(unit="patient", sampling_rate="auto"), Population.of(7, PATIENTS))
    assert mechanism is not None and mechanism.sampling_rate == 2 / 4
    with pytest.raises(ValueError, match="6 patients are named for 7 images"):
        Population.of(7, PATIENTS[1:])
