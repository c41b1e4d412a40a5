"""Differential privacy of a training: what one image can do to it, what else looks at real images, what is stated."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.gan_trainings import TINY, Stop, contents, noise_images, stop_after, tiny_settings
from support.packages import cases, facts
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from common.checkpoints import load_tensors
from common.errors import InputError
from common.settings import from_dict, to_dict
from gan.accountant import epsilon_after
from gan.auto import complete
from gan.batches import Batches
from gan.privacy import GRID_OF_A_CLIP, Mechanism, Population, clipped_sum, derive_mechanism
from gan.private_batches import PrivateBatches
from gan.sample import sample
from gan.secret import Secret
from gan.settings import GanConfig, GanSettings, Privacy
from gan.textbook import as_textbook
from gan.train import check_processes, n_processes_for, train
from gan.train_step import TrainStep, loss_as_real
from gan.training import CHECKPOINT, RESULT, Training
from sharing import verify_package, write_package
from training.alarms import ALARMS, TrainingFailedError
from training.card import CARD, CARD_TEXT
from training.curves import CURVES

PRIVATE = GanConfig(
    **{
        **TINY.__dict__,
        **{"minibatch_std_group": 1, "snapshot": "last", "mirror": True, "privacy": Privacy(epsilon=4.0, delta=0.01)},
        **{"r1_interval": 3, "path_length_interval": 2},
    }
)
CPU = torch.device("cpu")


def settings(n_steps: int = 16, **changes) -> GanSettings:
    return tiny_settings(n_steps=n_steps, config=replace(PRIVATE, **changes))


def secret(number: int) -> Secret:
    return Secret(f"{number:064x}")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discriminator_and_images(dtype: torch.dtype = torch.float64):
    network = TrainStep(settings(), 3, CPU).discriminator.to(dtype)
    images = torch.randn(6, 1, 10, 16, generator=draws(), dtype=dtype)
    return network, images, lambda image: loss_as_real(network(image))


def flat(tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_the_clipped_sum_is_that_of_per_sample_gradients_by_vmap() -> None:
    """Two other ways: vectorised gradients of the textbook's networks, and a loop of plain backward passes."""
    network, images, loss = discriminator_and_images()
    parameters = list(network.parameters())
    plain = as_textbook(copy.deepcopy(network))

    def of_one(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return F.softplus(-functional_call(plain, weights, (image[None],))).mean()

    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    vectorised = vmap(grad(of_one), in_dims=(None, 0))(weights, images)
    by_vmap = torch.stack([flat(gradient[i] for gradient in vectorised.values()) for i in range(len(images))])
    by_loop = []
    for image in images:
        network.zero_grad()
        loss(image[None]).backward()
        by_loop.append(flat(parameter.grad for parameter in parameters))
    assert torch.allclose(by_vmap, torch.stack(by_loop), atol=1e-5, rtol=1e-5)
    clip_norm = float(by_vmap.norm(dim=1).median())  # some are clipped, some are not
    scales = (clip_norm / by_vmap.norm(dim=1)).clamp_max(1)
    assert 0 < int((scales < 1).sum()) < len(images)
    summed = clipped_sum(loss, images.split(1), parameters, clip_norm)
    assert torch.equal(summed, summed.round())  # whole steps of the grid; each image was rounded towards zero
    rounding = len(images) / GRID_OF_A_CLIP * clip_norm
    expected = (by_vmap * scales[:, None]).sum(dim=0)
    assert torch.allclose(summed * clip_norm / GRID_OF_A_CLIP, expected, atol=rounding, rtol=1e-7)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.1, 100.0])
def test_one_image_more_or_less_moves_the_sum_by_no_more_than_the_clipping_norm(clip_norm: float) -> None:
    """The sensitivity that the accountant takes for granted; an image in the place of another: twice that."""
    network, images, loss = discriminator_and_images()
    images[2] *= 1e6
    parameters = list(network.parameters())

    def summed(shown: Tensor) -> Tensor:
        return clipped_sum(loss, shown.split(1), parameters, clip_norm) / GRID_OF_A_CLIP  # in clipping norms

    whole = summed(images)
    largest = 0.0
    for i in range(len(images)):
        without = summed(torch.cat([images[:i], images[i + 1 :]]))
        replaced = images.clone()
        replaced[i] = -images[0]
        largest = max(largest, float((whole - without).norm()))
        assert float((whole - summed(replaced)).norm()) <= 2 * (1 + 1e-9)
    assert largest <= 1 + 1e-9 and (largest > 0.999 or clip_norm == 100)


def test_an_image_without_a_finite_gradient_counts_as_none() -> None:
    network, images, loss = discriminator_and_images(torch.float32)
    parameters = list(network.parameters())
    broken = images.clone()
    broken[3] = torch.inf
    others = torch.cat([images[:3], images[4:]])
    sums = [clipped_sum(loss, shown.split(1), parameters, 0.1) for shown in (broken, others)]
    assert torch.equal(*sums)


def test_noise_has_the_stated_deviation_over_the_expected_batch_also_where_no_image_was_drawn() -> None:
    parameters = [torch.zeros(200, 500), torch.zeros(1000)]
    mechanism = Mechanism(clip_norm=0.5, noise_multiplier=3.0, sampling_rate=0.1, delta=1e-5, n_expected=4)
    noise = flat(mechanism.gradient(lambda image: image.sum(), [], parameters, secret(0).stream(0, "noise")))
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.01)  # 101,000 numbers: 0.2 %
    assert abs(float(noise.mean())) < 5 * 3.0 * 0.5 / 4 / math.sqrt(len(noise))


def test_poisson_batches_take_every_image_by_itself_at_the_sampling_rate() -> None:
    images = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None] * 50, (5, 1, 10, 16))
    batches = PrivateBatches(images, settings(), 2 / 5, secret(1))
    taken = np.zeros((2000, 5), bool)
    for step in range(len(taken)):
        shown = [round((float(unit.images[0, 0, 0, 0]) + 1) * 127.5 / 50) for unit in batches.at(step)]
        taken[step, shown] = True
        assert len(shown) == len(set(shown))
    assert np.abs(taken.mean(axis=0) - 2 / 5).max() < 5 * math.sqrt(0.24 / 2000)
    assert np.abs(np.corrcoef(taken.T) - np.eye(5)).max() < 5 / math.sqrt(2000)
    other = PrivateBatches(images, settings(), 2 / 5, secret(2))
    assert any(len(batches.at(step)) != len(other.at(step)) for step in range(20))  # the seed alone gives nothing away


def test_only_the_private_half_sees_real_images_and_r1_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings on other images, their noisy gradient left out: what they measure and all weights are the same."""
    monkeypatch.setattr(Secret, "new", lambda: secret(0))
    monkeypatch.setattr(TrainStep, "r1", lambda *_: pytest.fail("R1 looks at real images"))
    monkeypatch.setattr(TrainStep, "discriminator_main", lambda *_: pytest.fail("Dmain looks at real images"))
    monkeypatch.setattr(Mechanism, "gradient", lambda self, loss, images, of, _: [torch.zeros_like(p) for p in of])
    runs = []
    for images in (noise_images(), 255 - noise_images()):
        run = Training(Batches(images, settings(), 3), settings(), 3, CPU)
        for _ in range(6):
            run.advance()
        runs.append(run)
    assert runs[0].measured == runs[1].measured
    assert {"r2", "loss_d_fake", "fake_logit", "loss_g", "path_length"} == set(runs[0].measured)
    for name, module in runs[0].train_step.modules().items():
        assert all(map(torch.equal, module.parameters(), runs[1].train_step.modules()[name].parameters())), name


def test_a_private_training_ends_to_end_and_says_what_it_has_spent(tmp_path: Path) -> None:
    train(noise_images(), tmp_path, settings(), seed=3)
    metadata = load_tensors(tmp_path / RESULT)[1]
    privacy, card = metadata["privacy"], json.loads((tmp_path / CARD).read_text())
    mechanism = derive_mechanism(settings(), Population(5))
    assert mechanism is not None and privacy == card["privacy"]
    assert privacy["epsilon"] == epsilon_after(16, mechanism.noise_multiplier, 2 / 5, 0.01)
    assert 0.99 * 4 < privacy["epsilon"] <= 4 and privacy["n_steps"] == 16 and privacy["delta"] == 0.01
    assert privacy["unit"] == "one image, added or removed" and privacy["clip_norm"] == 1.0
    text = (tmp_path / CARD_TEXT).read_text()
    assert "epsilon 3.99" in text or "epsilon 4.000" in text
    assert metadata["snapshot"]["step"] == 16 and "secret" not in metadata
    assert not (tmp_path / CHECKPOINT).exists()
    rows = [json.loads(line) for line in (tmp_path / CURVES).read_text().splitlines()]
    assert not any({"real_logit", "loss_d", "r1"} & set(row) for row in rows) and "r2" in rows[-1]
    assert sample(tmp_path / RESULT, [1, 2]).shape == (2, 1, 10, 16)


def test_the_card_of_a_training_that_goes_on_counts_the_steps_done(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(noise_images(), tmp_path, settings(), 3, progress=stop_after(6))
    card = json.loads((tmp_path / CARD).read_text())
    mechanism = derive_mechanism(settings(), Population(5))
    assert mechanism is not None and card["privacy"]["n_steps"] == 4  # the last snapshot's
    assert card["privacy"]["epsilon"] == mechanism.epsilon_after(4) < 4


def test_the_card_states_the_guarantee_of_the_patient_with_most_images(tmp_path: Path) -> None:
    """It is larger than so many times the epsilon of an image; where the patient is the unit, it is the epsilon."""
    patients = ["a", "b", "a", "c", "a"]
    train(noise_images(), tmp_path / "image", settings(), seed=3, patients=patients)
    train(noise_images(), tmp_path / "nobody", settings(), seed=3)
    unit = replace(settings().config.privacy, unit="patient")
    train(noise_images(), tmp_path / "patient", settings(privacy=unit), seed=3, patients=patients)
    cards = {path.parent.name: json.loads(path.read_text())["privacy"] for path in tmp_path.glob(f"*/{CARD}")}
    texts = {path.parent.name: path.read_text() for path in tmp_path.glob(f"*/{CARD_TEXT}")}
    mechanism = derive_mechanism(settings(), Population(5))
    assert mechanism is not None and cards["image"]["patient"]["most_images"] == 3
    assert cards["image"]["patient"]["epsilon"] == mechanism.epsilon_after(16, 3) > 3 * cards["image"]["epsilon"]
    assert f"(at most 3) epsilon is {mechanism.epsilon_after(16, 3):.3f}" in texts["image"]
    assert cards["nobody"]["patient"] is None and "is not known" in texts["nobody"]
    assert cards["patient"]["unit"] == "one patient with all images, added or removed"
    assert cards["patient"]["sampling_rate"] == 2 / 3
    assert cards["patient"]["patient"] == {"epsilon": cards["patient"]["epsilon"], "most_images": 3}


def test_without_privacy_card_and_checkpoint_say_so(tmp_path: Path) -> None:
    train(noise_images(), tmp_path, tiny_settings(n_steps=2), seed=3)
    assert load_tensors(tmp_path / RESULT)[1]["privacy"] is None
    assert json.loads((tmp_path / CARD).read_text())["privacy"] is None
    assert "not a guarantee" in (tmp_path / CARD_TEXT).read_text()


@pytest.mark.parametrize("n_steps", [5, 11])
def test_a_private_training_resumes_bit_for_bit_by_the_secret_in_its_checkpoint(
    tmp_path: Path, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Secret, "new", lambda: secret(5))
    train(noise_images(), tmp_path / "whole", settings(), seed=3)
    with pytest.raises(Stop):
        train(noise_images(), tmp_path / "parts", settings(), 3, progress=stop_after(n_steps))
    monkeypatch.setattr(Secret, "new", lambda: secret(6))  # another process draws another
    train(noise_images(), tmp_path / "parts", settings(), seed=3)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    train(noise_images(), tmp_path / "other", settings(), seed=3)
    weights = [load_tensors(tmp_path / name / RESULT)[0]["constant"] for name in ("whole", "other")]
    assert not torch.equal(*weights)  # the seed does not give the noise away


def test_a_failed_private_training_is_not_tried_again(tmp_path: Path) -> None:
    run = Training(Batches(noise_images(), settings(), 3), settings(), 3, CPU)
    with pytest.raises(RuntimeError, match="attempt 1 of 1"):
        run.fall_back(tmp_path, TrainingFailedError("divergence", "diverged"))
    assert (tmp_path / ALARMS).is_file()


@pytest.mark.parametrize(
    "changes,named",
    [
        ({"privacy": Privacy(epsilon=0.0)}, "privacy.epsilon"),
        ({"privacy": Privacy(delta=1.5)}, "privacy.delta"),
        ({"privacy": Privacy(delta="small")}, "privacy.delta"),
        ({"privacy": Privacy(clip_norm=-1.0)}, "privacy.clip_norm"),
        ({"privacy": Privacy(unit="hospital")}, "privacy.unit"),
        ({"privacy": Privacy(images_per_patient=0)}, "privacy.images_per_patient"),
        ({"privacy": Privacy(sampling_rate=1.5)}, "privacy.sampling_rate"),
        ({"minibatch_std_group": 4}, "minibatch_std_group"),
        ({"snapshot": "heldout"}, "snapshot"),
    ],
)
def test_settings_that_would_break_the_promise_are_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        settings(**changes)


def test_data_and_processes_that_would_break_the_promise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 5"):
        train(noise_images(), tmp_path, settings(batch_size=8), seed=3)
    with pytest.raises(InputError, match="out of reach"):
        train(noise_images(), tmp_path, settings(privacy=Privacy(epsilon=1e-3, delta=1e-9)), seed=3)
    with pytest.raises(InputError, match="differential privacy"):
        check_processes(settings(batch_size=4), 2)
    assert n_processes_for(settings(batch_size=4), 8) == 1


def test_privacy_is_read_from_yaml_and_a_wrong_key_in_it_is_named() -> None:
    config = from_dict(GanConfig, {"privacy": {"epsilon": 3, "delta": "auto"}})
    assert config.privacy == Privacy(epsilon=3.0) and from_dict(GanConfig, to_dict(config)) == config
    assert complete({"privacy": None}, "settings")["privacy"] is None
    with pytest.raises(TypeError, match=r"settings\.privacy\.epsilom.*did you mean 'settings\.privacy\.epsilon'"):
        complete({"privacy": {"epsilom": 3}}, "settings")


def test_delta_follows_from_the_number_of_images_where_it_is_auto() -> None:
    mechanism = derive_mechanism(settings(privacy=Privacy()), Population(50))
    assert mechanism is not None and mechanism.delta == 1 / 500 and mechanism.sampling_rate == 2 / 50


def audited_epsilon(noise_multiplier: float, n_trials: int = 400, n_steps: int = 8, delta: float = 0.01) -> float:
    """Lower bound (95 %) on epsilon by an attacker who sees every noisy gradient and looks for a canary.

    The loss is linear, so that the canary's clipped gradient always points the same way, and the other images' never
    does: the worst case that the accountant stands for.
    """
    images = np.full((4, 1, 10, 16), 128, np.uint8)
    images[0] = 255  # the canary
    few = settings(n_steps, mirror=False)
    weights = torch.zeros(1, 10, 16, requires_grad=True)
    mechanism = Mechanism(1.0, noise_multiplier, 2 / 4, delta, 2)
    seen: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(n_trials):
        batches = PrivateBatches(images, few, 2 / 4, secret(trial))
        steps = [[unit.images for unit in batches.at(step)] for step in range(n_steps)]
        for is_there, scores in seen.items():
            noise = secret(2 * trial + is_there).stream("noise")
            total = 0.0
            for drawn in steps:
                units = [image for image in drawn if is_there or image[0, 0, 0, 0] < 0.5]
                (gradient,) = mechanism.gradient(lambda image: (weights * image[0]).sum(), units, [weights], noise)
                total += float(gradient.sum())
            scores.append(total)
    threshold = float(np.median(seen[True]))
    hits = sum(score > threshold for score in seen[True])
    false = sum(score > threshold for score in seen[False])
    least_hits = stats.beta.ppf(0.025, hits, n_trials - hits + 1)
    most_false = stats.beta.ppf(0.975, false + 1, n_trials - false)
    return math.log(max(least_hits - delta, 1e-9) / most_false)


def test_an_attacker_with_a_canary_never_proves_more_than_epsilon() -> None:
    """And the audit has power: with a tenth of the noise it proves more than was promised."""
    mechanism = derive_mechanism(settings(8, privacy=Privacy(epsilon=1.0, delta=0.01)), Population(4))
    assert mechanism is not None
    assert audited_epsilon(mechanism.noise_multiplier) <= 1.0 < audited_epsilon(mechanism.noise_multiplier / 10)


def test_the_packages_card_says_whether_there_is_privacy_and_what_it_does_not_cover(tmp_path: Path) -> None:
    texts = {}
    of_patients = settings(privacy=Privacy(epsilon=4.0, unit="patient"))
    for name, trained in (("without", tiny_settings()), ("private", settings()), ("of patients", of_patients)):
        generator = {"name": "stylegan2", **to_dict(trained)}
        write_package(tmp_path / name, cases(1), replace(facts(), generator=generator), volumetric=False)
        verify_package(tmp_path / name)
        texts[name] = (tmp_path / name / "CARD.md").read_text()
    assert "was trained without differential privacy" in texts["without"] and "epsilon" not in texts["without"]
    assert "epsilon 4" in texts["private"] and "labels" in texts["private"].split("epsilon 4")[1]
    # k images together have more than k times epsilon at the same delta (tests/gan/test_accountant.py)
    assert "for one image added" in texts["private"] and "has k times" not in texts["private"]
    assert "more than k" in texts["private"] and "for one patient" in texts["of patients"]
    assert "how many images and patients" in " ".join(texts["private"].split())
    assert all("evidence, not a guarantee" in text for text in texts.values())
