"""Images of a trained generator, or of one still in training: each follows from its own seed alone (D34).

    python -m gan.sample --checkpoint runs/demo/fold_0/generator/A/generator.safetensors --n 64 --sheet

docs/generator.md explains the options.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.checkpoints import load_tensors
from common.command import command
from common.errors import InputError
from common.machine import checked_device, found_device
from common.progress import Progress, silent
from common.settings import from_dict
from gan.settings import GanSettings
from training.training_state import GIVE_RESULT, RESULT, check_checkpoint_exists

if TYPE_CHECKING:
    from gan.model import GeneratorNetwork

AVERAGE = "average."  # the averaged generator's tensors in the checkpoint of a running training
MOST_ON_A_SHEET = 400
LINE_INTERVAL_S = 10.0  # where there is no terminal
BAR_WIDTH = 24


@dataclass(frozen=True)
class Opened:
    """A generator ready to sample, the integer type of its images and how long it has been trained so far."""

    network: GeneratorNetwork
    dtype: np.dtype
    kimg: float


def open_generator(checkpoint: Path, device: str = "cpu") -> Opened:
    """Read ``generator.safetensors``, or the averaged weights in the ``training.safetensors`` of a running training.

    Raises:
        InputError: the file is missing or holds neither, or there is no such device.
    """
    from gan.model import GeneratorNetwork

    check_checkpoint_exists(checkpoint)
    tensors, metadata = load_tensors(checkpoint)
    if any(name.startswith(AVERAGE) for name in tensors):
        tensors = {name.removeprefix(AVERAGE): tensors[name] for name in tensors if name.startswith(AVERAGE)}
    try:
        settings = from_dict(GanSettings, metadata["settings"])
        network = GeneratorNetwork(settings).eval().requires_grad_(False)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        problem = f"not a generator of this version ({str(error).splitlines()[0]})"
        raise InputError(problem, where=checkpoint, fix=GIVE_RESULT) from error
    step = metadata.get("step", settings.n_steps)
    kimg = min(settings.kimg, step * settings.config.batch_size / 1000)
    return Opened(network.to(checked_device(device)), np.dtype(metadata.get("dtype", "uint8")), kimg)


def sample(
    checkpoint: Path,
    seeds: Sequence[int],
    batch_size: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> np.ndarray:
    """One image per seed, (n, channels, height, width), in the integer type of the training images.

    Latent and noise maps of an image come from its seed; no truncation. For one ``batch_size`` an image is the same to
    the last bit whatever else is asked for in the same call (``gan.batch_sampler``).

    Args:
        batch_size: images in a forward pass; None: as many as are fast on this device.

    Raises:
        InputError: ``checkpoint`` holds no generator.
    """
    from gan.batch_sampler import BatchSampler

    opened = open_generator(checkpoint, device)
    settings = opened.network.settings
    images = np.empty((len(seeds), settings.n_channels, *settings.image_size_px), opened.dtype)
    done = 0
    for made in BatchSampler(opened.network, opened.dtype, batch_size)(seeds):
        images[done : done + len(made)] = made
        done += len(made)
        progress(done, len(seeds), "images")
    return images


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help=f"{RESULT}, or a running training's checkpoint")
    parser.add_argument("--n", type=int, default=64, help="number of images")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image, the others follow")
    parser.add_argument("--batch", type=_batch, help="images in a forward pass (default: auto)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ..., or auto: a GPU if there is one")
    parser.add_argument("--sheet", action="store_true", help="write sheet.png, a grid of the images, instead of files")
    parser.add_argument("--images", action="store_true", help="with --sheet: write the single files too")


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of images")
    return int(text)


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Sample and write, pass by pass, so that any number of images fits into memory; print what was written."""
    from gan.batch_sampler import BatchSampler
    from training.pictures import as_sheet, write_grid, write_image

    if chosen.n < 1 or chosen.seed < 0:
        raise InputError(
            f"--n {chosen.n} --seed {chosen.seed}", where="gan.sample", fix="use --n 1 or more, --seed 0 or more"
        )
    opened = open_generator(chosen.checkpoint, found_device(chosen.device))
    seeds = range(chosen.seed, chosen.seed + chosen.n)
    singles = chosen.images or not chosen.sheet
    shown: list[np.ndarray] = []
    done, names = 0, []
    with _progress_line() as progress:
        for made in BatchSampler(opened.network, opened.dtype, chosen.batch)(seeds):
            if singles:
                names += [write_image(image, chosen.out, seeds[done + i]).name for i, image in enumerate(made)]
            shown += list(made) if chosen.sheet and len(shown) < MOST_ON_A_SHEET else []
            done += len(made)
            progress(done, chosen.n, "images")
    lines = [f"{opened.kimg:g} kimg of training, seeds {seeds[0]} to {seeds[-1]}"]
    if singles:
        lines.append(f"{len(names)} images: {chosen.out / names[0]} to {names[-1]}")
    if chosen.sheet:
        images, shape = as_sheet(np.stack(shown[:MOST_ON_A_SHEET]))
        write_grid(images, shape, chosen.out / "sheet.png")
        more = f" (the first {MOST_ON_A_SHEET})" if chosen.n > MOST_ON_A_SHEET else ""
        lines.append(f"sheet{more}: {chosen.out / 'sheet.png'}")
    sys.stdout.write("\n".join(lines) + "\n")


@contextmanager
def _progress_line() -> Iterator[Progress]:
    """A bar with rate and time left (``[###  ] 24 of 64 images, 31.2 images/s, 1 s left``), or lines now and then."""
    started = last = time.monotonic()
    on_terminal = sys.stderr.isatty()

    def show(done: float, total: float, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not on_terminal and done < total and now - last < LINE_INTERVAL_S:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        line = f"{done:g} of {total:g} {unit}, {rate:.1f} {unit}/s{left}"
        filled = "#" * int(BAR_WIDTH * done / total)
        sys.stderr.write(f"\r[{filled:{BAR_WIDTH}}] {line}\033[K" if on_terminal else f"{line}\n")
        sys.stderr.flush()

    yield show
    if on_terminal:
        sys.stderr.write("\n")


if __name__ == "__main__":
    sys.exit(main())
