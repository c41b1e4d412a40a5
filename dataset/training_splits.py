"""Which patients of an outer fold a generator is trained on, and which it never sees."""

from __future__ import annotations

TRAIN_SPLITS = {"train": ("train",), "train_and_val": ("train", "val")}
HELD_OUT_SPLITS: dict[str, tuple[str, ...]] = {"train": ("val",), "train_and_val": ()}  # never the fold's test patients
