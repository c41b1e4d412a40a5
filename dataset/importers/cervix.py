"""Cervix MRI (LUMC, private): T2 series with structure sets, four organs, sites by scanner.

HyFree-S3, section on data: patients of one scanner type (Ingenia, 1.5 T) are site A, all others site B. Several MRIs
of a patient: one is kept, chosen by scanner. The last slices, which nobody annotated, are cut off.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from dataset.dicom.annotated import (
    Annotated,
    annotated_series,
    description_fits,
    labels_by_number,
    raw_case,
    spelled_once,
    write_case,
)
from dataset.dicom.series import DEFAULT_SALT_FILE, load_salt, pseudonym, scanner_of
from dataset.importer import Found, Importer, LeftOut, RawCase
from dataset.key_values import option
from dataset.table import read_rows

LABELS = {"bladder": 1, "bowel": 2, "rectum": 3, "sigmoid": 4}
SPELLINGS = {
    **LABELS,
    **{"blaas": 1, "bladderwall": 1, "bowelbag": 2, "bowelloops": 2, "smallbowel": 2, "darm": 2, "dunnedarm": 2},
    **{"rectumwall": 3, "sigmoidcolon": 4, "sigmoideum": 4},
}
CUT_COLUMNS = ("patient id", "folder path", "slices to remove")


@dataclass(frozen=True)
class CervixOptions:
    """Options of the command."""

    series_description: str = option(r"(?i)t2", "regular expression of the T2 series")
    slices_to_cut: int = option(0, "slices without annotation at the end of every series")
    table: str = option("", f"a .csv in --raw with the columns {', '.join(CUT_COLUMNS)}; it goes first")
    site_a_model: str = option("Ingenia", "scanner model of site A")
    site_a_field: str = option("1.5", "field strength of site A in T")
    salt_file: str = option(DEFAULT_SALT_FILE, "the secret behind the pseudonyms; it stays in the hospital")


def find(raw: Path, options: CervixOptions) -> Found:
    """One T2 series with a structure set for every patient; no pixels are read.

    Raises:
        InputError: no DICOM, a table without its columns, or one that names patients who are not there.
    """
    salt = load_salt(Path(options.salt_file))
    annotated, left_out = annotated_series(raw, salt)
    of_patient: dict[str, list[Annotated]] = defaultdict(list)
    for item in annotated:
        patient = item.images[0].text("PatientID")
        if description_fits(item.images[0], options.series_description):
            of_patient[patient].append(item)
        else:
            left_out.append(LeftOut(pseudonym(patient, salt), "the series description is not that of a T2 series"))
    to_cut = _slices_to_cut(raw, options, set(of_patient))
    cases, warnings = [], []
    for patient, items in sorted(of_patient.items()):
        chosen, others = _preferred(items, options)
        name = f"cervix_{pseudonym(patient, salt)}"
        left_out += [LeftOut(name, "another MRI of the patient, from a scanner that is less preferred")] * len(others)
        warnings += _missing_organs(name, chosen)
        recipe = {"organs": spelled_once(SPELLINGS), "n_slices_to_cut": to_cut.get(patient, options.slices_to_cut)}
        cases.append(raw_case(name, chosen, _columns(name, chosen, options), recipe))
    return Found(tuple(cases), LABELS, tuple(left_out), tuple(warnings), ("T2",))


def convert(case: RawCase, out: Path) -> None:
    """Write the volume and its organs; one that was not drawn is empty (``find`` has said so).

    Raises:
        InputError: a series that is not whole, contours off its slices, or a structure set without any of the organs.
    """
    write_case(case, out, must_have_all=False)


IMPORTER = Importer(
    name="cervix",
    summary="cervix T2 MRI with structure sets (3D), four organs, scanner as site; private data of LUMC",
    options=CervixOptions,
    find=find,
    convert=convert,
)


def _columns(name: str, item: Annotated, options: CervixOptions) -> dict[str, str]:
    manufacturer, model, tesla = scanner_of(item.images)
    return {
        "patient": name,
        "site": "A" if _is_site_a(item, options) else "B",
        "manufacturer": manufacturer,
        "scanner": model,
        "field_strength_t": tesla,
    }


def _is_site_a(item: Annotated, options: CervixOptions) -> bool:
    _, model, tesla = scanner_of(item.images)
    return model == options.site_a_model and tesla == options.site_a_field


def _preferred(items: Sequence[Annotated], options: CervixOptions) -> tuple[Annotated, list[Annotated]]:
    """The MRI of the scanner that is last in: site A's, other 1.5 T, 3 T; of equal ones the last by identifier."""

    def rank(item: Annotated) -> tuple[int, str]:
        scanner = 0 if _is_site_a(item, options) else 1 if scanner_of(item.images)[2] == "1.5" else 2
        return scanner, item.images[0].text("SeriesInstanceUID")

    *others, chosen = sorted(items, key=rank)
    return chosen, others


def _missing_organs(name: str, item: Annotated) -> list[str]:
    drawn = set(labels_by_number(item.drawn(), spelled_once(SPELLINGS)).values())
    return [f"{name}: no {organ}; its mask is empty" for organ, label in LABELS.items() if drawn and label not in drawn]


def _slices_to_cut(raw: Path, options: CervixOptions, patients: set[str]) -> Mapping[str, int]:
    """Patient -> slices to cut, from the table.

    Raises:
        InputError: a row whose patient is not there, or whose number is none.
    """
    if not options.table:
        return {}
    counts = {}
    for line, row in read_rows(raw / options.table, CUT_COLUMNS):
        patient, count = row["patient id"].strip(), row["slices to remove"].strip()
        if patient not in patients:
            raise InputError(
                "no series of this patient is there", where=line, fix="remove the row, or export the series"
            )
        if not count.isdecimal():
            raise InputError(
                f"{count!r} is no number of slices to remove", where=line, fix="give a whole number from 0"
            )
        counts[patient] = int(count)
    return counts
