"""What a person sees of a training: pictures over time, the card, TensorBoard's events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from support.gan_trainings import TINY, Stop, noise_images, stop_after, tiny_settings

import training.card
from gan.pictures import FRAMES, INTERPOLATION, PATHS, draw_interpolation
from gan.record import TIMED, Record
from gan.settings import GanConfig
from gan.train import train
from training.curves import EVENTS
from training.pictures import SHEET, SHEETS


@pytest.mark.parametrize("n_steps,n_snapshots", [(16, 4), (7, 3), (5, 20), (1, 1)])
def test_sheets_are_as_many_as_snapshots_and_the_last_is_the_newest(
    n_steps: int, n_snapshots: int, tmp_path: Path
) -> None:
    config = GanConfig(**{**TINY.__dict__, "n_snapshots": n_snapshots})
    train(noise_images(), tmp_path, tiny_settings(n_steps=n_steps, config=config), 3)
    sheets = sorted((tmp_path / SHEETS).iterdir())
    assert 1 <= len(sheets) <= n_snapshots and sheets[-1].name == f"kimg_{n_steps * 2 / 1000:010.3f}.png"
    assert sheets[-1].read_bytes() == (tmp_path / SHEET).read_bytes()


@pytest.mark.parametrize("n_channels,mode", [(1, "L"), (2, "L"), (3, "RGB")])
def test_interpolation_goes_forth_and_back_between_two_images_a_tile(
    n_channels: int, mode: str, tmp_path: Path
) -> None:
    from gan.model import GeneratorNetwork

    torch.manual_seed(0)
    network = GeneratorNetwork(tiny_settings(n_channels))
    draw_interpolation(network, 3, tmp_path / INTERPOLATION)
    with Image.open(tmp_path / INTERPOLATION) as picture:
        frames = [np.asarray(frame.convert(mode)).astype(int) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == 2 * FRAMES - 2 and frames[0].shape[:2] == (10, 16 * PATHS)
    # a GIF has 256 colours, so that of RGB only grey levels are exact
    tolerance = 0 if mode == "L" else 40
    assert all(np.abs(frames[i] - frames[-i]).max() <= tolerance for i in range(1, FRAMES))
    steps = [np.abs(after - before).mean() for before, after in zip(frames[: FRAMES - 1], frames[1:FRAMES])]
    whole = np.abs(frames[FRAMES - 1] - frames[0]).mean()
    assert whole > 0 and max(steps) < whole / 2


def test_the_card_says_what_how_long_and_how_good_and_names_nobody(tmp_path: Path) -> None:
    train(noise_images(3, np.uint16), tmp_path, tiny_settings(3), 3)
    card = json.loads((tmp_path / training.card.CARD).read_text())
    assert card["data"] == {"n_images": 5, "n_channels": 3, "height_px": 10, "width_px": 16, "dtype": "uint16"}
    assert card["is_finished"] and card["seed"] == 3 and card["settings"]["config"]["z_dim"] == 8
    last = json.loads((tmp_path / "curves.jsonl").read_text().splitlines()[-1])
    assert card["scores"] == {key: value for key, value in last.items() if key not in ("step", "unit")}
    assert card["snapshot"]["kimg"] == 0.032 and card["snapshot"]["rule"] == "heldout"
    assert "no snapshot was compared" in card["snapshot"]["reason"] and card["time"]["seconds"] >= 0
    text = (tmp_path / training.card.CARD_TEXT).read_text()
    assert "5 images, 10 x 16 px, 3 channels" in text and "python -m gan.sample" in text
    assert str(tmp_path) not in text + json.dumps(card)
    assert set(card) == {
        *("schema_version", "generator", "is_finished", "data", "settings", "privacy", "seed"),
        *("length", "time", "scores", "snapshot"),
    }
    assert set(card["time"]) == {"seconds", "seconds_per_kimg", "machine"} and "threads" in card["time"]["machine"]


def test_the_card_adds_up_the_time_of_a_training_in_parts_and_keeps_the_chosen_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("training.card.time.monotonic", lambda: clock[0])
    arguments = (tmp_path, noise_images(), tiny_settings(), 3, torch.device("cpu"))
    for seconds, kimg in ((100.0, 0.0), (60.0, 0.008)):
        record = Record(*arguments)
        record.begin([], kimg)
        clock[0] += seconds
        record.snapshot([], kimg + 0.008, {"kimg": 0.004, "rule": "gauge"})
    card = json.loads((tmp_path / training.card.CARD).read_text())
    assert card["time"]["seconds"] == 160 and card["time"]["seconds_per_kimg"] == 10_000
    assert card["snapshot"] == {"kimg": 0.004, "rule": "gauge"} and not card["is_finished"]
    assert "Still in training" in (tmp_path / training.card.CARD_TEXT).read_text()
    again = Record(*arguments)
    again.begin([], 0.0)
    clock[0] += 5
    again.snapshot([], 0.008)
    assert json.loads((tmp_path / training.card.CARD).read_text())["time"]["seconds"] == 5


def test_events_of_a_resumed_training_hold_each_point_once_and_none_of_a_lost_future(tmp_path: Path) -> None:
    """Stopped at step 11, after the snapshot of step 8."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Stop):
        train(noise_images(), tmp_path, tiny_settings(), 3, progress=stop_after(11))
    train(noise_images(), tmp_path, tiny_settings(), 3)
    events = EventAccumulator(str(tmp_path / EVENTS), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert len(list((tmp_path / EVENTS).iterdir())) == 1
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    for name in ("loss_g", "r1"):
        points = [(event.step, event.value) for event in events.Scalars(f"curves/{name}")]
        assert points == [(round(row["step"] * 1000), pytest.approx(row[name])) for row in rows]
    assert [event.step for event in events.Images("samples")] == [8, 16, 24, 32]


def test_without_tensorboard_everything_else_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.curves.importlib.util.find_spec", lambda name: None)
    train(noise_images(), tmp_path, tiny_settings(n_steps=2), 3)
    assert {name for name in TIMED if (tmp_path / name).exists()} == set(TIMED) - {EVENTS}
