"""What the report reads of a run: manifests, results and curves, of whatever stages have been done so far."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import read_json
from evaluation.approaches import natural_order
from evaluation.curves import read_networks
from evaluation.results import read_results, summarise
from evaluation.verdicts import Verdicts, judge_report

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ALL_SITES = "all"
STAGES = (
    "prepare", "plan", "slices", "calibrate", "generator", "segment_real", "segment_long", "sample", "filter", "audit",
    "label", "share", "check", "merge", "segment_syn", "finetune", "statistics", "negotiate", "adopt",
    "fedavg", "fedprox", "fedbn", "dsl", "dsl_dataset", "segment_dsl", "evaluate",
)  # fmt: skip
FINETUNE_OF_UNION = "finetune_"  # with the name of a union of sites


@dataclass(frozen=True)
class StageRecord:
    """One finished stage of one site: what its manifest says. ``finished`` is ISO 8601 or empty."""

    fold: int
    stage: str
    site: str
    seed: str
    seconds: float
    finished: str
    host: str
    device: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageFolder:
    """The folder of a stage of one site in one fold."""

    fold: int
    site: str
    path: Path


@dataclass(frozen=True)
class RunFiles:
    """The chosen folds of ``runs/<exp_name>``; nothing in them has to be there."""

    run: Path
    folds: tuple[int, ...]

    def folder(self, fold: int) -> Path:
        """``fold_<k>``."""
        return self.run / f"fold_{fold}"

    def stage_folders(self, stage: str) -> list[StageFolder]:
        """The stage's folders by fold, then site."""
        # no glob: the names of unions hold brackets
        paths = [(fold, path) for fold in self.folds for path in _subfolders(self.folder(fold) / stage)]
        return [StageFolder(fold, path.name, path) for fold, path in paths]

    def finetune_unions(self) -> list[str]:
        """Names of the unions that were fine-tuned from, without that of all sites; the first n sites come first."""
        stages = {path.name for fold in self.folds for path in _subfolders(self.folder(fold))}
        names = [
            name.removeprefix(FINETUNE_OF_UNION)
            for name in stages
            if name.startswith(FINETUNE_OF_UNION) and "." not in name  # a dot: with another seed
        ]
        return sorted(names, key=natural_order)

    def first_of_each_site(self, stage: str) -> list[StageFolder]:
        """One folder a site, of the first chosen fold that has it: what pictures are drawn from."""
        first: dict[str, StageFolder] = {}
        for folder in self.stage_folders(stage):
            first.setdefault(folder.site, folder)
        return [first[site] for site in sorted(first)]

    def records(self) -> list[StageRecord]:
        """Every finished stage, by fold, stage and site."""
        records = [_record(fold, path) for fold in self.folds for path in _manifest_paths(self.folder(fold))]
        return sorted(
            (record for record in records if record is not None),
            key=lambda record: (record.fold, stage_rank(record.stage), record.stage, record.site),
        )

    @cached_property
    def results(self) -> pd.DataFrame | None:
        """The rows of every fold's ``results.csv``, or None where no fold has one."""
        import pandas as pd

        paths = [self.folder(fold) / "results.csv" for fold in self.folds]
        tables = [read_results(path) for path in paths if path.is_file()]
        return pd.concat(tables, ignore_index=True) if tables else None

    @cached_property
    def networks(self) -> pd.DataFrame | None:
        """The rows of every fold's ``networks.csv``, or None where no fold has one."""
        import pandas as pd

        paths = [self.folder(fold) / "networks.csv" for fold in self.folds]
        tables = [read_networks(path) for path in paths if path.is_file()]
        return pd.concat(tables, ignore_index=True) if tables else None

    @cached_property
    def verdicts(self) -> Verdicts | None:
        """Everything that the report judges, or None where there are no results."""
        if self.results is None or self.results.empty:
            return None
        return judge_report(self.results, self.networks)

    @cached_property
    def summary(self) -> pd.DataFrame | None:
        """``summarise`` of the results, or None where there are none."""
        return None if self.results is None or self.results.empty else summarise(self.results)

    def run_notes(self) -> dict[str, Any]:
        """What ``fold_<k>/run.json`` says, the first fold that has one."""
        notes = (read_mapping(self.folder(fold) / "run.json") for fold in self.folds)
        return next((note for note in notes if note), {})

    def other_code(self) -> dict[str, str]:
        """Stages that were made or begun by other code than the last run's, and what changed (``other_code.json``)."""
        notes = (read_mapping(self.folder(fold) / "other_code.json") for fold in self.folds)
        return {stage: str(words) for note in notes for stage, words in note.items()}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def find_folds(run: Path) -> tuple[int, ...]:
    """The folds of a run that have a folder, ascending."""
    names = (path.name.removeprefix("fold_") for path in run.glob("fold_*") if path.is_dir())
    return tuple(sorted(int(name) for name in names if name.isdecimal()))


def stage_rank(stage: str) -> int:
    """Where a stage stands in the flow; unknown ones last."""
    stage = "finetune" if stage.startswith(FINETUNE_OF_UNION) else stage.partition(".")[0]  # without its seed
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one (logged) where the file is missing or broken: the report goes on without it."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        log.warning("%s is left out of the report: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _manifest_paths(fold_folder: Path) -> list[Path]:
    # share/<site>/manifest.json belongs to the package, not to the stage
    stages = [path for path in fold_folder.rglob("manifest.json") if path.relative_to(fold_folder).parts[0] != "share"]
    return sorted([*stages, *fold_folder.glob("share/*.stage.json"), *fold_folder.glob("check/*/*.stage.json")])


def stage_manifests(files: RunFiles) -> Iterator[dict[str, Any]]:
    """The manifests of all finished stages; one that cannot be read is left out."""
    for fold in files.folds:
        for path in _manifest_paths(files.folder(fold)):
            manifest = read_mapping(path)
            if "stage" in manifest:
                yield manifest


def _record(fold: int, path: Path) -> StageRecord | None:
    manifest = read_mapping(path)
    if "stage" not in manifest:
        return None
    run = manifest.get("run") or {}
    return StageRecord(
        fold,
        str(manifest["stage"]),
        str(manifest.get("site", "")),
        str(manifest.get("seed", "")),
        float(run.get("seconds") or 0.0),
        str(run.get("finished", "")),
        str(run.get("host", "")),
        str(run.get("device", "")),
        {str(name): str(version) for name, version in (run.get("versions") or {}).items()},
    )


def finished_at(record: StageRecord) -> datetime | None:
    """When a stage ended, or None where its manifest does not say."""
    try:
        return datetime.fromisoformat(record.finished)
    except ValueError:
        return None
