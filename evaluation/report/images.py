"""The report's section of images: a site's real ones beside its synthetic ones, with outlined labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.federated import is_baseline_run
from evaluation.report.fields import stored_pictures
from evaluation.report.html import Html, absent, heading, join, note, picture
from evaluation.report.labels import labelled_by
from evaluation.report.pictures import ShownCase, load_shown_cases, load_shown_slices, real_beside_synthetic
from evaluation.report.run import ALL_SITES, RunFiles, read_mapping

GENERATOR_PICTURES = {
    "sample_sheet.png": "samples of the generator",
    "autoencoder/reconstructions.png": "real images above, the autoencoder's reconstructions of them below",
}


def images_section(files: RunFiles) -> Html:
    """Rows of images of each site, then the pictures that its generator's training left."""
    real = {folder.site: folder for folder in files.first_of_each_site("prepare") if folder.site != ALL_SITES}
    slices = {folder.site: folder for folder in files.first_of_each_site("slices") if folder.site != ALL_SITES}
    shared = {folder.site: folder for folder in files.first_of_each_site("share")}
    parts = []
    for site in sorted({*real, *slices, *shared}):
        datasets = sorted(real[site].path.glob("raw/*/dataset.json")) if site in real else []
        labels: dict[str, Any] = {}
        rows: dict[str, list[ShownCase]] = {}
        if datasets:
            rows["real, reference labels"] = load_shown_cases(datasets[0].parent)
            labels |= read_mapping(datasets[0]).get("labels", {})
        elif site in slices:
            rows["real"] = load_shown_slices(slices[site].path)
        if site in shared:
            title = f"synthetic, labels by {labelled_by(files, shared[site].fold, site)}"
            rows[title] = load_shown_cases(shared[site].path)
            labels |= read_mapping(shared[site].path / "dataset.json").get("labels", {})
        shown = {title: cases for title, cases in rows.items() if cases}
        parts.append(_site_images(site, shown, labels, 1 if is_baseline_run(files) else 2))
    sheets = stored_pictures(files, "generator", GENERATOR_PICTURES, with_fold=False)
    remark = (
        "The cases are evenly spaced over the sorted names; nobody picked them. Of a volume the middle slice is shown, "
        "of several channels the first one."
    )
    return join(note(remark), *parts, *sheets) if parts or sheets else absent("No images yet.")


def _site_images(site: str, rows: Mapping[str, Sequence[ShownCase]], labels: Mapping[str, Any], n_kinds: int) -> Html:
    if not rows:
        return join(heading(f"Site {site}"), absent("No images yet."))
    missing = absent("Only one of real and synthetic images is there yet.") if len(rows) < n_kinds else ""
    caption = f"Site {site}: {' / '.join(rows)}"
    return join(heading(f"Site {site}"), picture(real_beside_synthetic(rows, labels), caption), missing)
