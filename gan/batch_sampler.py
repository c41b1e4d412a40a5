"""The generator's forward pass over seeds, such that an image is the same to the last bit however many are asked for.

A convolution's sums may be ordered differently for another batch size. So all passes have one fixed shape, the last one
filled up with images nobody sees; within a shape each image is computed alike, wherever it stands
(``tests/gan/test_gan_sample.py``; measured on CPUs). Another shape, kind of device, number of threads or version of
PyTorch may differ by one grey level.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gan.model import GeneratorNetwork
from gan.settings import GanSettings
from training.pictures import images_to_integers

PIXELS_PER_PASS = {"cpu": 2**15, "cuda": 2**20}  # more pixels do not make an image cheaper
MOST_PER_PASS = {"cpu": 32, "cuda": 64}
MOST_THREADS = 4  # that draw random numbers ahead of a GPU


def images_per_pass(settings: GanSettings, device: str | torch.device) -> int:
    """How many images one forward pass makes; it follows from the image size and the kind of device alone."""
    kind = "cpu" if torch.device(device).type == "cpu" else "cuda"
    height, width = settings.image_size_px
    return max(1, min(MOST_PER_PASS[kind], PIXELS_PER_PASS[kind] // (height * width)))


class BatchSampler:
    """Images of seeds, pass by pass; random numbers are drawn on the CPU ahead of the network."""

    def __init__(self, network: GeneratorNetwork, dtype: np.dtype, n_images: int | None = None) -> None:
        """``n_images``: of one pass; None: ``images_per_pass``."""
        self.network, self.dtype, self.device = network, dtype, network.constant.device
        self.n_images = n_images or images_per_pass(network.settings, self.device)
        self._sizes = [network.settings.config.z_dim, *(h * w for h, w in network.noise_sizes())]

    def __call__(self, seeds: Sequence[int]) -> Iterator[np.ndarray]:
        """(n, channels, height, width) of ``dtype`` for each pass; together one image per seed, in order."""
        starts = range(0, len(seeds), self.n_images)
        n_threads = 1 if self.device.type == "cpu" else min(MOST_THREADS, os.cpu_count() or 1)
        drawn: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(n_threads) as pool:
            for position, start in enumerate(starts):
                # the numbers of this pass and of the next n_threads are on their way
                for later in starts[position + len(drawn) : position + 1 + n_threads]:
                    drawn.append(pool.submit(self.draw, seeds[later : later + self.n_images]))
                n_wanted = min(self.n_images, len(seeds) - start)
                yield self.images(drawn.popleft().result())[:n_wanted]

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """(images of a pass, numbers of an image): N(0, 1), a row from its seed alone; zeros where there is none.

        NumPy draws them: PyTorch's CPU generator takes the lowest 32 bits of a seed, so that among ten thousands of
        derived seeds two would give one image.
        """
        numbers = np.zeros((self.n_images, sum(self._sizes)), np.float32)
        for row, seed in zip(numbers, seeds, strict=False):
            np.random.Generator(np.random.PCG64(seed)).standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(numbers)

    def images(self, numbers: Tensor) -> np.ndarray:
        """What the network makes of ``draw``'s numbers: (images of a pass, channels, height, width)."""
        return images_to_integers(self.forward(numbers), self.dtype)

    def forward(self, numbers: Tensor) -> Tensor:
        """As ``images``, in about [-1, 1] and on the device."""
        latents, noise = self.parts(numbers)
        # cuDNN tries no algorithms, and takes none whose sums change from call to call; on a CPU nothing changes
        tf32 = torch.backends.cudnn.allow_tf32
        repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
        with torch.inference_mode(), repeatable:
            return self.network(latents, noise)

    def parts(self, numbers: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``draw``'s numbers on the device: latents (n, z_dim) and one noise map (n, 1, h, w) a layer."""
        latents, *flat = numbers.to(self.device, non_blocking=True).split(self._sizes, dim=1)
        sizes = self.network.noise_sizes()
        return latents, [maps.reshape(self.n_images, 1, *size) for maps, size in zip(flat, sizes, strict=True)]
