"""Images to unit vectors: an offline embedder that comes with the installation, and the paper's OpenCLIP.

A site keeps the features of its images in files (``CachedEmbedder``) that never leave it. A file holds the SHA-256 of
some images and their features. Files are written whole and never changed, so stages that run at once may share a
folder; a file that cannot be read is ignored.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.errors import InputError
from common.files import atomic_path, sha256_of_file, sha256_of_json
from common.progress import Progress, silent
from features.efficientnet import IMAGENET_MEAN, IMAGENET_STD, load_efficientnet_lite0

if TYPE_CHECKING:
    import torch

EMBEDDERS = ("efficientnet_lite0", "openclip")
OPENCLIP_MODEL, OPENCLIP_WEIGHTS = "ViT-g-14", "laion2b_s12b_b42k"  # the paper's
OPENCLIP_FIX = (
    f"install the extra (pip install 'autoshare[openclip]'), download {OPENCLIP_MODEL} {OPENCLIP_WEIGHTS} where there "
    "is a network and set memorization.weights to the file, or use memorization=offline"
)
INPUT_SIZE_PX = 224
IMAGES_PER_FILE = 256  # as many are lost when a stage is killed
SUFFIX = ".safetensors"
DIGEST_BYTES = 32

log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Images to features; deterministic, and independent of how images fall into batches up to rounding.

    ``identity``: JSON-able; equal where the same image has the same features to the last bit.
    """

    name: str
    dimension: int
    identity: Mapping[str, Any]

    def embed(self, images: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """(n, channels, height, width) uint8 or uint16 -> (n, dimension) float32 unit vectors."""


def check_embedder(name: str, weights: str | None) -> None:
    """Refuse, before anything is trained, an embedder that cannot be built here; nothing is downloaded for that.

    Raises:
        InputError: an unknown name, a package that is not installed, a file of weights that is not there or not used.
    """
    if name not in EMBEDDERS:
        raise InputError(f"there is no embedder {name!r}", where="memorization.embedder", fix=f"use one of {EMBEDDERS}")
    if name == "openclip" and importlib.util.find_spec("open_clip") is None:
        raise InputError("open_clip is not installed", where="memorization.embedder", fix=OPENCLIP_FIX)
    if weights is not None and not Path(weights).is_file():
        raise InputError("there is no such file of weights", where=weights, fix=OPENCLIP_FIX)
    if weights is not None and name != "openclip":
        raise InputError(
            f"{name} has its own weights and would ignore {weights}",
            where="memorization.weights",
            fix="set it to null, or use memorization=openclip",
        )


def build_embedder(
    name: str, *, batch_size: int, device: str, weights: str | None = None, embeddings: Path | None = None
) -> Embedder:
    """The embedder called ``name``; it keeps features in the folder ``embeddings``, where that is given.

    Raises:
        InputError: an unknown name, or weights that cannot be loaded.
    """
    check_embedder(name, weights)
    embedder: Embedder
    if name == "efficientnet_lite0":
        imagenet = IMAGENET_MEAN, IMAGENET_STD
        embedder = NetworkEmbedder(name, _efficientnet_lite0(), 1280, imagenet, "bilinear", batch_size, device)
    else:
        network, dimension, normalisation = _openclip(weights)
        embedder = NetworkEmbedder(name, network, dimension, normalisation, "bicubic", batch_size, device)
    return cached(embedder, embeddings)


class NetworkEmbedder:
    """A frozen network on RGB images of 224 px; only one batch is ever decoded to floats (D22).

    The whole image is resized to the square, also with OpenCLIP, whose own transform would cut the borders of a
    non-square image off; square images get that transform (bicubic, antialiased). Full float32, also on a GPU.
    On a CPU images pass the network one by one (batches of 32 take twice the time: their activations leave the cache),
    on a GPU in batches that are always full, so that an image's features do not depend on its neighbours.
    Grey images are repeated to three channels. Other channel counts are embedded channel by channel and concatenated
    (with equal weight), as no natural-image network takes them.
    """

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        dimension: int,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        interpolation: str,
        batch_size: int,
        device: str,
    ) -> None:
        import torch

        self.name, self.dimension = name, dimension
        self._network = network.to(device).eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in normalisation)
        self._interpolation, self._batch_size, self._device = interpolation, batch_size, device
        self._pass_size = 1 if device == "cpu" else batch_size
        self.identity: Mapping[str, Any] = {
            "name": name,
            "weights": _weights_sha256(self._network),
            "preprocessing": sha256_of_file(Path(__file__)),
            "normalisation": normalisation,
            "device": device,
            "images a pass": self._pass_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def embed(self, images: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """(n, channels, height, width) uint8 or uint16 -> (n, dimension) float32 unit vectors."""
        blocks = []
        for start in range(0, len(images), self._batch_size):
            batch = np.ascontiguousarray(images[start : start + self._batch_size])
            views = [batch] if batch.shape[1] in (1, 3) else np.split(batch, batch.shape[1], axis=1)
            features = np.concatenate([self._features(view) for view in views], axis=1)
            blocks.append(_unit(features))
            progress(min(start + self._batch_size, len(images)), len(images), "images")
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)

    def _features(self, batch: np.ndarray) -> np.ndarray:
        import torch
        from torch.nn import functional as F

        pixels = torch.from_numpy(batch.astype(np.float32) / np.iinfo(batch.dtype).max)
        size = (INPUT_SIZE_PX, INPUT_SIZE_PX)
        pixels = F.interpolate(pixels, size=size, mode=self._interpolation, align_corners=False, antialias=True)
        pixels = (pixels.clamp(0, 1).expand(-1, 3, -1, -1) - self._mean) / self._std  # bicubic overshoots
        # TF32 convolutions, torch's default, would move a copy embedded in another batch by more than RESOLUTION_L2
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            passes = [self._pass(part) for part in pixels.split(self._pass_size)]
        features: np.ndarray = torch.cat(passes).numpy()
        return _unit(features)

    def _pass(self, pixels: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        filled = F.pad(pixels, (0, 0) * 3 + (0, self._pass_size - len(pixels)))
        features: torch.Tensor = self._network(filled.to(self._device))[: len(pixels)].float().cpu()
        return features


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1; the norm in double precision (the original's was in half precision)."""
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _weights_sha256(network: torch.nn.Module) -> str:
    """Of all parameters and buffers, by name."""
    content = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().numpy().tobytes())
    return content.hexdigest()


def _efficientnet_lite0() -> torch.nn.Module:
    """EfficientNet-lite0 without its classifier."""
    from torch import nn

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = load_efficientnet_lite0()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.network.extract_features(images)
            return features.mean(dim=(2, 3))

    return Features()


def _openclip(weights: str | None) -> tuple[torch.nn.Module, int, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The image tower of OpenCLIP ViT-g-14, from a local file or the hub; a file is read without running its code."""
    import open_clip

    try:
        model, _, _ = open_clip.create_model_and_transforms(OPENCLIP_MODEL, pretrained=weights or OPENCLIP_WEIGHTS)
    except Exception as error:  # the hub, torch, safetensors and a broken pickle share no narrower class
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise InputError(
            f"the OpenCLIP weights cannot be loaded ({reason})", where=weights or "hub", fix=OPENCLIP_FIX
        ) from error
    visual = model.visual
    return visual, int(visual.output_dim), (tuple(visual.image_mean), tuple(visual.image_std))


class CachedEmbedder:
    """An embedder that embeds no image twice."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        """``folder``: of the site; another embedder, other weights or other code has another folder in it."""
        self.name, self.dimension, self.identity = embedder.name, embedder.dimension, embedder.identity
        self._embedder = embedder
        self._folder = folder / sha256_of_json(embedder.identity)[:DIGEST_BYTES]
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._read: set[Path] = set()

    def embed(self, images: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """As the embedder's own; what is new is embedded once and stored."""
        digests = [image_digest(image) for image in images]
        self._look()
        places = {digest: i for i, digest in reversed(list(enumerate(digests)))}  # the first of equal images
        new = sorted(i for digest, i in places.items() if digest not in self._places)
        n_done = len(images) - len(new)
        for start in range(0, len(new), IMAGES_PER_FILE):
            part = new[start : start + IMAGES_PER_FILE]
            self._store([digests[i] for i in part], self._embedder.embed(images[part]))
            n_done += len(part)
            progress(n_done, len(images), "images")
        return self._load(digests) if digests else self._embedder.embed(images)

    def _look(self) -> None:
        """Learn what other calls and other stages have stored since."""
        for path in sorted(set(self._folder.glob(f"[!.]*{SUFFIX}")) - self._read):
            stored = _read(path)
            if stored is not None:
                self._remember(path, [row.tobytes() for row in stored["digests"]])

    def _remember(self, path: Path, digests: Sequence[bytes]) -> None:
        self._read.add(path)
        self._places |= {digest: (path, row) for row, digest in enumerate(digests)}

    def _store(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        from safetensors.numpy import save_file

        path = self._folder / f"{hashlib.sha256(b''.join(digests)).hexdigest()[:DIGEST_BYTES]}{SUFFIX}"
        rows = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        with atomic_path(path) as temporary:
            save_file({"digests": rows, "features": features}, temporary)
        self._remember(path, digests)

    def _load(self, digests: Sequence[bytes]) -> np.ndarray:
        from safetensors.numpy import load_file

        places = [self._places[digest] for digest in digests]
        stored = {path: load_file(path)["features"] for path in {path for path, _ in places}}
        return np.stack([stored[path][row] for path, row in places])


def cached(embedder: Embedder, folder: Path | None) -> Embedder:
    """The embedder with a cache in ``folder``; alone where there is none."""
    return embedder if folder is None else CachedEmbedder(embedder, folder)


def image_digest(image: np.ndarray) -> bytes:
    """SHA-256 of an image's type, shape and pixels."""
    content = hashlib.sha256(f"{image.dtype.str} {image.shape}".encode())
    content.update(image.tobytes())
    return content.digest()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """``digests`` (n, 32) and ``features`` (n, d); None, and a word about it, where the file is not whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored: dict[str, np.ndarray] = load_file(path)
    except (SafetensorError, OSError) as error:
        log.warning("%s is no whole file of features (%s); its images are embedded again", path, error)
        return None
    return stored
