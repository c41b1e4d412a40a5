"""Crops of preprocessed cases, for a training: the content of a batch follows from the seed and the step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.seeds import derive_seed
from common.settings import to_dict
from diffusion.data import labels_as_channels
from diffusion.settings import DiffusionSettings
from nnunetv2_mod.case_splits import split_cases
from nnunetv2_mod.case_survey import Survey, SurveyedCase, window_of
from nnunetv2_mod.cases import CaseFolder, Voxel
from nnunetv2_mod.output_spec import SOURCE, to_network
from nnunetv2_mod.source_spec import check_dataset_json, output_spec_of, source_of
from training.image_batches import items_of_step

if TYPE_CHECKING:
    from common.plan import Plan
    from nnunetv2_mod.nnunet_folder import NnunetDataset

log = logging.getLogger(__name__)

FOREGROUND_SHARE = 0.33  # nnU-Net's: crops of a batch that are centred on a label
N_FIXED = {2: 16, 3: 4}  # validation crops, by the number of axes
MAX_FIXED_OF_A_CASE = 4
N_VALUES, MAX_VALUES = 4_000_000, 20_000  # voxels from which the windows follow: of all cases, and at most of one


class CropData:
    """Crops of the training cases of one fold: each case once before any is shown again.

    ``split`` says which cases train and which are held out. Of a 2D plan, a crop is one slice.
    """

    def __init__(
        self,
        dataset: NnunetDataset,
        plan: Plan,
        settings: DiffusionSettings,
        fold: int | str,
        seed: int,
        channels: Sequence[int] | None = None,
    ) -> None:
        """Look at all cases of the fold, which reads each of them once.

        Args:
            fold: 0 to 4, or ``all``.
            channels: those of the images that are trained on; None: all.

        Raises:
            InputError: no cases, a fold that does not exist, or a case no training can use; it names the file.
        """
        check_dataset_json(dataset, settings.n_channels)
        chosen = list(range(plan.n_channels) if channels is None else channels)
        folder = CaseFolder(dataset.preprocessed / plan.data_identifier, plan.n_channels, chosen)
        self.settings, self.seed = settings, seed
        self.split = split_cases(dataset, folder.names, fold)
        train = self.split.train
        others = [name for name in self.split.validate if name not in train]
        _check_use(folder, train, settings)
        source = source_of(dataset, plan, train)
        restored = [source.restored[channel] for channel in chosen]
        zero = [-one.offset / one.scale if one.space == SOURCE else None for one in restored]
        ignore = dataset.dataset_json["labels"].get("ignore")
        masked = [plan.use_mask_for_norm[channel] for channel in chosen]
        self._survey = Survey(
            folder, masked, zero, settings.n_label_channels or None, [] if ignore is None else [ignore]
        )
        self._cases, values = self._survey.of(train, max(1, min(N_VALUES // len(train), MAX_VALUES)))
        held_out = {case.name: case for case in [*self._cases, *self._survey.of(others)[0]]}
        self._watched = [held_out[name] for name in self.split.validate]
        self._output_spec = output_spec_of(dataset, plan, source, window_of(values), chosen)
        log.info("%s, fold %s: %d cases to train on, %d held out", dataset.name, fold, len(train), len(others))

    @property
    def output_spec(self) -> Mapping[str, Any]:
        """``nnunetv2_mod.output_spec.OutputSpec`` as JSON-able values."""
        return to_dict(self._output_spec)

    @property
    def n_items(self) -> int:
        """Cases to train on."""
        return len(self._cases)

    @property
    def has_heldout(self) -> bool:
        """Of every fold but ``all``."""
        return not set(self.split.validate) & set(self.split.train)

    def at(self, step: int, batch_size: int) -> Tensor:
        """The batch of ``step``: (batch_size, data channels, *size) in [-1, 1]; its last third is centred on labels."""
        n_random = batch_size - round(batch_size * FOREGROUND_SHARE)
        batch = torch.empty(batch_size, self.settings.n_data_channels, *self.settings.image_size)
        for place, index in enumerate(items_of_step(len(self._cases), step, batch_size, self.seed)):
            case = self._cases[index]
            draws = np.random.default_rng(derive_seed(self.seed, "crop", step, place))
            self._show(batch[place], case, self._start(case, draws, on_label=place >= n_random))
            if self.settings.config.mirror and draws.random() < 0.5:
                batch[place] = batch[place].flip(-1)
        return batch

    def fixed(self) -> Tensor:
        """Crops of the held-out cases, (number, data channels, *size): central ones and ones centred on labels."""
        n_fixed = N_FIXED[self.settings.n_axes]
        chosen = np.unique(np.linspace(0, len(self._watched) - 1, n_fixed).round().astype(int))
        found: dict[tuple[str, Voxel], SurveyedCase] = {}
        for turn in range(MAX_FIXED_OF_A_CASE):
            for number, case in enumerate(self._watched[i] for i in chosen):
                draws = np.random.default_rng(derive_seed("fixed", case.name, turn))
                central = turn < 2 and (turn + number) % 2 == 0
                middle = tuple((n - size) // 2 for n, size in zip(case.size, self._size, strict=True))
                start = middle if central else self._start(case, draws, on_label=True)
                if len(found) < n_fixed:
                    found[case.name, start] = case
        batch = torch.empty(len(found), self.settings.n_data_channels, *self.settings.image_size)
        for crop, ((_, start), case) in zip(batch, found.items(), strict=True):
            self._show(crop, case, start)
        return batch

    @property
    def _size(self) -> Voxel:
        """(Z, Y, X) of a crop."""
        return (1,) * (3 - self.settings.n_axes) + self.settings.image_size

    def _start(self, case: SurveyedCase, draws: np.random.Generator, *, on_label: bool) -> Voxel:
        """Where a crop begins: around a random voxel of a random label, or anywhere within the case."""
        rooms = [n - size for n, size in zip(case.size, self._size, strict=True)]
        if on_label and case.places:
            label = sorted(case.places)[draws.integers(len(case.places))]
            centre = case.places[label][draws.integers(len(case.places[label]))]
            start = [int(voxel) - size // 2 for voxel, size in zip(centre, self._size, strict=True)]
        else:
            start = [int(draws.integers(max(room, 0) + 1)) for room in rooms]
        return tuple(
            min(max(begin, 0), room) if room >= 0 else room // 2 for begin, room in zip(start, rooms, strict=True)
        )

    def _show(self, crop: Tensor, case: SurveyedCase, start: Voxel) -> None:
        """Fill ``crop``, (data channels, *size), with the voxels of ``case`` from ``start`` on."""
        stop = tuple(begin + size for begin, size in zip(start, self._size, strict=True))
        n_images, n_labels = self.settings.n_channels, self.settings.n_label_channels
        values, labels = self._survey.read(case, start, stop, with_labels=n_labels > 0)
        shown = crop if self.settings.n_axes == 3 else crop[:, None]
        shown[:n_images] = torch.from_numpy(to_network(values, self._output_spec.channels))
        if labels is not None:
            shown[n_images:] = labels_as_channels(labels[None], n_labels)[0]


def _check_use(folder: CaseFolder, train: tuple[str, ...], settings: DiffusionSettings) -> None:
    if folder.n_channels != settings.n_channels:
        problem = f"{folder.n_channels} channels of the cases for a model of {settings.n_channels}"
        raise InputError(problem, where=folder.folder, fix="plan the dataset again (python -m diffusion.plan)")
    if len(train) < 2:
        problem = f"{len(train)} case to train on: the model could only repeat it"
        raise InputError(problem, where=folder.folder, fix="give the dataset at least two")
    if settings.n_label_channels and not folder.labelled:
        raise InputError(
            "there are no label maps", where=folder.folder, fix="generate no labels, or preprocess with labels"
        )
