"""The report's sections on the memorization filter and on what each site shared."""

from __future__ import annotations

from evaluation.report.federated import is_baseline_run
from evaluation.report.fields import format_bytes, scalars, stored_pictures, table_of, without_absent
from evaluation.report.html import Html, absent, details, element, heading, join
from evaluation.report.run import RunFiles, read_mapping

FILTER_PICTURES = {
    "histogram.png": "how similar the synthetic images are to real ones; the line is the limit",
    "nearest_pairs.png": "the synthetic images that are most similar to a real one, each above that one",
}


def filter_section(files: RunFiles) -> Html | None:
    """What each site's filter judged and dropped; None where no generator was trained."""
    read = [(folder, read_mapping(folder.path / "filter.json")) for folder in files.stage_folders("filter")]
    records = [{"fold": folder.fold, "site": folder.site} | record for folder, record in read if record]
    rows = [scalars(record) for record in without_absent(records)]
    pictures = stored_pictures(files, "filter", FILTER_PICTURES)
    if not rows and not pictures:
        return None if is_baseline_run(files) else absent("The filter has not run yet.")
    return join(table_of(rows), *pictures)


def shared_section(files: RunFiles) -> Html | None:
    """Each site's package, its evidence about privacy and its card; None where no generator was trained."""
    rows, evidence, cards, refused = [], [], [], []
    for folder in files.stage_folders("share"):
        key = {"fold": folder.fold, "site": folder.site}
        if not (folder.path / "manifest.json").is_file():
            refused.append(f"Site {folder.site}, fold {folder.fold} shared nothing: see Privacy.")
            continue
        manifest = read_mapping(folder.path / "manifest.json")
        sizes = [path.stat().st_size for path in sorted(folder.path.rglob("*")) if path.is_file()]
        size = {"files on disk": len(sizes), "size": format_bytes(sum(sizes))}
        rows.append(key | size | scalars({name: value for name, value in manifest.items() if name != "files"}))
        evidence.append(key | read_mapping(folder.path / "privacy.json"))
        if (folder.path / "CARD.md").is_file():
            card = element("pre", (folder.path / "CARD.md").read_text(encoding="utf-8", errors="replace"))
            cards.append(details(f"Card of site {folder.site}, fold {folder.fold}", card))
    refusals = join(*(element("div", text, "refused") for text in refused))
    if not rows:
        return refusals or (None if is_baseline_run(files) else absent("Nothing has been shared yet."))
    figures = [scalars(row) for row in without_absent(evidence) if len(row) > 2]
    privacy = join(heading("Evidence about privacy"), table_of(figures)) if figures else ""
    return join(refusals, table_of(rows), privacy, *cards)
