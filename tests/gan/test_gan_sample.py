"""Sampling: one image a seed to the last bit, the command and its messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.gan_trainings import TINY, Stop, noise_images, plan_of, stop_after, tiny_settings, untrained

from common.checkpoints import save_tensors
from common.exit_codes import ExitCode
from gan.batch_sampler import BatchSampler, images_per_pass
from gan.model import GeneratorNetwork
from gan.sample import main, sample
from gan.settings import derive_settings
from gan.throughput import main as throughput
from gan.train import train
from gan.training import CHECKPOINT, RESULT


@pytest.mark.parametrize("batch_size", [None, 1, 5])
@pytest.mark.parametrize("size", [(10, 16), (40, 48)])
def test_for_one_batch_size_an_image_is_its_seeds_to_the_last_bit(
    batch_size: int | None, size: tuple[int, int], tmp_path: Path
) -> None:
    """Sixteen bits show what eight would round away; more than a pass, an odd number, another order, one alone."""
    path = untrained(tmp_path / RESULT, 1, "uint16", size)
    seeds = [*range(34), 2**62 + 7, 3]
    together = sample(path, seeds, batch_size)
    assert np.array_equal(sample(path, seeds[::-1], batch_size)[::-1], together)
    assert np.array_equal(sample(path, seeds[7:20], batch_size), together[7:20])
    assert np.array_equal(sample(path, seeds[34:35], batch_size), together[34:35])
    assert np.array_equal(together[3], together[35]) and len({image.tobytes() for image in together}) == 35


def test_an_image_rests_on_every_number_of_its_own_draw_and_on_no_other(tmp_path: Path) -> None:
    network = GeneratorNetwork(tiny_settings())
    for name, parameter in network.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    passes = BatchSampler(network.eval(), np.dtype(np.uint16), 4)
    numbers = passes.draw([5, 6, 7])
    assert not numbers[3].any() and torch.equal(passes.draw([9, 6])[1], numbers[1])
    before = passes.forward(numbers)
    for column in range(numbers.shape[1]):
        changed = numbers.clone()
        changed[1, column] += 1.0
        after = passes.forward(changed)
        assert not torch.equal(after[1], before[1]), column
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]]), column


def test_a_pass_is_small_for_large_images_and_never_empty() -> None:
    for size, most in (((64, 64), 8), ((1024, 1024), 1)):
        settings = derive_settings(plan_of(size, [(2, 2)] * 3), 5, 1, 1.0, TINY)
        assert images_per_pass(settings, "cpu") == most <= images_per_pass(settings, "cuda")


@pytest.mark.parametrize(
    "n_channels,dtype,name",
    [(1, "uint8", "png"), (3, "uint8", "png"), (1, "uint16", "png"), (3, "uint16", "png"), (2, "uint16", "npy")],
)
def test_the_command_writes_what_sample_returns(
    n_channels: int, dtype: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = untrained(tmp_path / RESULT, n_channels, dtype)
    out = tmp_path / "images"
    assert main(["--checkpoint", str(path), "--n", "5", "--seed", "40", "--out", str(out), "--sheet", "--images"]) == 0
    expected = sample(path, range(40, 45))
    files = sorted(out.glob("seed_*"))
    assert [file.name for file in files] == [f"seed_{seed:08d}.{name}" for seed in range(40, 45)]
    for file, image in zip(files, expected):
        assert np.array_equal(read(file), image)
    sheet = np.asarray(Image.open(out / "sheet.png"))
    assert sheet.shape[:2] == (20, 48) and not sheet[10:, 32:].any()  # 2 rows of 3, one of them empty
    captured = capsys.readouterr()
    assert "seeds 40 to 44" in captured.out and "5 of 5 images" in captured.err and "images/s" in captured.err


def read(file: Path) -> np.ndarray:
    """(channels, height, width) of a single image."""
    if file.suffix == ".npy":
        return np.load(file)
    import imagecodecs

    pixels = imagecodecs.png_decode(file.read_bytes())
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def test_a_training_that_still_runs_is_sampled_by_its_averaged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint at the snapshot of step 8 of 16, against a training of the same steps that has ended."""
    images = noise_images(dtype=np.uint16)
    with pytest.raises(Stop):
        train(images, tmp_path, tiny_settings(), 3, progress=stop_after(9))
    sampled = sample(tmp_path / CHECKPOINT, range(3))
    assert sampled.dtype == np.uint16
    assert main(["--checkpoint", str(tmp_path / CHECKPOINT), "--n", "2", "--sheet", "--out", str(tmp_path / "o")]) == 0
    assert "0.016 kimg" in capsys.readouterr().out
    train(images, tmp_path, tiny_settings(), 3)
    assert not np.array_equal(sample(tmp_path / RESULT, range(3)), sampled)


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--checkpoint", "run"], "run/generator.safetensors"),
        (["--checkpoint", "run/missing.safetensors"], "give run/generator.safetensors"),
        (["--checkpoint", "elsewhere/generator.safetensors"], "runs/<exp_name>"),
        (["--checkpoint", "run/broken/other.safetensors"], "not a generator"),
        (["--checkpoint", "run/broken/cut.safetensors"], "not a readable checkpoint"),
        (["--checkpoint", "run/generator.safetensors", "--device", "cuda:77"], "--device cpu"),
        (["--checkpoint", "run/generator.safetensors", "--n", "0"], "--n 1 or more"),
    ],
)
def test_what_cannot_be_sampled_is_named_with_the_way_out(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    untrained(Path("run/generator.safetensors"), 1, "uint8")
    save_tensors(Path("run/broken/other.safetensors"), {"a": torch.zeros(1)}, {"seed": 1})
    Path("run/broken/cut.safetensors").write_bytes(Path("run/generator.safetensors").read_bytes()[:1000])
    assert main(arguments) == ExitCode.BAD_INPUT
    written = capsys.readouterr().err
    assert named in written and "way out" in written
    assert not Path("samples").exists()


def test_throughput_prints_both_rates_and_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """No time is asserted: the goal is measured by the command, on a machine that is still."""
    assert throughput(["--res", "16", "--base", "64", "--passes", "1", "--rounds", "1", "--device", "cpu"]) == 0
    written = capsys.readouterr().out
    assert "bare forward" in written and float(written.split("ratio")[1]) > 0
    assert throughput(["--res", "48"]) == 2 and "power of two" in capsys.readouterr().err
