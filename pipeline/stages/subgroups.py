"""What divides a site's patients into subgroups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.files import read_json, write_json
from dataset.source import SourceConfig
from dataset.subgroups import read_subgroups
from engine.run_stage import StageContext


def find_subgroups(context: StageContext) -> None:
    """``subgroups.json``: case -> column -> value, of the site's cases; it stays at the site."""
    settings, environment = context.stage.settings, context.stage.environment
    source = dataclasses.replace(context.settings(SourceConfig, "source"), root=environment["root"])
    found = read_subgroups(source, Path(environment["data"]), settings["columns"])
    cases = read_json(context.inputs["prepare"] / "raw" / "patients.json")
    write_json(context.out / "subgroups.json", {case: found[case] for case in cases})
