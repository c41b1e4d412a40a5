"""A source of labelled images: a folder with a table (or the phantom), read into cases with patients and sites."""

from __future__ import annotations

import dataclasses
import logging
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError
from common.files import sha256_of_file, sha256_of_json
from common.settings import to_dict
from dataset.images import ENDINGS, check_label_ids, safe_name, stem
from dataset.phantom import DRAWING_VERSION, PhantomConfig, write_phantom
from dataset.table import read_table

if TYPE_CHECKING:
    import pandas

log = logging.getLogger(__name__)

CROSS_SITE_DECISIONS = ("keep_at_one", "refuse")
_SAFE_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class SourceConfig:
    """Where the images are and how the table tells patients and sites apart (``config/data/*.yaml``)."""

    kind: str = "folder"  # "folder" | "phantom"
    root: str | None = None  # absolute, or relative to the data directory
    table: str = "metadata.csv"  # relative to root; .csv or .tsv
    image_column: str = "image"  # file names relative to image_dir
    mask_column: str | None = None  # None: the mask has the image's file name (any ending)
    patient_column: str | None = None  # None: each image is its own patient
    site_column: str | None = None
    site_rule: str | None = None  # a pandas expression over the columns; True is site A, False is site B
    sites: tuple[str, ...] | None = None  # only these, in this order
    cross_site_patients: str = "keep_at_one"  # where most of their images are; or "refuse"
    image_dir: str = "images"
    mask_dir: str = "masks"
    labels: dict[str, int] = field(default_factory=lambda: {"foreground": 1})
    mask_values: dict[int, int] | None = None  # pixel value in the files -> label id
    channel_names: tuple[str, ...] | None = None  # nnU-Net's names; they choose the normalisation
    max_size_px: int | None = None  # 2D: longest side at most this
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclass(frozen=True)
class Case:
    """One image with its mask. ``case_id`` is a file-name-safe form of the image's stem, unique in the source."""

    case_id: str
    image: Path
    mask: Path
    patient: str
    site: str


@dataclass(frozen=True)
class CrossSitePatient:
    """A patient who appears at several sites: kept at one of them, their images at the others are left out."""

    patient: str
    kept_site: str
    n_kept: int
    dropped_cases: tuple[Case, ...]

    def __str__(self) -> str:
        counts = sorted(Counter(case.site for case in self.dropped_cases).items())
        left_out = ", ".join(f"{n_images} at {site}" for site, n_images in counts)
        return (
            f"patient {self.patient} is at several sites: "
            f"kept at {self.kept_site} ({self.n_kept} images), left out {left_out}"
        )


@dataclass(frozen=True)
class LoadReport:
    """What was read: the cases, and what the user must know about them."""

    cases: tuple[Case, ...]
    cross_site_patients: tuple[CrossSitePatient, ...]
    warnings: tuple[str, ...]


def load_cases(config: SourceConfig, data_dir: Path) -> tuple[Case, ...]:
    """The cases of a source, sorted by site and case id; warnings go to the log.

    Raises:
        InputError: see ``load_report``.
    """
    report = load_report(config, data_dir)
    for warning in report.warnings:
        log.warning(warning)
    return report.cases


def load_report(config: SourceConfig, data_dir: Path) -> LoadReport:
    """Read the table and look up the files (none is decoded; ``dataset.check`` does that).

    Raises:
        InputError: no or an empty table, a missing column, value or file, an image listed twice or at two sites, a site
            that does not exist, labels that are not 1..n, settings that contradict each other, or a patient at two
            sites where the configuration refuses that.
    """
    check_labels(config)
    folder = as_folder(config, data_dir)
    cases, dropped = _resolve_cross_site(_keep_sites(folder, _read_folder(folder, data_dir)))
    _check_cross_site(config.cross_site_patients, dropped, folder.table)
    order = folder.sites or tuple(sorted({case.site for case in cases}))
    cases.sort(key=lambda case: (order.index(case.site), case.case_id))
    warnings = [str(patient) for patient in dropped]
    if folder.patient_column is None:
        warnings.append(
            "no patient_column: each image counts as a patient of its own, so no split by patient can be claimed"
        )
    return LoadReport(tuple(cases), dropped, tuple(warnings))


def content_digest(cases: Iterable[Case]) -> str:
    """SHA-256 over ids, patients, sites and file contents; the same wherever the files lie and in whatever order."""
    return sha256_of_json(
        sorted(
            (case.case_id, case.patient, case.site, sha256_of_file(case.image), sha256_of_file(case.mask))
            for case in cases
        )
    )


def check_labels(config: SourceConfig) -> None:
    """Refuse label ids that nnU-Net cannot train on, and mask values without a label.

    Raises:
        InputError: ids other than 1..n, or a mask value mapped to an id that is not declared.
    """
    ids = sorted(config.labels.values())
    check_label_ids(ids, where="labels", fix="number the labels without gaps; 0 is the background")
    for value, label in (config.mask_values or {}).items():
        if label not in (0, *ids):
            raise InputError(
                f"pixel value {value} is mapped to label id {label}, which is not in {ids} and not 0",
                where="mask_values",
                fix="add the label to 'labels' or map the value to an existing id",
            )


def as_folder(config: SourceConfig, data_dir: Path) -> SourceConfig:
    """The configuration itself, or that of the phantom's folder, which is drawn when it is missing."""
    if config.kind == "folder":
        return config
    if config.kind != "phantom":
        raise InputError(f"the kind {config.kind!r} is not known", where="kind", fix="use 'folder' or 'phantom'")
    digest = sha256_of_json([DRAWING_VERSION, to_dict(config.phantom)])[:12]
    folder = data_dir / f"phantom-{digest}"
    if not folder.is_dir():
        _draw_phantom(config.phantom, folder)
    return dataclasses.replace(
        config,
        root=str(folder.resolve()),
        table="metadata.csv",
        image_column="file",
        mask_column=None,
        patient_column="patient_id",
        site_column="site",
        site_rule=None,
        image_dir="images",
        mask_dir="masks",
    )


def _draw_phantom(config: PhantomConfig, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        drawn = Path(temporary) / "phantom"
        write_phantom(config, drawn)
        try:
            drawn.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same images
                raise


def _read_folder(config: SourceConfig, data_dir: Path) -> list[Case]:
    """The cases in the order of the table."""
    if config.root is None:
        raise InputError(
            "no folder is given", where="root", fix="set root to the folder that holds the table and the images"
        )
    root = data_dir / Path(config.root).expanduser()
    if not root.is_dir():
        raise InputError(
            "there is no such folder", where=root, fix="correct root (it is relative to the data directory)"
        )
    path = root / config.table
    table = _read_filled_table(config, path)
    sites = _site_of_rows(config, table, path)
    images = [value.strip() for value in table[config.image_column]]
    ids = case_ids(images)
    patients = [ids[image] for image in images] if config.patient_column is None else table[config.patient_column]
    cases = []
    for index, (image, patient, site) in enumerate(zip(images, patients, sites, strict=True)):
        mask = None if config.mask_column is None else table[config.mask_column].iloc[index].strip()
        files = _find_files(config, root, image, mask, line=f"{path}, line {index + 2}")
        cases.append(Case(ids[image], *files, patient.strip(), site))
    _check_unique(cases, path)
    return cases


def _read_filled_table(config: SourceConfig, path: Path) -> pandas.DataFrame:
    """The table as text; the columns that the configuration names are there and have no empty cell."""
    if (config.site_column is None) == (config.site_rule is None):
        raise InputError(
            f"site_column={config.site_column!r} and site_rule={config.site_rule!r} contradict each other",
            where="site_column, site_rule",
            fix="set exactly one of the two",
        )
    named = (config.image_column, config.mask_column, config.patient_column, config.site_column)
    columns = [column for column in named if column is not None]
    table = read_table(path, columns)
    for column in columns:
        _refuse_empty_cells(table[column].str.strip() == "", f"column {column!r}", path)
    return table


def _refuse_empty_cells(is_empty: pandas.Series, column: str, path: Path) -> None:
    empty = is_empty.index[is_empty]
    if len(empty):
        problem = f"{column} is empty in {len(empty)} rows, first in line {empty[0] + 2}"
        raise InputError(problem, where=path, fix="fill it in or remove the rows")


def _site_of_rows(config: SourceConfig, table: pandas.DataFrame, path: Path) -> list[str]:
    if config.site_rule is not None:
        sites = _apply_rule(config.site_rule, read_table(path, as_text=False), path)
    else:
        sites = [value.strip() for value in table[config.site_column]]
    for site in sites:
        if not _SAFE_SITE.fullmatch(site) or site == "all":
            raise InputError(
                f"{site!r} cannot be a site's name: sites name folders, and 'all' means every site",
                where=path,
                fix="use letters, digits, '_', '-' and '.' in the site column",
            )
    return sites


def _apply_rule(rule: str, table: pandas.DataFrame, path: Path) -> list[str]:
    import pandas

    for column in table.columns:
        if re.search(rf"\b{re.escape(column)}\b", rule):
            _refuse_empty_cells(table[column].isna(), f"column {column!r} of the rule {rule!r}", path)
    try:
        values = table.eval(rule, engine="python")
    except (NameError, SyntaxError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"the rule {rule!r} fails ({error}); the columns are {list(table.columns)}",
            where="site_rule",
            fix="write a pandas expression such as 'original_height > 530'",
        ) from error
    if not isinstance(values, pandas.Series) or len(values) != len(table):
        raise InputError(f"the rule {rule!r} gives no value a row", where="site_rule", fix="compare a column in it")
    if values.dtype == bool:
        return ["A" if value else "B" for value in values]
    return [str(value) for value in values]


def _find_files(config: SourceConfig, root: Path, image: str, mask: str | None, line: str) -> tuple[Path, Path]:
    image_file = root / config.image_dir / image
    mask_file = _mask_like(root / config.mask_dir / image) if mask is None else root / config.mask_dir / mask
    for kind, file in (("image", image_file), ("mask", mask_file)):
        if not file.is_file():
            raise InputError(
                f"{kind} {file} is missing", where=line, fix=f"correct the name or {kind}_dir, or remove the row"
            )
    return image_file, mask_file


def _mask_like(path: Path) -> Path:
    """``path`` itself or, where that is missing, the one file with its stem and another ending."""
    if path.is_file():
        return path
    others = [other for ending in ENDINGS if (other := path.with_name(stem(path) + ending)).is_file()]
    return others[0] if len(others) == 1 else path


def _check_unique(cases: Sequence[Case], path: Path) -> None:
    seen: dict[Path, Case] = {}
    for case in cases:
        first = seen.setdefault(case.image.resolve(), case)
        if first is case:
            continue
        if first.site != case.site:
            problem = f"image {case.image} is listed at two sites, {first.site} and {case.site}"
        else:
            problem = f"image {case.image} is listed twice (patients {first.patient} and {case.patient})"
        raise InputError(problem, where=path, fix="keep one row an image")


def _keep_sites(config: SourceConfig, cases: list[Case]) -> list[Case]:
    if config.sites is None:
        return cases
    present = sorted({case.site for case in cases})
    for site in config.sites:
        if site not in present:
            raise InputError(
                f"there is no site {site!r}; the sites are {present}", where="sites", fix="correct the list"
            )
    return [case for case in cases if case.site in config.sites]


def _resolve_cross_site(cases: Sequence[Case]) -> tuple[list[Case], tuple[CrossSitePatient, ...]]:
    """Keep each patient at the site with most of their images (a tie: the first by name), so that no fold leaks."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        counts[case.patient][case.site] += 1
    home = {patient: min(sites, key=lambda site: (-sites[site], site)) for patient, sites in counts.items()}
    kept = [case for case in cases if case.site == home[case.patient]]
    elsewhere: dict[str, list[Case]] = defaultdict(list)
    for case in sorted((case for case in cases if case.site != home[case.patient]), key=lambda case: case.case_id):
        elsewhere[case.patient].append(case)
    return kept, tuple(
        CrossSitePatient(patient, home[patient], counts[patient][home[patient]], tuple(elsewhere[patient]))
        for patient in sorted(elsewhere)
    )


def _check_cross_site(decision: str, found: Sequence[CrossSitePatient], table: str) -> None:
    where = "cross_site_patients"
    if decision not in CROSS_SITE_DECISIONS:
        raise InputError(f"{decision!r} is not a choice", where=where, fix=f"use one of {CROSS_SITE_DECISIONS}")
    if decision == "refuse" and found:
        raise InputError(
            f"{len(found)} patients at two sites would be in the training and the test of one experiment, the first: "
            f"{found[0]}",
            where=table,
            fix=f"correct the patients or sites of the table, or keep each at one site: {where}=keep_at_one",
        )


def case_ids(images: Iterable[str]) -> dict[str, str]:
    """Safe names from the file stems; those that fall together get a part of their path's hash."""
    slugs = {image: safe_name(stem(Path(image))) or "image" for image in images}
    counts = Counter(slug.lower() for slug in slugs.values())
    return {
        image: slug if counts[slug.lower()] == 1 else f"{slug}-{sha256_of_json(Path(image).as_posix())[:8]}"
        for image, slug in slugs.items()
    }
