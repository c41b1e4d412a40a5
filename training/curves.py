"""The curves of a training: ``curves.jsonl``, and TensorBoard's events where that package is installed.

Event files hold times and the name of the machine, so they are never byte for byte those of another run, and stay at
the site. A resumed training throws away what it finds and writes its history again from the curves and sheets: no point
is there twice, none is of a future that was cut off.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text
from training.pictures import SHEETS, kimg_of_sheet

log = logging.getLogger(__name__)

CURVES = "curves.jsonl"
N_CURVE_POINTS = 200
EVENTS = "tensorboard"
Rows = Sequence[Mapping[str, Any]]


def is_curve_point(step: int, n_steps: int) -> bool:
    """Whether the step (counted from 1) has a row in the curves: about ``N_CURVE_POINTS`` have, and the last one."""
    return step % max(1, n_steps // N_CURVE_POINTS) == 0 or step == n_steps


def write_curves(out: Path, rows: Rows) -> None:
    """Write ``curves.jsonl``: one JSON object a row, ``step`` and ``unit`` first, then the other keys in their order.

    The order does not depend on the order in a row, which a checkpoint's JSON changes.
    """
    first = ("step", "unit")
    ordered = ({key: row[key] for key in (*first, *sorted(row.keys() - set(first)))} for row in rows)
    write_text(out / CURVES, "".join(json.dumps(row) + "\n" for row in ordered))


class Events:
    """Appends what is new at each snapshot; steps are images shown."""

    def __init__(self, out: Path) -> None:
        """Without the package the folder is removed all the same: it would tell of another training."""
        self.out, self._n_rows, self._last_kimg = out, 0, -1.0
        shutil.rmtree(out / EVENTS, ignore_errors=True)
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / EVENTS))
        except (ImportError, TypeError, AttributeError) as error:  # the last two: an old one beside a new protobuf
            log.warning("TensorBoard events are not written: %s", error)

    def add(self, rows: Rows, kimg: float) -> None:
        """Write the curves' rows and the sheets up to ``kimg`` that have not been written yet."""
        if self._writer is None:
            return
        for row in rows[self._n_rows :]:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"curves/{name}", value, round(row["step"] * 1000))
        self._n_rows = len(rows)
        for path in sorted((self.out / SHEETS).glob("kimg_*.png")):
            if self._last_kimg < kimg_of_sheet(path) <= kimg:
                self._writer.add_image("samples", _pixels(path), round(kimg_of_sheet(path) * 1000))
        self._last_kimg = kimg
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _pixels(path: Path) -> Any:
    """(3, height, width) uint8."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
