"""Dice, IoU, HD95 and NSD of one case, label by label, in 2D and in 3D.

Conventions, the same for every model and site:

* Axes of length 1 are dropped with their spacing. nnU-Net stores a PNG as a volume of depth 1 with spacing
  (999, 1, 1); as a 3D object it is all surface, which makes distances too small (defect D4 of the original).
* A border pixel is an object pixel with a background neighbour along an axis; outside the image is background.
* Both masks empty: every metric is NaN. The case says nothing about the label; it is left out of means and counted.
* One mask empty: Dice, IoU and NSD are 0 and HD95 is the image's diagonal, which no other outcome reaches, so that
  missing an object never improves a mean (the original dropped these cases from HD95).
* NSD counts border pixels (not surface areas) within the tolerance of the other border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

HD95_PERCENTILE = 95.0


@dataclass(frozen=True)
class MaskPair:
    """Two boolean masks of one shape, with ``spacing`` (mm, or px for images without one) for each axis.

    ``diagonal`` is the whole image's, in the unit of the spacing; ``nsd_tolerance`` is in that unit too.
    """

    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]
    diagonal: float
    nsd_tolerance: float

    @cached_property
    def n_empty(self) -> int:
        """How many of the two masks are empty: 0, 1 or 2."""
        return int(not self.reference.any()) + int(not self.prediction.any())

    @cached_property
    def border_distances(self) -> np.ndarray:
        """Distances of each border pixel to the other mask's border, both directions concatenated; 1D."""
        return _border_distances(self.reference, self.prediction, self.spacing)


def _dice(pair: MaskPair) -> float:
    overlap = np.count_nonzero(pair.reference & pair.prediction)
    return 2 * overlap / (np.count_nonzero(pair.reference) + np.count_nonzero(pair.prediction))


def _iou(pair: MaskPair) -> float:
    return np.count_nonzero(pair.reference & pair.prediction) / np.count_nonzero(pair.reference | pair.prediction)


def _hd95(pair: MaskPair) -> float:
    # the percentile of both directions pooled, as in medpy, which the paper used
    return float(np.percentile(pair.border_distances, HD95_PERCENTILE))


def _nsd(pair: MaskPair) -> float:
    return float(np.mean(pair.border_distances <= pair.nsd_tolerance))


@dataclass(frozen=True)
class Metric:
    """A metric of a mask pair: how it is called, which way is better, its bounds, and how it is computed.

    ``compute`` is only called where both masks hold something; ``value`` adds the conventions for empty masks.
    """

    name: str
    title: str
    direction: str  # "higher" or "lower" is better
    lower: float
    upper: float
    unit: str
    compute: Callable[[MaskPair], float]

    def value(self, pair: MaskPair) -> float:
        """The metric of ``pair``: NaN if both masks are empty, the worst value if one is."""
        if pair.n_empty == 2:
            return math.nan
        if pair.n_empty == 1:
            return self.lower if self.direction == "higher" else min(self.upper, pair.diagonal)
        return self.compute(pair)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice", "higher", 0.0, 1.0, "fraction", _dice),
        Metric("iou", "IoU", "higher", 0.0, 1.0, "fraction", _iou),
        Metric("hd95", "HD95", "lower", 0.0, math.inf, "mm (px for images without a spacing)", _hd95),
        Metric("nsd", "NSD", "higher", 0.0, 1.0, "fraction", _nsd),
    )
}


@dataclass(frozen=True)
class CaseScore:
    """The metrics of one label of one case; NaN where both masks are empty."""

    label: str
    dice: float
    iou: float
    hd95: float
    nsd: float


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    labels: Mapping[str, int],
    nsd_tolerance: float = 2.0,
) -> list[CaseScore]:
    """Score every label but the background (value 0) of two label maps, in the order of ``labels``.

    Args:
        reference: label map, 2D or 3D.
        prediction: label map of the same shape.
        spacing: one positive number an axis, in mm (px: 1); its unit is the unit of HD95 and of ``nsd_tolerance``.
        labels: name -> value, as in nnU-Net's ``dataset.json``.
        nsd_tolerance: largest distance between borders that counts as agreement.

    Raises:
        ValueError: shapes differ, or the spacing does not fit them.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference {reference.shape} and prediction {prediction.shape} differ in shape")
    if len(spacing) != reference.ndim or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing {tuple(spacing)} does not fit a label map of shape {reference.shape}")
    kept = [axis for axis, length in enumerate(reference.shape) if length > 1] or [0]
    steps, shape = tuple(float(spacing[axis]) for axis in kept), tuple(reference.shape[axis] for axis in kept)
    reference, prediction = reference.reshape(shape), prediction.reshape(shape)
    diagonal = math.hypot(*(step * length for step, length in zip(steps, shape, strict=True)))
    scores = []
    for label, value in labels.items():
        if value == 0:
            continue
        pair = MaskPair(*_cropped(reference == value, prediction == value), steps, diagonal, nsd_tolerance)
        scores.append(CaseScore(label, **{name: metric.value(pair) for name, metric in METRICS.items()}))
    return scores


def _cropped(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks within the box that holds them; exact, since what is cut away is background in both."""
    inside = np.argwhere(reference | prediction)
    if not len(inside):
        return reference, prediction
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True))
    return reference[box], prediction[box]


def _border(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1), border_value=0)


def _border_distances(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    from scipy import ndimage

    borders = _border(reference), _border(prediction)
    # the transform gives every pixel its distance to the nearest zero, so a border is marked by zeros
    to_reference, to_prediction = (ndimage.distance_transform_edt(~border, sampling=spacing) for border in borders)
    return np.concatenate([to_prediction[borders[0]], to_reference[borders[1]]])
