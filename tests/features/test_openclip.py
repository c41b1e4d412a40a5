"""OpenCLIP's loading code on a model small enough to build here; the paper's weights are 5 GB and not at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from features import embedders
from features.embedders import build_embedder, check_embedder

open_clip = pytest.importorskip("open_clip", reason="the openclip extra is not installed")

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch):
    """A CLIP of two layers in place of ViT-g-14, and the file with its weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (tmp_path / "autoshare-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "autoshare-tiny.json")
    monkeypatch.setattr(embedders, "OPENCLIP_MODEL", "autoshare-tiny")
    model, _, transform = open_clip.create_model_and_transforms("autoshare-tiny")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model.eval(), transform, tmp_path / "weights.safetensors"


def test_local_weights_give_the_librarys_own_features_of_square_images(tiny) -> None:
    """The paper's embedding: its resize (PIL, bicubic) and normalisation, the image tower, unit length in float32."""
    import torch
    from PIL import Image

    model, transform, weights = tiny
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (96, 96), dtype=np.uint8)  # noise: bilinear enlargement gives other features
    ours = build_embedder("openclip", batch_size=2, device="cpu", weights=str(weights))
    found = ours.embed(image[None, None])[0]
    with torch.inference_mode():
        theirs = model.encode_image(transform(Image.fromarray(image))[None], normalize=True)[0].numpy()
    assert found.shape == (ours.dimension,) == (24,)
    assert np.square(found - theirs).sum() < 1e-4  # PIL rounds the resized image to 8 bits


@pytest.mark.parametrize("name", ["broken.bin", "broken.safetensors", "empty.bin", "other.safetensors"])
def test_a_file_that_holds_no_weights_of_the_model_is_named(tiny, tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / name
    if name == "other.safetensors":
        save_file({"layer": torch.zeros(2)}, path)
    else:
        path.write_bytes(b"" if name == "empty.bin" else b"no weights" * 20)
    with pytest.raises(InputError, match=r"memorization\.weights") as raised:
        build_embedder("openclip", batch_size=2, device="cpu", weights=str(path))
    assert str(path) in str(raised.value)


def test_weights_that_an_embedder_would_ignore_are_refused(tiny) -> None:
    with pytest.raises(InputError, match="would ignore"):
        check_embedder("efficientnet_lite0", str(tiny[2]))
