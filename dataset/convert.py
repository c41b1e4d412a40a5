"""A source's cases as an nnU-Net raw dataset: the interchange format of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import write_json
from common.progress import Progress, silent
from dataset.folds import Split
from dataset.images import Image, check_fits, limit_size, read_image, read_mask, write_array
from dataset.source import Case, SourceConfig
from nnunetv2_mod.raw_dataset import DATASET_JSON, NIFTI, PNG, dataset_json, write_case

_RGB = ("R", "G", "B")


def write_raw_dataset(
    cases: Sequence[Case], split: Split, out: Path, config: SourceConfig, progress: Progress = silent
) -> None:
    """Write ``out`` (``DatasetXXX_name``): train and val into imagesTr/labelsTr, test into imagesTs/labelsTs.

    8-bit RGB becomes one PNG (nnU-Net reads its three channels), anything else one file a channel, at the source's bit
    depth; volumes become .nii.gz with the source's geometry. Masks hold label ids. ``patients.json`` (case: patient)
    and ``splits.json`` go beside ``out``, ``dataset.json`` is written last. Running it again gives the same files.

    Raises:
        InputError: a case that cannot be read, differs in kind from the others, or a folder that holds other cases.
    """
    case_of = {case.case_id: case for case in cases}
    training, test = (*split.train, *split.val), split.test
    _refuse_foreign_files(out, {"Tr": training, "Ts": test})
    n_channels, ending = 0, ""
    for done, case_id in enumerate((*training, *test)):
        image, mask = read_pair(case_of[case_id], config)
        if done and (len(image.array), _ending(image)) != (n_channels, ending):
            raise InputError(
                f"it has {len(image.array)} channels for {_ending(image)}, those before it {n_channels} for {ending}",
                where=case_of[case_id].image,
                fix="keep images of one kind in a source",
            )
        n_channels, ending = len(image.array), _ending(image)
        # PNG readers of nnU-Net cut 16-bit colour down to 8 bit, so that only 8-bit RGB stays in one file
        is_rgb = not image.is_volume and image.array.dtype == np.uint8 and n_channels == 3
        write = partial(write_array, like=case_of[case_id].image)
        write_case(out, case_id, image.array, mask, ending, write, is_rgb=is_rgb, is_test=done >= len(training))
        progress(done + 1, len(training) + len(test), "case")
    write_json(out.parent / "patients.json", {case_id: case_of[case_id].patient for case_id in (*training, *test)})
    write_json(out.parent / "splits.json", {"train": split.train, "val": split.val, "test": split.test})
    names = channel_names(config, n_channels)
    write_json(out / DATASET_JSON, dataset_json(names, config.labels, len(training), ending))


def read_pair(case: Case, config: SourceConfig) -> tuple[Image, np.ndarray]:
    """A case's image and label ids of the same size, 2D ones at most ``max_size_px`` long.

    Raises:
        InputError: one of them cannot be read, or their sizes (volumes: their places in space) differ.
    """
    image = read_image(case.image)
    mask = read_mask(case.mask, config.mask_values, config.labels)
    check_fits(image, mask, case.image, case.mask)
    if image.is_volume:
        return image, mask
    pixels, mask = limit_size(image.array, mask, config.max_size_px)
    return Image(pixels, image.spacing_mm, is_volume=False), mask


def channel_names(config: SourceConfig, n_channels: int) -> tuple[str, ...]:
    """The configured names, or ``grey`` or ``R G B``.

    Raises:
        InputError: another number of names than channels.
    """
    names = config.channel_names or {1: ("grey",), 3: _RGB}.get(n_channels, ())
    if len(names) != n_channels:
        raise InputError(
            f"there are {len(names)} channel names {list(names)} for images of {n_channels} channels",
            where="channel_names",
            fix="give one name a channel, for example T2 or CT",
        )
    return names


def _refuse_foreign_files(out: Path, parts: dict[str, Iterable[str]]) -> None:
    """Files of other cases would silently become training data, and are not ours to delete."""
    for part, case_ids in parts.items():
        known = set(case_ids)
        for file in sorted(path for kind in ("images", "labels") for path in (out / f"{kind}{part}").glob("[!.]*")):
            name = file.name.partition(".")[0]
            if (name if file.parent.name.startswith("labels") else name[: -len("_0000")]) not in known:
                raise InputError(
                    "this file belongs to another dataset", where=file, fix=f"choose another folder or delete {out}"
                )


def _ending(image: Image) -> str:
    return NIFTI if image.is_volume else PNG
