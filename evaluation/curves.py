"""Training curves as they are read back, and what they say of a network: its validation Dice, and its faults."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NETWORK_COLUMNS = ("model", "trained_on", "fold", "seed", "n_epochs", "validation_dice", "fault")
VALIDATION_KEYS = ("pseudo_dice", "val_dice")  # of a training at one site, of federated rounds
BY_LABEL_KEY = "pseudo_dice_by_label"
MIN_EPOCHS = 8  # of a shorter curve nothing is said but that it never left 0
FOUND = 0.01  # a validation Dice below it: not found
NOT_BETTER, LOW = 0.02, 0.5  # a network that ends below LOW and not even NOT_BETTER above its beginning
STEEP = 0.05  # gained in the last quarter of the epochs: then the training was too short


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``curves.jsonl``; a last line cut short by a stop is left out."""
    return list(_points(path)) if path.is_file() else []


def _points(path: Path) -> Iterator[dict[str, Any]]:
    for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            log.warning("%s: a broken line is left out: %.60s", path, line)
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), (int, float)):
            yield value


def describe_network(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Number of epochs (or rounds), best validation Dice (NaN: none) and fault of one training."""
    validation = _validation(curve)
    return {
        "n_epochs": len(curve),
        "validation_dice": float(validation.max()) if len(validation) else math.nan,
        "fault": find_fault(curve),
    }


def find_fault(curve: Sequence[Mapping[str, Any]]) -> str:
    """Why a network must not serve in a comparison, as the end of a sentence; empty where nothing was found.

    A network that found no label, one that ended where it began, and one that was far from converged.
    """
    validation = _validation(curve)
    if not len(validation):
        return ""
    if validation.max() < FOUND:
        return "never found a label: its validation Dice stayed at 0"
    by_label = [point[BY_LABEL_KEY] for point in curve if isinstance(point.get(BY_LABEL_KEY), Mapping)]
    for label in by_label[0] if by_label else ():
        values = np.asarray([point[label] for point in by_label if label in point], float)
        values = values[~np.isnan(values)]
        if len(values) and values.max() < FOUND:
            return f"never found the label {label}: its validation Dice stayed at 0"
    n_epochs = len(validation)
    if n_epochs < MIN_EPOCHS:
        return ""
    # single epochs are noisy: means over an eighth of the curve, at its begin, at its end, and a quarter before the end
    width, quarter = max(1, n_epochs // 8), n_epochs // 4
    first, last = float(validation[:width].mean()), float(validation[-width:].mean())
    before = float(validation[n_epochs - quarter - width : n_epochs - quarter].mean())
    if last < LOW and last - first < NOT_BETTER:
        return f"ended where it began: its validation Dice went from {first:.2f} to {last:.2f}"
    if last - before > STEEP:
        return f"was too short: its validation Dice still rose from {before:.2f} to {last:.2f} in its last quarter"
    return ""


def _validation(curve: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Validation Dice of each epoch, without undefined ones."""
    key = next((key for key in VALIDATION_KEYS if curve and key in curve[0]), VALIDATION_KEYS[0])
    values = np.asarray([point.get(key, math.nan) for point in curve], float)
    return values[~np.isnan(values)]


def read_networks(path: Path) -> pd.DataFrame:
    """A ``networks.csv``: a row a trained network, with ``NETWORK_COLUMNS``.

    Raises:
        InputError: the table cannot be read.
    """
    import pandas as pd

    names = ("model", "trained_on", "fault")
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values={"validation_dice": [""]}
        )
        return table[list(NETWORK_COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        fix = "delete it and start the same command again: the evaluate stages write it anew"
        raise InputError(f"it is not a readable table of networks ({error})", where=path, fix=fix) from error
