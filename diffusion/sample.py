"""Images or volumes of a trained diffusion model: each follows from its own seed alone (D34).

    python -m diffusion.sample --checkpoint runs/demo_ldm/fold_0/generator/A/generator.safetensors --n 64 --sheet

docs/diffusion.md explains the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.command import command
from common.errors import InputError
from common.machine import found_device
from common.progress import Progress, shown_progress, silent
from diffusion.settings import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.batch_sampler import BatchSampler
    from diffusion.model import Opened

MOST_ON_A_SHEET = 64


def sample(
    checkpoint: Path,
    seeds: Sequence[int],
    batch_size: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    sampler: str | None = None,
    n_evaluations: int | None = None,
) -> np.ndarray:
    """One image per seed, (n, channels, height, width), in the integer type of the training images.

    Args:
        batch_size: images in a forward pass; None: as many as are fast on this device. For one choice an image is the
            same to the last bit whatever other seeds there are.
        sampler: ``ddpm``, ``ddim`` or ``multistep``; None, as for ``n_evaluations``: what the settings say.

    Raises:
        InputError: ``checkpoint`` holds no model of images, or the sampler does not suit it.
    """
    return sample_with_labels(checkpoint, seeds, batch_size, device, progress, sampler, n_evaluations)[0]


def sample_with_labels(
    checkpoint: Path,
    seeds: Sequence[int],
    batch_size: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    sampler: str | None = None,
    n_evaluations: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As ``sample``, with the labels (n, height, width) uint8 of a model that generates them too, else None."""
    import torch

    from diffusion.batch_sampler import BatchSampler
    from diffusion.data import channels_as_labels
    from diffusion.model import open_model
    from training.pictures import images_to_integers

    opened = open_model(checkpoint, device)
    if "file_ending" in opened.output_spec:
        fix = "use python -m diffusion.sample, which writes them with their geometry"
        raise InputError("it is a model of volumes or crops", where=checkpoint, fix=fix)
    passes, n_channels = (
        BatchSampler(opened.model, batch_size, sampler, n_evaluations),
        opened.model.settings.n_channels,
    )
    parts = list(_with_progress(passes, seeds, progress))
    shape = (0, opened.model.settings.n_data_channels, *opened.model.settings.image_size)
    made = torch.cat([torch.zeros(shape), *parts])
    images = images_to_integers(made[:, :n_channels], np.dtype(opened.output_spec["dtype"]))
    labels = channels_as_labels(made[:, n_channels:].numpy()) if opened.model.settings.n_label_channels else None
    return images, labels


def _with_progress(passes: BatchSampler, seeds: Sequence[int], progress: Progress) -> Iterator[Tensor]:
    """The passes, with the evaluations inside each counted as parts of its images."""
    done = 0

    def asked(n_asked: int) -> None:
        share = min(passes.n_images, len(seeds) - done) * n_asked / passes.n_evaluations
        progress(min(len(seeds), done + share), len(seeds), "images")

    for made in passes(seeds, asked):
        done += len(made)
        progress(done, len(seeds), "images")
        yield made


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="the generator.safetensors of a training")
    parser.add_argument("--n", type=int, default=16, help="number of images or volumes")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one, the others follow")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: what the model was trained with)")
    parser.add_argument("--evaluations", type=int, help="of the network for an image; ddpm: usually 1000")
    parser.add_argument("--batch", type=int, help="images in a forward pass (default: what is fast)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ..., or auto: a GPU if there is one")
    parser.add_argument("--sheet", action="store_true", help="also one picture of all (volumes: a moving one)")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Sample and write, pass by pass, so that any number of images fits into memory; print what was written."""
    import torch

    from diffusion.batch_sampler import BatchSampler
    from diffusion.model import open_model
    from diffusion.pictures import write_samples

    if chosen.n < 1 or chosen.seed < 0:
        fix = "use --n 1 or more, --seed 0 or more"
        raise InputError(f"--n {chosen.n} --seed {chosen.seed}", where="diffusion.sample", fix=fix)
    opened = open_model(chosen.checkpoint, found_device(chosen.device))
    n_channels = opened.model.settings.n_channels
    seeds = range(chosen.seed, chosen.seed + chosen.n)
    if chosen.batch is not None and chosen.batch < 1:
        raise InputError(f"--batch {chosen.batch}", where="diffusion.sample", fix="use 1 or more")
    passes = BatchSampler(opened.model, chosen.batch, chosen.sampler, chosen.evaluations)
    shown: list[Tensor] = []
    done = 0
    with shown_progress() as progress:
        for made in _with_progress(passes, seeds, progress):
            shown += [made[: MOST_ON_A_SHEET - done]] if chosen.sheet and done < MOST_ON_A_SHEET else []
            for image, seed in zip(made, seeds[done : done + len(made)], strict=True):
                _write_one(image, opened, chosen.out, seed)
            done += len(made)
    if "file_ending" in opened.output_spec:
        from nnunetv2_mod.output_spec import output_spec_from, write_dataset_json

        write_dataset_json(chosen.out, output_spec_from(opened.output_spec), opened.model.settings.n_axes, chosen.n)
    lines = [f"{opened.kimg:g} kimg of training, {passes.sampler} with {passes.n_evaluations} evaluations"]
    lines.append(f"{done} of seeds {seeds[0]} to {seeds[-1]}: {chosen.out}")
    if chosen.sheet:
        write_samples(chosen.out / "sheet", torch.cat(shown), n_channels, opened.kimg)
        lines.append(f"sheet: {chosen.out / 'sheet'}")
    sys.stdout.write("\n".join(lines) + "\n")


def _write_one(image: Tensor, opened: Opened, folder: Path, seed: int) -> None:
    """As PNG or array where the model saw images, with geometry and intensities where it saw nnU-Net's cases."""
    from diffusion.data import channels_as_labels
    from training.pictures import images_to_integers, write_image

    n_channels = opened.model.settings.n_channels
    has_labels = opened.model.settings.n_label_channels > 0
    labels = channels_as_labels(image[None, n_channels:].numpy())[0] if has_labels else None
    if "file_ending" not in opened.output_spec:
        integers = images_to_integers(image[None, :n_channels], np.dtype(opened.output_spec["dtype"]))[0]
        write_image(integers, folder, seed)
        if labels is not None:
            write_image(labels[None], folder / "labels", seed)
        return
    from nnunetv2_mod.output_spec import output_spec_from, write_sample

    spec = output_spec_from(opened.output_spec)
    write_sample(folder, f"seed_{seed:08d}", image[:n_channels].numpy(), spec, labels)


if __name__ == "__main__":
    sys.exit(main())
