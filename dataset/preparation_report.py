"""What became of a download: what was found, kept and left out, and why; the same text for the same data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset.about import About
from dataset.importer import Found, LeftOut
from dataset.key_values import as_text

if TYPE_CHECKING:
    import pandas

_MAX_NAMES = 8  # in the text; the JSON has them all


@dataclass(frozen=True)
class Report:
    """Counts are of images; ``left_out`` maps a reason to sorted names, ``sites`` a site to (images, patients)."""

    importer: str
    options: Mapping[str, str]
    about: About
    n_found: int
    n_kept: int
    n_patients: int  # 0 where the download does not tell patients apart
    sites: Mapping[str, tuple[int, int]]
    labels: Mapping[str, int]
    left_out: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    checksums: Mapping[str, str]

    def text(self) -> str:
        """The report as lines for a reader."""
        about = self.about
        lines = [f"{about.title or self.importer}", *(f"  {key}={value}" for key, value in self.options.items())]
        for label, text in (("licence", about.licence), ("citation", about.citation), ("ethics", about.ethics)):
            lines += [f"{label}: {text.strip()}"] if text else []
        lines.append(f"found: {self.n_found} images; kept: {self.n_kept} images of {_patients(self.n_patients)}")
        lines += [f"site {site}: {n} images of {_patients(patients)}" for site, (n, patients) in self.sites.items()]
        labels = ", ".join(f"{name} {label}" for name, label in self.labels.items())
        lines.append(f"labels: {labels}" if labels else "labels: no masks; the table's columns are the labels")
        for reason, names in self.left_out.items():
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            lines.append(f"left out: {len(names)}, {reason}: {', '.join(names[:_MAX_NAMES])}{more}")
        lines += [f"checksum of {name}: {state}" for name, state in self.checksums.items()]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)]) + "\n"


def build_report(
    *,
    importer: str,
    options: Any,
    about: About,
    found: Found,
    table: pandas.DataFrame,
    left_out: Sequence[LeftOut],
    equal_images: Sequence[tuple[str, ...]],
    checksums: Mapping[str, str],
) -> Report:
    """Count and compare; nothing in it depends on when, where or in how many steps the data were converted.

    Args:
        table: the kept images as in ``metadata.csv``.
        equal_images: names of images whose pixels are the same.
    """
    by_reason: dict[str, list[str]] = defaultdict(list)
    for item in left_out:
        by_reason[item.reason].append(item.name)
    has_patients = "patient" in table
    sites = {
        str(site): (len(rows), rows["patient"].nunique() if has_patients else 0)
        for site, rows in table.groupby("site", sort=True)
    }
    n_patients = table["patient"].nunique() if has_patients else 0

    expected = {"images": (about.n_images, len(table)), "patients": (about.n_patients, n_patients)}
    for site, n_expected in about.n_images_of_site.items():
        expected[f"images of site {site}"] = (n_expected, sites.get(site, (0, 0))[0])
    warnings = [
        *found.warnings,
        *(
            f"{actual} {what} are kept, {published} are expected: is the download whole, and its version this one?"
            for what, (published, actual) in expected.items()
            if published not in (0, actual)
        ),
        *(_shared_patients(table) if has_patients else []),
        *(f"the same image is stored as {', '.join(names)}" for names in equal_images),
    ]
    return Report(
        importer=importer,
        options=as_text(options),
        about=about,
        n_found=len(found.cases) + len(found.left_out),
        n_kept=len(table),
        n_patients=n_patients,
        sites=sites,
        labels=dict(found.labels),
        left_out={reason: tuple(sorted(names)) for reason, names in sorted(by_reason.items())},
        warnings=tuple(warnings),
        checksums=dict(checksums),
    )


def _shared_patients(table: pandas.DataFrame) -> list[str]:
    """A patient at two sites would leak between them; experiments resolve it as ``dataset.source`` says."""
    n_sites = table.groupby("patient", sort=True)["site"].nunique()
    warnings = []
    for patient in n_sites.index[n_sites > 1]:
        at_sites = sorted(Counter(table["site"][table["patient"] == patient]).items())
        counts = ", ".join(f"{site}: {n_images} images" for site, n_images in at_sites)
        warnings.append(
            f"patient {patient} is at several sites ({counts}): experiments keep the patient where most images are"
        )
    return warnings


def _patients(n_patients: int) -> str:
    return f"{n_patients} patients" if n_patients else "unknown patients (each image counts as one)"
