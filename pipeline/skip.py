"""The original's ``skip.*`` flags, as an explicit override: what a flag names is not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError
from engine.graph import Graph
from pipeline.stage_factory import base_name

STAGES = {
    "real": {"applied_unet_train": "segment_real"},
    "syn": {
        "prepare_data_for_gan": "slices",
        "determine_threshold": "calibrate",
        "gan": "generator",
        "generate": "sample",
        "filter_generated": "filter",
        "segment": "label",
        "merge": "merge",
        "applied_unet_train": "segment_syn",
    },
    "syn-real": {"prepare_data_syn_real": "finetune", "applied_unet_from_syn_pretrain": "finetune"},
}


def skipped_stages(skip: Mapping[str, Any], graph: Graph) -> set[str]:
    """Ids of the stages that ``skip`` (kind -> site -> stage -> bool, or eval -> target -> bool) takes out.

    Raises:
        InputError: an unknown kind, stage, or a value that is not true or false.
    """
    ids: set[str] = set()
    for kind, sites in skip.items():
        if kind not in STAGES:
            raise InputError(f"unknown kind {kind!r}", where=f"skip.{kind}", fix=f"use one of {sorted(STAGES)}")
        for site, flags in sites.items():
            for name, value in flags.items():
                ids |= _named_by(kind, site, name, value, graph)
    return ids


def _named_by(kind: str, site: str, name: str, value: Any, graph: Graph) -> set[str]:
    where = f"skip.{kind}.{site}.{name}"
    if name == "eval" and isinstance(value, Mapping):
        wanted = {("evaluate", target, f"{kind}-{site}") for target, flag in value.items() if flag}
    elif name in STAGES[kind] and isinstance(value, bool):
        wanted = {(STAGES[kind][name], site, "")} if value else set()
    else:
        raise InputError(
            f"{value!r} is no flag of a known stage", where=where, fix=f"use true or false for {sorted(STAGES[kind])}"
        )
    return {stage.id for stage in graph.stages.values() if (base_name(stage.name), stage.site, stage.part) in wanted}
