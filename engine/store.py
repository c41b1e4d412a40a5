"""The folders of a run: one folder a stage, one manifest a folder, written last.

A stage's manifest says what its result follows from (``StageKey``): its identity, which is its settings, its seed, the
raw data and the identities of its inputs, and the code that it reached. A folder without a manifest is half written.
What that makes of a stage, done or to do, is decided in ``engine.run_plan``. Nothing finished is ever deleted (D19).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json, sha256_of_file, sha256_of_json, write_json
from engine.dependencies import describe_changes
from engine.graph import Stage

log = logging.getLogger(__name__)

VOLATILE = ("nnunet", "preprocessed", "hub", "card.json", "card.md", "tensorboard")
"""What a stage keeps but does not hash: nnU-Net's own, a hub's working state and a generator's card hold times."""


@dataclass(frozen=True)
class StageKey:
    """What a stage's result follows from."""

    identity: str  # of its settings, its seed, the raw data and its inputs' identities: whatever code makes it
    code: Mapping[str, str]  # definition -> digest, of all that its function reaches
    inputs: Mapping[str, str]  # role -> digest of the result that it reads

    @cached_property
    def digest(self) -> str:
        """Two results of the same digest were made from the same, by the same code."""
        return sha256_of_json({"identity": self.identity, "code": dict(self.code), "inputs": dict(self.inputs)})


@dataclass(frozen=True)
class Store:
    """The folder of one experiment, ``runs/<exp_name>``."""

    run: Path

    def folder(self, stage_id: str) -> Path:
        """The folder a stage writes."""
        return self.run / stage_id

    def manifest_path(self, stage: Stage) -> Path:
        """Where a stage's manifest lies: beside the folder where that folder leaves the site, in it otherwise."""
        folder = self.folder(stage.id)
        return folder.with_name(f"{folder.name}.stage.json") if stage.leaves_site else folder / "manifest.json"

    def log_path(self, stage: Stage) -> Path:
        """The log of a stage."""
        return self._beside(stage, "log")

    def progress_path(self, stage: Stage) -> Path:
        """Where a running stage says how far it is."""
        return self._beside(stage, "progress.json")

    def embeddings(self, stage: Stage) -> Path:
        """Where a site's stages keep features of images (``features.embedders``), all folds together."""
        return self.run / "embeddings" / stage.site

    def manifest(self, stage: Stage) -> dict[str, Any] | None:
        """The manifest of a finished stage, or ``None``."""
        path = self.manifest_path(stage)
        return read_json(path) if path.is_file() else None

    def is_whole(self, stage: Stage) -> bool:
        """Whether the stage finished and all its files are still there."""
        manifest, folder = self.manifest(stage), self.folder(stage.id)
        return manifest is not None and all(
            (folder / name).exists() for name in [*manifest["files"], *manifest["unhashed"]]
        )

    def begun(self, stage: Stage) -> dict[str, Any] | None:
        """What was noted when the stage began, if it began and did not finish."""
        path = self._beside(stage, "begun.json")
        return read_json(path) if path.is_file() and self.folder(stage.id).is_dir() else None

    def begin(self, stage: Stage, key: StageKey, *, resumes: bool) -> Path:
        """Make the folder ready: kept where it resumes, moved aside where finished, cleared where half written."""
        folder, begun = self.folder(stage.id), self.begun(stage)
        if stage.is_training and begun and begun.get("identity") == key.identity and self.manifest(stage) is None:
            resumes = True  # a second attempt after the death of a worker
        if not resumes and (self.manifest(stage) is not None or (begun and "identity" not in begun)):
            self._move_aside(stage)
        elif not resumes and folder.exists():
            shutil.rmtree(folder)
        if not resumes:
            self.progress_path(stage).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob(".*"):  # half-written files of a killed attempt (common/files.py)
            leftover.unlink()
        first_code = dict(begun["code"] if resumes and begun and "code" in begun else key.code)
        write_json(self._beside(stage, "begun.json"), {"identity": key.identity, "code": first_code})
        return folder

    def commit(self, stage: Stage, key: StageKey, run_info: Mapping[str, Any]) -> None:
        """Write the manifest: the stage is done from this moment on."""
        folder = self.folder(stage.id)
        first_code = (self.begun(stage) or {}).get("code", key.code)
        manifest = {
            "stage": stage.name,
            "site": stage.site,
            "part": stage.part,
            "fold": stage.fold,
            "digest": key.digest,
            "identity": key.identity,
            "seed": stage.seed,
            "private_to": stage.private_to,
            "settings": stage.settings,
            "inputs": dict(key.inputs),
            "code": dict(key.code),
            "begun_by_other_code": describe_changes(first_code, key.code),
            "files": {name: sha256_of_file(folder / name) for name in _files(stage, folder)},
            "unhashed": [name for name in VOLATILE if (folder / name).exists()],
            "run": dict(run_info),
        }
        write_json(self.manifest_path(stage), manifest)
        for name in ("begun.json", "progress.json"):
            self._beside(stage, name).unlink(missing_ok=True)

    def _beside(self, stage: Stage, name: str) -> Path:
        logs = self.run / f"fold_{stage.fold}" / "logs"
        return logs / f"{'-'.join(stage.id.split('/')[1:])}.{name}"

    def take_over(self, stage: Stage, identity: str) -> None:
        """Note the identity of a result that an older version of the program made, in its manifest."""
        write_json(self.manifest_path(stage), {**(self.manifest(stage) or {}), "identity": identity})

    def _move_aside(self, stage: Stage) -> None:
        digest = (self.manifest(stage) or self.begun(stage) or {})["digest"]
        aside = self.run / "superseded" / stage.id / digest[:12]
        log.warning("%s: settings, data, inputs or code changed; the old result moves to %s", stage.id, aside)
        if aside.exists():
            shutil.rmtree(aside)
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder(stage.id), aside)
        if stage.leaves_site and self.manifest(stage) is not None:
            shutil.move(self.manifest_path(stage), aside.with_name(f"{aside.name}.stage.json"))


def check_writable(folder: Path) -> None:
    """Refuse a run folder that cannot be written before anything is paid for.

    Raises:
        InputError: the folder cannot be made, or a file in it cannot be written.
    """
    probe = folder / ".write_probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"autoshare")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write there ({error.strerror})",
            where=folder,
            fix="free space or permissions, or set path.logs to another folder",
        ) from error


def _files(stage: Stage, folder: Path) -> list[str]:
    """Files that belong to the result, by relative name, sorted; the stage's manifest itself is not one of them."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [path.as_posix() for path in found if not set(VOLATILE) & set(path.parts)]
    return sorted(name for name in names if stage.leaves_site or name != "manifest.json")
