"""CheXpert: chest X-rays with 14 findings from reports, -1 where a report is uncertain; images without masks.

Layout: ``train.csv`` (and ``valid.csv``) with a column ``Path`` such as
``CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg``, the images below ``train/`` and ``valid/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from dataset.images import read_image
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option
from dataset.raw_files import deal_to_sites, holds, in_colours, the_folder, write_image
from dataset.table import read_rows

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_UNCERTAIN = {"keep": "-1", "zeros": "0", "ones": "1", "ignore": ""}
_PATH = re.compile(r"(train|valid)/patient(\d+)/study(\d+)/view(\d+)_(frontal|lateral)\.(?:jpg|png)$")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


@dataclass(frozen=True)
class ChexpertOptions:
    """Options of the command."""

    view: str = option("frontal", "frontal, lateral or all")
    uncertain: str = option("keep", "what -1 becomes: keep, zeros, ones or ignore (empty)")
    n_sites: int = option(1, "patients are dealt to so many sites")


def find(raw: Path, options: ChexpertOptions) -> Found:
    """List the rows of the tables whose image is there.

    Raises:
        InputError: no table, an unknown option or path, a label that is none, or an image in two rows.
    """
    for name, value, allowed in (
        ("view", options.view, ("frontal", "lateral", "all")),
        ("uncertain", options.uncertain, tuple(_UNCERTAIN)),
    ):
        if value not in allowed:
            raise InputError(f"{value!r} is not a choice", where=name, fix=f"use one of {', '.join(allowed)}")
    root = the_folder(raw, holds("train.csv"), "'train.csv'")
    tables = [table for table in (root / "train.csv", root / "valid.csv") if table.is_file()]
    found = [_raw_case(row, root, line, options) for table in tables for line, row in read_rows(table, _COLUMNS)]
    cases = [case for case in found if isinstance(case, RawCase)]
    site_of = deal_to_sites((case.columns["patient"] for case in cases), options.n_sites)
    placed = (replace(case, columns={**case.columns, "site": site_of[case.columns["patient"]]}) for case in cases)
    return Found(tuple(placed), {}, tuple(item for item in found if isinstance(item, LeftOut)))


def convert(case: RawCase, out: Path) -> None:
    """Write a grey image.

    Raises:
        InputError: an unreadable image.
    """
    write_image(out / "images" / case.name, in_colours(read_image(case.files[0]), 1), case.files[0])


IMPORTER = Importer(
    name="chexpert",
    summary="CheXpert, chest X-rays (2D, grey) with 14 findings, no masks",
    options=ChexpertOptions,
    find=find,
    convert=convert,
)


def _raw_case(row: dict[str, str], root: Path, line: str, options: ChexpertOptions) -> RawCase | LeftOut:
    match = _PATH.search(row["Path"])
    if match is None:
        raise InputError(
            f"the path {row['Path']!r} does not end in train/patient<n>/study<n>/view<n>_frontal.jpg",
            where=line,
            fix="download the table again",
        )
    subset, patient, study, view, orientation = match.groups()
    name = f"patient{patient}_study{study}_view{view}_{orientation}"
    if options.view not in ("all", orientation):
        return LeftOut(name, f"a {orientation} view")
    image = root / match.group(0)
    if not image.is_file():
        return LeftOut(name, "the image of the row is not there")
    findings = {
        finding.lower().replace(" ", "_"): _finding(row[finding], finding, line, options) for finding in FINDINGS
    }
    described = {"sex": row["Sex"], "age": row["Age"], "projection": row["AP/PA"], "view": orientation}
    columns = {"patient": f"patient{patient}", "study": study, "subset": subset, **described, **findings}
    return RawCase(name, (image,), columns)


def _finding(text: str, finding: str, line: str, options: ChexpertOptions) -> str:
    """``1``, ``0``, what ``uncertain`` makes of -1, or empty: not mentioned in the report."""
    known = {"": "", "1.0": "1", "1": "1", "0.0": "0", "0": "0"}
    known |= dict.fromkeys(("-1.0", "-1"), _UNCERTAIN[options.uncertain])
    if text not in known:
        raise InputError(f"{finding!r} is {text!r}", where=line, fix="a finding is 1, 0, -1 or empty")
    return known[text]
