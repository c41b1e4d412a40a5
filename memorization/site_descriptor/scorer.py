"""The scorer: descriptors of an image's cells beside those of the references under all symmetries of the square."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from common.progress import Progress, silent
from memorization.copy_score import Learner, Likeness, Scorer
from memorization.registration.maps import grey
from memorization.site_descriptor.augmentations import N_SYMMETRIES, symmetry
from memorization.site_descriptor.network import CopyNetwork
from memorization.site_descriptor.training import train

NAME = "site descriptor"
SHARES = (0.06, 0.12, 0.25, 0.5, 0.8)  # of the image's cells: what fits best in a part, or nearly everywhere
STATISTICS = (*(f"cells, best {100 * share:g} %" for share in SHARES), "image")
STRIDE = 2  # every second cell of an image along each axis is looked for, among all cells of the references
CEILING = 1e-3  # -log(1 - cosine) ends here
BLOCK = 256  # images described at once


def train_descriptor(images: np.ndarray, seed: int, progress: Progress = silent) -> Scorer:
    """Copies by a descriptor trained on (n, channels, height, width), one image or more; not to be calibrated on them.

    About 2 minutes on one core, whatever the size of the site; the same to the last bit on one machine.
    """

    network = train(grey(images), seed, progress)
    return Scorer(NAME, STATISTICS, partial(DescribedReferences, network))


SITE_DESCRIPTOR = Learner(NAME, STATISTICS, train_descriptor)


class DescribedReferences:
    """References by their cells and as a whole, under all symmetries: 400 kB an image."""

    def __init__(self, network: CopyNetwork, references: np.ndarray) -> None:

        self._network = network
        pixels = grey(references)
        with torch.inference_mode():
            views = [_described(network, symmetry(pixels, number)) for number in range(N_SYMMETRIES)]
        cells = torch.stack([view[0].flatten(2) for view in views], 2)  # (n, size, symmetries, cells)
        self._cells = cells.flatten(2).contiguous()
        self._images = torch.stack([view[1] for view in views], 1)

    def compare(self, images: np.ndarray, excluded: np.ndarray | None = None, progress: Progress = silent) -> Likeness:
        """The best of every statistic over the references, and the reference it belongs to."""

        best = torch.zeros(len(images), len(STATISTICS))
        nearest = torch.zeros(len(images), len(STATISTICS), dtype=torch.int64)
        with torch.inference_mode():
            pixels = grey(images)
            both = [_described(self._network, signed) for signed in (pixels, 1 - pixels)]
            looked_for = torch.stack(
                [cells[:, :, ::STRIDE, ::STRIDE].flatten(2).transpose(1, 2) for cells, _ in both], 1
            )
            wholes = torch.stack([whole for _, whole in both], 1)
            for number in range(len(images)):
                alike = self._alike(looked_for[number], wholes[number])
                if excluded is not None:
                    alike[torch.from_numpy(excluded[number])] = -1
                best[number], nearest[number] = alike.max(0)
                progress(number + 1, len(images), "images")
        return Likeness(-np.log(np.maximum(1 - best.double().numpy(), CEILING)), nearest.numpy())

    def _alike(self, looked_for: torch.Tensor, wholes: torch.Tensor) -> torch.Tensor:
        """(n, statistics) cosines of cells (2, q, size) and wholes (2, size): an image as it is, and as a negative."""

        signs = zip(looked_for, wholes, strict=True)
        return torch.stack([torch.cat([self._of_cells(q), self._of_image(whole)], 1) for q, whole in signs]).amax(0)

    def _of_cells(self, looked_for: torch.Tensor) -> torch.Tensor:
        """(n, shares): mean cosine of the cells (q, size) that fit best, each with its best cell in one view."""

        n_references, n_looked_for = len(self._cells), len(looked_for)
        n_symmetries = self._images.shape[1]
        fits = torch.empty(n_references, n_looked_for, n_symmetries)
        for number in range(n_references):  # one at a time: the product stays in the cache
            fits[number] = (looked_for @ self._cells[number]).view(n_looked_for, n_symmetries, -1).amax(2)
        summed = fits.sort(1, descending=True).values.cumsum(1)
        counts = [max(1, round(share * n_looked_for)) for share in SHARES]
        return torch.stack([summed[:, count - 1].amax(1) / count for count in counts], 1)

    def _of_image(self, whole: torch.Tensor) -> torch.Tensor:
        """(n, 1) cosine of the vectors of whole images."""
        alike: torch.Tensor = (self._images @ whole).amax(1, keepdim=True)
        return alike


def _described(network: CopyNetwork, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (n, size, 16, 16) and images (n, size) of (n, 1, 64, 64)."""

    parts = [network(block) for block in pixels.split(BLOCK)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
