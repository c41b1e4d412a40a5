"""The data of the main experiment: read once, decoded once before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.files import read_json, sha256_of_json, write_json
from dataset.check import check_cases
from dataset.source import Case, content_digest, load_cases
from dataset.subgroups import read_subgroups
from pipeline.config import ExperimentConfig

log = logging.getLogger(__name__)


CHECKED_DATA = "checked_data.json"  # in a run: what was found good


@dataclass(frozen=True)
class SiteData:
    """The sites of an experiment, and what tells the raw data of each from any other.

    ``sites``: those that train and share, without those that are only tested on.
    """

    sites: tuple[str, ...]
    digests: Mapping[str, str] = field(default_factory=dict)  # of the raw data of every site that was read
    cases: tuple[Case, ...] = ()
    identity: str = ""  # of all the raw data and of how it is read

    def is_checked(self, run: Path) -> bool:
        """Whether the last run in this folder found this data, and found it good."""
        record = run / CHECKED_DATA
        return record.is_file() and read_json(record)["digest"] == self.identity


def read_sites(config: ExperimentConfig) -> SiteData:
    """The sites that the configuration names, or those found in the source, and its cases.

    A dry run of an experiment whose data is not here goes on without them.
    """
    try:
        cases = load_cases(config.source, config.data_dir)
    except InputError as error:
        if not (config.dry_run and config.data.sites):
            raise
        log.warning("data not read, so every stage counts as to do: %s", error)
        cases = ()
    found = sorted({case.site for case in cases})
    digests = {site: content_digest([case for case in cases if case.site == site]) for site in found}
    if cases and config.data.subgroup_columns:
        read_subgroups(config.source, config.data_dir, config.data.subgroup_columns)  # a wrong name is refused now
    identity = sha256_of_json([content_digest(cases), repr(config.source)])
    sites = tuple(config.data.sites or found)
    unknown = sorted(set(config.data.test_sites) - set(sites))
    remaining = tuple(site for site in sites if site not in config.data.test_sites)
    if unknown or not remaining:
        problem = f"there is no site {unknown[0]!r}" if unknown else "no site is left to train at"
        raise InputError(problem, where="data.test_sites", fix=f"name some, not all, of {', '.join(sites)}")
    return SiteData(remaining, digests, cases, identity)


def check_data(config: ExperimentConfig, run: Path, data: SiteData) -> None:
    """Decode everything once before anything is trained; data that passed is not decoded again.

    Raises:
        InputError: a file that cannot be used, or that is not what the configuration says.
    """
    if data.is_checked(run):
        return
    report = check_cases(data.cases, config.source)
    is_volumetric = any(len(shape) == 3 for shape in report.shapes_px)
    if config.data.original_data_was_png is not None and config.data.original_data_was_png == is_volumetric:
        raise InputError(
            f"original_data_was_png={config.data.original_data_was_png}, but the files say otherwise",
            where="data.original_data_was_png",
            fix="leave the key out: it follows from the files",
        )
    for warning in report.warnings:
        log.warning("%s", warning)
    write_json(run / CHECKED_DATA, {"digest": data.identity})
