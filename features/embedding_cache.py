"""Features of images that were embedded before, by content: a site's own, and never part of what leaves it.

A file holds the SHA-256 of some images and their features. Files are written whole and never changed, so stages that
run at once may share a folder; a file that cannot be read counts for nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import atomic_path, sha256_of_json
from common.progress import Progress, silent
from features.embedders import Embedder

log = logging.getLogger(__name__)

IMAGES_PER_FILE = 256  # as many are lost when a stage is killed
SUFFIX = ".safetensors"
DIGEST_BYTES = 32


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
        new = [i for digest, i in _first_places(digests).items() if digest not in self._places]
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
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for i, digest in enumerate(digests):
            path, row = self._places[digest]
            wanted.setdefault(path, []).append((i, row))
        features: np.ndarray | None = None
        for path, pairs in wanted.items():
            stored = _read(path)
            assert stored is not None, f"{path} was there a moment ago"
            places, rows = (np.array(side) for side in zip(*pairs, strict=True))
            if features is None:
                features = np.empty((len(digests), stored["features"].shape[1]), np.float32)
            features[places] = stored["features"][rows]
        assert features is not None
        return features


def cached(embedder: Embedder, folder: Path | None) -> Embedder:
    """The embedder with a cache in ``folder``; alone where there is none."""
    return embedder if folder is None else CachedEmbedder(embedder, folder)


def image_digest(image: np.ndarray) -> bytes:
    """SHA-256 of an image's type, shape and pixels."""
    content = hashlib.sha256(f"{image.dtype.str} {image.shape}".encode())
    content.update(image.tobytes())
    return content.digest()


def _first_places(digests: Sequence[bytes]) -> dict[bytes, int]:
    places: dict[bytes, int] = {}
    for i, digest in enumerate(digests):
        places.setdefault(digest, i)
    return places


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
