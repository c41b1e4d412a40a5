"""A site's cases of one outer fold as an nnU-Net raw dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dataset.convert import write_raw_dataset
from dataset.folds import Split, assign_folds
from dataset.source import SourceConfig, load_cases
from engine.run_stage import StageContext


def prepare(context: StageContext) -> None:
    """One site's cases of one outer fold as an nnU-Net raw dataset: training and validation patients, test patients."""
    settings = context.stage.settings
    environment = context.stage.environment
    source = dataclasses.replace(context.settings(SourceConfig, "source"), root=environment["root"])
    cases = [case for case in load_cases(source, Path(environment["data"])) if case.site == context.stage.site]
    if settings.get("is_only_tested"):
        split = Split(train=(), val=(), test=tuple(sorted(case.case_id for case in cases)))
    else:
        split = assign_folds(cases, settings["fold_seed"])[context.stage.fold]
    write_raw_dataset(cases, split, context.out / "raw" / settings["dataset_name"], source, context.progress)
