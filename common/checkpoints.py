"""Checkpoints as safetensors with a JSON header: nothing pickled, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.files import atomic_path

if TYPE_CHECKING:
    import torch


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` (copied, so that aliased storage is allowed) and JSON-able ``metadata`` to ``path``."""
    from safetensors.torch import save_file

    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(owned, temporary, metadata={"json": json.dumps(metadata, sort_keys=True)})


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read ``(tensors on the CPU, metadata)``.

    Raises:
        InputError: the file is missing, truncated or not a safetensors file of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            metadata = json.loads((stream.metadata() or {})["json"])
            return {name: stream.get_tensor(name) for name in stream.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"not a readable checkpoint ({error})", where=path, fix="delete the stage's folder and run again"
        ) from error
