"""What is done and what is not: one folder per stage, one manifest per folder, written last.

A stage's digest covers its settings, its seed, the code it depends on and the digests of its inputs. The same digest
means done; another one means that the stage and all below it are done again, after the old folder was moved aside
(nothing finished is ever deleted, D19). A folder without a manifest is half written.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json, sha256_of_file, sha256_of_json, write_json
from engine.graph import Graph, Stage

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
VOLATILE = ("nnunet", "preprocessed", "hub", "card.json", "card.md", "tensorboard")
"""What a stage keeps but does not hash: nnU-Net's own, a hub's working state and a generator's card hold times."""


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
        """Where a site's stages keep features of images (``features.embedding_cache``), all folds together."""
        return self.run / "embeddings" / stage.site

    def manifest(self, stage: Stage) -> dict[str, Any] | None:
        """The manifest of a finished stage, or ``None``."""
        path = self.manifest_path(stage)
        return read_json(path) if path.is_file() else None

    def is_done(self, stage: Stage, digest: str) -> bool:
        """Whether the stage finished with this digest and all its files are still there."""
        manifest = self.manifest(stage)
        if manifest is None or manifest["digest"] != digest:
            return False
        folder = self.folder(stage.id)
        return all((folder / name).exists() for name in [*manifest["files"], *manifest["unhashed"]])

    def state(self, stage: Stage, digest: str) -> str:
        """``done``, ``resume`` (half written, with a checkpoint to go on from), ``redo`` or ``to do``."""
        if self.is_done(stage, digest):
            return "done"
        if self._begun(stage) == digest and stage.is_training and self.folder(stage.id).is_dir():
            return "resume"
        return "redo" if self.manifest(stage) is not None else "to do"

    def begin(self, stage: Stage, digest: str) -> Path:
        """Make the stage's folder ready: kept if it can resume, moved aside if finished, cleared if half written."""
        folder, state = self.folder(stage.id), self.state(stage, digest)
        if state == "redo":
            self._move_aside(stage)
        elif state == "to do" and folder.exists():
            shutil.rmtree(folder)
        if state != "resume":
            self.progress_path(stage).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob(".*"):  # half-written files of a killed attempt (common/files.py)
            leftover.unlink()
        write_json(self._beside(stage, "begun.json"), {"digest": digest})
        return folder

    def commit(self, stage: Stage, digest: str, inputs: Mapping[str, str], run_info: Mapping[str, Any]) -> None:
        """Write the manifest: the stage is done from this moment on."""
        folder = self.folder(stage.id)
        manifest = {
            "stage": stage.name,
            "site": stage.site,
            "part": stage.part,
            "fold": stage.fold,
            "digest": digest,
            "seed": stage.seed,
            "private_to": stage.private_to,
            "settings": stage.settings,
            "inputs": dict(inputs),
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

    def _begun(self, stage: Stage) -> str | None:
        path = self._beside(stage, "begun.json")
        return read_json(path)["digest"] if path.is_file() else None

    def _move_aside(self, stage: Stage) -> None:
        manifest = self.manifest(stage) or {}
        aside = self.run / "superseded" / stage.id / manifest["digest"][:12]
        log.warning("%s: settings, inputs or code changed; the old result moves to %s", stage.id, aside)
        if aside.exists():
            shutil.rmtree(aside)
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.folder(stage.id), aside)
        if stage.leaves_site:
            shutil.move(self.manifest_path(stage), aside.with_name(f"{aside.name}.stage.json"))


def stage_digests(graph: Graph, data_digests: Mapping[str, str]) -> dict[str, str]:
    """Digest of every stage, inputs before dependants.

    Args:
        data_digests: of the raw data, by site; it enters where a stage's settings name ``source_site``.
    """
    digests: dict[str, str] = {}
    for stage_id in graph.topological_order():
        stage = graph.stages[stage_id]
        digests[stage_id] = sha256_of_json(
            {
                "stage": [stage.name, stage.fold, stage.site, stage.part, stage.function],
                "settings": stage.settings,
                "seed": stage.seed,
                "code": code_digest(stage.code),
                "inputs": {role: digests[source] for role, source in stage.inputs.items()},
                "data": data_digests.get(stage.site) if "source" in stage.settings else None,
            }
        )
    return digests


@functools.cache
def code_digest(packages: Collection[str]) -> str:
    """SHA-256 over the Python sources of these packages or files of the repository."""
    sources: list[Path] = []
    for package in packages:
        path = REPOSITORY / package
        sources += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return sha256_of_json({str(path.relative_to(REPOSITORY)): sha256_of_file(path) for path in sources})


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
