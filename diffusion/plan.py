"""From nnU-Net's plans to every setting of the diffusion models.

    python -m diffusion.plan 4

Writes one YAML file, ``diffusion_plan.yaml`` in the preprocessed dataset's folder: for images (2D) and volumes (3D), as
far as the plans have them, a model in pixels (``ddpm``) and one in an autoencoder's latents (``ldm``). The rules are
``diffusion.planning``'s; lengths are those of the specification (section 4.5): epochs of 250 steps, 200 in 2D and 300
in 3D, twice as many from 100 training cases on (of 70 % of all), three times from 500 on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from common.command import command
from common.errors import InputError
from common.files import write_text
from common.machine import Machine, describe_machine
from common.plan import Plan, plan_from_json
from common.settings import from_dict, to_dict
from diffusion.layout import shrunk
from diffusion.planning import derive_settings, with_length
from diffusion.settings import AutoencoderConfig, DiffusionConfig, DiffusionSettings, check_config
from nnunetv2_mod.nnunet_folder import DATASET_JSON, NnunetDataset, find_dataset

log = logging.getLogger(__name__)

PLAN_FILE = "diffusion_plan.yaml"
CONFIGURATIONS = {"2D": "2d", "3D": "3d_fullres"}
MODELS = {"ddpm": None, "ldm": AutoencoderConfig()}
ABOUT = {"ddpm": "a diffusion model in pixels", "ldm": "a diffusion model in the latents of an autoencoder"}
MEMORY = "estimated_memory_gib"
AGAIN = "write it again with python -m diffusion.plan"
EPOCHS, STEPS_PER_EPOCH = {"2D": 200, "3D": 300}, 250
TRAINING_SHARE, MORE_EPOCHS_FROM = 0.7, (100, 500)  # training cases
MEMORY_WITHOUT_GPU_GIB = 8.0
HEADER = """\
# Diffusion models for {name}, from its nnU-Net plans by python -m diffusion.plan; one may edit it.
# Sizes, strides and kernels are in the order of the plans' axes, levels from full size to the smallest.
# `config` is what was asked for (auto: left to the plan), the keys beside it are what is used.
# Memory: at the peak of a step, with batch_size / n_accumulated images at a time.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", help="id (1 or 001) or name (Dataset001_X) in nnUNet_preprocessed, or a preprocessed dataset's path"
    )
    parser.add_argument("--plans-name", default="nnUNetPlans", help="file of the plans")
    parser.add_argument("--channels", type=_channels, help="such as 0,2: only these (default: all)")
    parser.add_argument("--labels", action="store_true", help="generate the label maps with the images")
    parser.add_argument("--out", type=Path, help=f"file (default: {PLAN_FILE} in the preprocessed dataset)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="to train on; auto: a GPU if one is here"
    )
    parser.add_argument(
        "--memory-gib",
        type=float,
        help=f"of that device (default: what the GPU here has, {MEMORY_WITHOUT_GPU_GIB:g} where there is none)",
    )


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Write the plan and print its path."""
    dataset = find_dataset(chosen.dataset, chosen.plans_name)
    machine = _machine(chosen.device, chosen.memory_gib)
    text = plan_text(dataset, chosen.plans_name, machine, chosen.channels, chosen.labels)
    target = chosen.out or dataset.preprocessed / PLAN_FILE
    write_text(target, text)
    sys.stdout.write(f"{target}\n")


def _channels(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of channels such as 0,2")
    return [int(part) for part in parts]


def _machine(device: str, memory_gib: float | None) -> Machine:
    """That to train on; a GPU that is not here computes, for all that is known, in float32."""
    import torch

    if memory_gib is not None and not memory_gib > 0:
        raise InputError(
            f"a plan cannot be made for {memory_gib} GiB", where="--memory-gib", fix="give a number above 0"
        )
    has_gpu = torch.cuda.is_available()
    kind = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    if kind == "cuda" and has_gpu:
        here = describe_machine("cuda")
        return here if memory_gib is None else replace(here, memory_gib=memory_gib)
    if kind == "cuda":
        log.info("no GPU here: planned for one that computes in float32")
    return Machine(kind, MEMORY_WITHOUT_GPU_GIB if memory_gib is None else memory_gib, has_bf16=False)


def plan_text(
    dataset: NnunetDataset,
    plans_name: str,
    machine: Machine,
    channels: list[int] | None = None,
    with_labels: bool = False,
) -> str:
    """The YAML file.

    A configuration that the plans lack, or a model that does not fit into the machine, is left out with a line in the
    log.

    Args:
        channels: which of the images' are generated; None: all.
        with_labels: whether their label maps are generated with them.

    Raises:
        InputError: channels that are not there, unreadable plans, or nothing is left.
    """
    where = f"{dataset.preprocessed / plans_name}.json"
    n_cases = _n_cases(dataset)
    wanted = {name: key for name, key in CONFIGURATIONS.items() if key in dataset.plans.get("configurations", {})}
    plans = {name: plan_from_json(dataset.plans, key, where) for name, key in wanted.items()}
    for name in CONFIGURATIONS.keys() - plans.keys():
        log.info("%s: left out, the plans have no configuration %s", name, CONFIGURATIONS[name])
    if not plans:
        problem = f"neither of the configurations {', '.join(CONFIGURATIONS.values())}"
        raise InputError(problem, where=where, fix="plan the dataset with nnU-Net again")
    chosen = _checked_channels(channels, next(iter(plans.values())).n_channels)
    n_label_channels = _n_labels(dataset) if with_labels else 0
    about = {"name": dataset.name, "plans": plans_name, "channels": chosen, "n_cases": n_cases}
    parts = [HEADER.format(name=dataset.name), _block({"dataset": about, "machine": to_dict(machine)})]
    refusals: list[InputError] = []
    for name, plan in plans.items():
        n_images = n_cases * (_n_slices(dataset) if name == "2D" else 1)
        found = []
        for model, autoencoder in MODELS.items():
            config = DiffusionConfig(autoencoder, n_snapshots=n_epochs(name, n_cases))
            try:
                derived = derive_settings(plan, n_images, len(chosen), 1.0, config, machine, n_label_channels)
                found.append(f"  # {ABOUT[model]}\n  {model}:\n{_model_block(with_epochs(derived))}")
            except InputError as error:
                log.info("%s %s: left out: %s", name, model, error)
                refusals.append(error)
        if found:
            parts += [f"\n# {_about_plan(plan)}\n{name}:\n", *found]
    if len(refusals) == len(MODELS) * len(plans):
        raise refusals[0]
    return "".join(parts)


def _model_block(settings: DiffusionSettings) -> str:
    """What stands under a model's name."""
    from diffusion.cost import estimated_bytes

    estimates = {key: round(needed / 2**30, 2) for key, needed in estimated_bytes(settings).items()}
    return _block({MEMORY: estimates, **to_dict(settings)}, indent=4)


def n_epochs(dimensions: str, n_cases: int) -> int:
    """Of 250 steps, of each training, for "2D" or "3D" and ``n_cases`` of which 70 % are trained on."""
    factor = 1 + sum(TRAINING_SHARE * n_cases >= least - 1e-9 for least in MORE_EPOCHS_FROM)
    return EPOCHS[dimensions] * factor


def with_epochs(settings: DiffusionSettings) -> DiffusionSettings:
    """``n_snapshots`` epochs of 250 steps for each of the two trainings."""
    config = settings.config
    n_steps = config.n_snapshots * STEPS_PER_EPOCH
    n_denoiser = n_steps * settings.batch_size
    if config.autoencoder is None or settings.autoencoder is None:
        return with_length(settings, n_denoiser / 1000)
    n_autoencoder = n_steps * settings.autoencoder.batch_size
    share = n_autoencoder / (n_autoencoder + n_denoiser)
    own = replace(config.autoencoder, kimg_share=share)
    settings = replace(settings, config=replace(config, autoencoder=own))
    return with_length(settings, (n_autoencoder + n_denoiser) / 1000)


def read_source(path: Path) -> tuple[str, list[int]]:
    """Of which nnU-Net plans, by name, and of which channels of the images the plan at ``path`` is.

    Raises:
        InputError: no such file, or one that does not say so.
    """
    about = _read(path).get("dataset")
    about = about if isinstance(about, dict) else {}
    name, channels = about.get("plans"), about.get("channels")
    is_list = isinstance(channels, list) and bool(channels) and all(type(one) is int and one >= 0 for one in channels)
    if not isinstance(name, str) or not is_list:
        raise InputError(f"dataset is {about!r}", where=path, fix=f"name its plans and channels, or {AGAIN}")
    return name, list(channels or [])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("there is no such file", where=path, fix=AGAIN)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the file is not YAML ({error})", where=path, fix=AGAIN) from error
    return content if isinstance(content, dict) else {}


def read_plan(path: Path, dimensions: str, model: str) -> DiffusionSettings:
    """The settings of ``model``, "ddpm" or "ldm", for "2D" or "3D" from a plan that this module wrote.

    Raises:
        InputError: no such file, model or key, or values that no network can have.
    """
    again, blocks = AGAIN, _read(path)
    there = [f"{d} {m}" for d in CONFIGURATIONS if isinstance(blocks.get(d), dict) for m in blocks[d]]
    if f"{dimensions} {model}" not in there or not isinstance(blocks[dimensions][model], dict):
        fix = f"use one of those there ({', '.join(there) or 'none'}), or {again}"
        raise InputError(f"there is no model {dimensions} {model}", where=path, fix=fix)
    values = {key: value for key, value in blocks[dimensions][model].items() if key != MEMORY}
    where = f"{path}: {dimensions}.{model}"
    try:
        settings = from_dict(DiffusionSettings, values)
    except TypeError as error:
        raise InputError(str(error), where=where, fix=f"correct it, or {again}") from error
    check_config(settings.config, f"{where}.config")
    _check_networks(settings, where)
    return settings


def _check_networks(settings: DiffusionSettings, where: str) -> None:
    """InputError unless levels, strides and size belong together: one may edit the file."""
    size = settings.image_size
    for name, network in (("autoencoder", settings.autoencoder), ("denoiser", settings.denoiser)):
        if network is None:
            continue
        channels, strides, kernels = network.channels, network.strides, network.kernel_sizes
        if not len(channels) == len(strides) + 1 == len(kernels) + 1:
            problem = f"{len(channels)} widths, {len(strides)} strides and {len(kernels)} kernels"
            fix = "give one width more than strides, and as many kernels as strides"
            raise InputError(problem, where=f"{where}.{name}", fix=fix)
        if any(len(of_axes) != len(size) for of_axes in (*strides, *kernels, network.first_kernel)):
            fix = f"give {len(size)} numbers, one an axis of the image"
            raise InputError("it has a stride or kernel of other axes", where=f"{where}.{name}", fix=fix)
        for stride in strides:
            if any(n % s for n, s in zip(size, stride, strict=True)):
                problem = f"{settings.image_size} cannot be divided by the strides: {size} by {stride}"
                raise InputError(problem, where=f"{where}.{name}", fix="give an image_size that all strides divide")
            size = shrunk(size, [stride])


def _n_cases(dataset: NnunetDataset) -> int:
    n_cases = dataset.dataset_json.get("numTraining")
    if not isinstance(n_cases, int) or n_cases < 1:
        problem = f"numTraining is {n_cases!r}"
        raise InputError(problem, where=dataset.preprocessed / DATASET_JSON, fix="give the number of training cases")
    return n_cases


def _n_labels(dataset: NnunetDataset) -> int:
    """Foreground labels, which are 1 to this number."""
    labels = dataset.dataset_json.get("labels", {})
    found = [value for name, value in labels.items() if name not in ("background", "ignore")]
    if not found or found != list(range(1, len(found) + 1)):
        fix = "plan without --labels, or number the labels from 1 on; regions cannot be generated"
        raise InputError(f"labels {labels}", where=dataset.preprocessed / DATASET_JSON, fix=fix)
    return len(found)


def _n_slices(dataset: NnunetDataset) -> int:
    """Of a case, as images of the 2D configuration."""
    shape: Sequence[float] = dataset.plans.get("original_median_shape_after_transp", [1])
    return max(1, round(shape[0]))


def _checked_channels(channels: list[int] | None, n_there: int) -> list[int]:
    if channels is None:
        return list(range(n_there))
    if len(set(channels)) < len(channels) or max(channels) >= n_there:
        problem = f"channels {channels} of images with {n_there}"
        raise InputError(problem, where="--channels", fix=f"give different ones from 0 to {n_there - 1}")
    return channels


def _about_plan(plan: Plan) -> str:
    kind = "images" if plan.n_axes == 2 else "volumes"
    size, patch = (" x ".join(str(n) for n in numbers) for numbers in (plan.median_image_size, plan.patch_size))
    spacing = " x ".join(f"{mm:g}" for mm in plan.spacing_mm)
    return f"{kind}: configuration {plan.configuration}, median size {size} at {spacing} mm, patch {patch}"


class _Dumper(yaml.SafeDumper):
    """Lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)


def _block(values: Mapping[str, Any], indent: int = 0) -> str:
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120)
    return "".join(" " * indent + line for line in text.splitlines(keepends=True))


if __name__ == "__main__":
    sys.exit(main())
