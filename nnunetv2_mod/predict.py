"""Label arrays with a trained network: the same preprocessing as in training, batched where images fit the patch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.checkpoints import load_tensors
from common.files import read_json
from nnunetv2_mod.training import MODEL_FILE

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SegmentationModel:
    """A trained nnU-Net, ready to label; ``plans`` and ``configuration`` are nnU-Net's managers."""

    network: torch.nn.Module
    plans: Any
    configuration: Any
    dataset_json: dict[str, Any]
    mirror_axes: tuple[int, ...]
    device: str


def load_model(folder: Path, device: str = "cpu") -> SegmentationModel:
    """Read a ``model`` folder written by ``train``."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    tensors, metadata = load_tensors(folder / MODEL_FILE)
    plans = PlansManager(read_json(folder / "plans.json"))
    configuration = plans.get_configuration(metadata["configuration"])
    dataset_json = read_json(folder / "dataset.json")
    network = build_network(plans.plans, dataset_json, metadata["configuration"])
    network.load_state_dict(tensors)
    return SegmentationModel(
        network.to(device).eval(), plans, configuration, dataset_json, tuple(metadata["mirror_axes"]), device
    )


def build_network(plans: dict[str, Any], dataset_json: dict[str, Any], configuration_name: str) -> torch.nn.Module:
    """The plan's network with arbitrary weights, one output."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration = manager.get_configuration(configuration_name)
    network: torch.nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(configuration.normalization_schemes),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )
    return network


def predict_arrays(
    model: SegmentationModel, images: Sequence[np.ndarray], spacings_mm: Sequence[Sequence[float]]
) -> list[np.ndarray]:
    """Label maps (slices, height, width) of ``images`` (channels, slices, height, width) in their own geometry.

    Every image goes through the plan's own preprocessing (transposition, crop to non-zero, normalisation channel by
    channel, resampling), exactly as the training cases did; the original z-scored all channels together (D3).
    """
    prepared = [_preprocess(model, image, spacing) for image, spacing in zip(images, spacings_mm, strict=True)]
    logits = _predict_logits(model, [data for data, _ in prepared])
    return [_to_labels(model, logit, properties) for logit, (_, properties) in zip(logits, prepared, strict=True)]


def predict_normalised(model: SegmentationModel, arrays: np.ndarray) -> np.ndarray:
    """Label maps (n, height, width) of images (n, channels, height, width) that are already in the plan's space."""
    manager = model.plans.get_label_manager(model.dataset_json)
    (logits,) = _predict_logits(model, [np.moveaxis(arrays.astype(np.float32), 0, 1)])
    return np.asarray(manager.convert_logits_to_segmentation(logits)).astype(np.uint8)


def read_raw_image(model: SegmentationModel, files: Sequence[Path]) -> tuple[np.ndarray, tuple[float, ...]]:
    """A raw case's (channels, slices, height, width) float32 and spacing, by the plan's reader."""
    data, properties = model.plans.image_reader_writer_class().read_images([str(file) for file in files])
    return data, tuple(float(value) for value in properties["spacing"])


def _preprocess(
    model: SegmentationModel, image: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, dict[str, Any]]:
    preprocessor = model.configuration.preprocessor_class(verbose=False)
    properties: dict[str, Any] = {"spacing": list(spacing_mm)}
    data, _, properties = preprocessor.run_case_npy(
        image, None, properties, model.plans, model.configuration, model.dataset_json
    )
    return data, properties


def _predict_logits(model: SegmentationModel, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Logits (classes, slices, height, width) of each array; slices that fit the patch share forward passes."""
    patch = tuple(model.configuration.patch_size)
    fitting = [index for index, data in enumerate(arrays) if data.shape[2] <= patch[0] and data.shape[3] <= patch[1]]
    logits: dict[int, np.ndarray] = {}
    if fitting:
        stack = np.concatenate([_pad(arrays[index], patch) for index in fitting])
        start = 0
        batched = _forward(model, stack)
        for index in fitting:
            n_slices, height, width = arrays[index].shape[1:]
            top, left = (patch[0] - height) // 2, (patch[1] - width) // 2
            block = batched[start : start + n_slices, :, top : top + height, left : left + width]
            logits[index] = np.moveaxis(block, 0, 1)
            start += n_slices
    for index in set(range(len(arrays))) - set(fitting):
        logits[index] = _sliding_window(model, arrays[index])
    return [logits[index] for index in range(len(arrays))]


def _pad(data: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """(channels, slices, h, w) -> (slices, channels, *patch), centred on zeros as nnU-Net does."""
    missing = [patch[axis] - data.shape[2 + axis] for axis in range(2)]
    widths = [(0, 0), (0, 0), *((gap // 2, gap - gap // 2) for gap in missing)]
    return np.moveaxis(np.pad(data, widths), 1, 0)


def _forward(model: SegmentationModel, stack: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Mean logits over the mirrored copies the network was trained with."""
    import torch

    axes = [axis + 2 for axis in model.mirror_axes]
    flips = [flip for n_axes in range(len(axes) + 1) for flip in itertools.combinations(axes, n_axes)]
    outputs = []
    with torch.inference_mode(), torch.autocast("cuda", enabled=model.device.startswith("cuda")):
        for start in range(0, len(stack), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(stack[start : start + batch_size])).to(model.device)
            mirrored = [torch.flip(model.network(torch.flip(batch, flip)), flip) for flip in flips]
            outputs.append(torch.stack(mirrored).mean(dim=0).float().cpu().numpy())
    return np.concatenate(outputs)


def _sliding_window(model: SegmentationModel, data: np.ndarray) -> np.ndarray:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device(model.device), allow_tqdm=False)
    predictor.manual_initialization(
        model.network,
        model.plans,
        model.configuration,
        [model.network.state_dict()],
        model.dataset_json,
        "SiteTrainer",
        model.mirror_axes or None,
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    return logits.float().numpy()


def _to_labels(model: SegmentationModel, logits: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    labels: np.ndarray = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        model.plans,
        model.configuration,
        model.plans.get_label_manager(model.dataset_json),
        properties,
        num_threads_torch=1,
    )
    return labels
