"""``report.html``: one self-contained page about a run, built from the files of whatever stages are done.

``python -m evaluation.report runs/<exp_name>`` rebuilds it over all folds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_text
from evaluation.report import html as page
from evaluation.report.approaches import approaches_section, scaling_section, write_scaling
from evaluation.report.federated import federated_section, is_baseline_run
from evaluation.report.fields import format_bytes, format_seconds, scalars, table_of, without_absent
from evaluation.report.labels import labelled_by, labels_section
from evaluation.report.pictures import (
    ShownCase,
    curves_figure,
    load_shown_cases,
    load_shown_slices,
    real_beside_synthetic,
    stage_times_figure,
)
from evaluation.report.privacy import privacy_section
from evaluation.report.results import answer, more_results
from evaluation.report.run import (
    ALL_SITES,
    FINETUNE_OF_UNION,
    RunFiles,
    StageFolder,
    StageRecord,
    find_folds,
    finished_at,
    read_curves,
    read_mapping,
    stage_rank,
)
from evaluation.results import write_table

logger = logging.getLogger(__name__)

WARNING = "This report contains images of real patients and stays inside; what may leave is in share/."
TRAINING_STAGES = {
    "generator": "Generator",
    "segment_real": "Segmentation, the site's real images (real-X)",
    "segment_syn": "Segmentation, shared synthetic images (syn-X; X is a union of sites)",
    "finetune": "Segmentation, fine-tuned on the site's real images (syn-real-X)",
    "segment_dsl": "Segmentation, DSL's synthetic images (dsl-all)",
}
GENERATOR_PICTURES = {
    "sample_sheet.png": "samples of the generator",
    "autoencoder/reconstructions.png": "real images above, what the autoencoder makes of them below",
}
LEFT_OUT_WHERE_ABSENT = {  # a run of baselines alone trains no generator, a run without DSL nothing on its images
    False: ("segment_dsl",),
    True: ("generator", "segment_syn", "finetune", "segment_dsl"),
}
FILTER_PICTURES = {
    "histogram.png": "how alike real images the synthetic ones are; the line is the limit",
    "nearest_pairs.png": "the synthetic images most alike a real one, each above that one",
}


def write_report(run: Path, folds: Sequence[int] | None = None, out: Path | None = None) -> Path:
    """Write ``report.html`` (and ``summary.csv`` where there are results) into ``out``, else into ``run``.

    Args:
        run: ``runs/<exp_name>``.
        folds: outer folds to include; all that have a folder if None.
        out: folder to write to.

    Raises:
        InputError: the run has no fold folder.
    """
    chosen = find_folds(run) if folds is None else tuple(sorted(folds))
    if not chosen:
        raise InputError("no fold_<k> folder here", where=run, fix="give the folder runs/<exp_name> of a started run")
    files = RunFiles(run, chosen)
    builders: dict[str, tuple[str, Callable[[RunFiles], page.Html | None]]] = {
        "answer": ("What sharing gained", _answer_section),
        "approaches": ("Against other approaches", _approaches_section),
        "scaling": ("What further contributors bring", scaling_section),
        "federated": ("Training across sites", federated_section),
        "results": ("More results", _more_results_section),
        "images": ("Real beside synthetic images", _images_section),
        "labels": ("Generated labels beside predicted ones", labels_section),
        "filter": ("Memorization filter", _filter_section),
        "privacy": ("Privacy", privacy_section),
        "shared": ("What was shared", _shared_section),
        "curves": ("Training curves", _curves_section),
        "time": ("Time per stage", _time_section),
        "run": ("This run", _identity_section),
    }
    bodies = {anchor: _guarded(build, files) for anchor, (_, build) in builders.items()}
    sections = [page.Section(anchor, builders[anchor][0], body) for anchor, body in bodies.items() if body is not None]
    folder = out or run
    _write_summary(files, folder / "summary.csv")
    _write_scaling(files, folder / "scaling.csv")
    title, fold_names = f"autoshare: {run.resolve().name}", ", ".join(map(str, chosen))
    subtitle = f"Outer fold{'s' if len(chosen) > 1 else ''} {fold_names}"
    write_text(folder / "report.html", page.page(title, subtitle, WARNING, sections))
    return folder / "report.html"


def _guarded(build: Callable[[RunFiles], page.Html | None], files: RunFiles) -> page.Html | None:
    """A section (None: this run has no such part), or a line that says why it could not be built.

    The report must not fail the run.
    """
    try:
        return build(files)
    except Exception as error:
        logger.exception("a section of the report is left out")
        return page.absent(f"This section could not be built ({type(error).__name__}: {error}).")


def _write_summary(files: RunFiles, path: Path) -> None:
    try:
        if files.summary is not None:
            write_table(path, files.summary)
    except InputError as error:
        logger.warning("no summary.csv: %s", error)


def _write_scaling(files: RunFiles, path: Path) -> None:
    try:
        write_scaling(files, path)
    except InputError as error:
        logger.warning("no scaling.csv: %s", error)


def _approaches_section(files: RunFiles) -> page.Html | None:
    return None if files.results is None or files.results.empty else approaches_section(files.results)


def _answer_section(files: RunFiles) -> page.Html:
    if files.results is None or files.summary is None:
        return page.absent("No results yet: no chosen fold has finished its evaluate stage.")
    without = sorted(set(files.folds) - set(files.results["fold"]))
    missing = f"Not evaluated yet: fold {', '.join(map(str, without))}." if without else ""
    return page.join(answer(files.results, files.summary), page.absent(missing) if missing else "")


def _more_results_section(files: RunFiles) -> page.Html:
    if files.results is None or files.summary is None:
        return page.absent("No results yet.")
    return more_results(files.results, files.summary)


def _images_section(files: RunFiles) -> page.Html:
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
    sheets = [
        page.picture((folder.path / name).read_bytes(), f"Site {folder.site}: {title}")
        for folder in files.first_of_each_site("generator")
        for name, title in GENERATOR_PICTURES.items()
        if (folder.path / name).is_file()
    ]
    remark = "Evenly spaced over the sorted names, not picked. Volumes: the middle slice; several channels: the first."
    return page.join(page.note(remark), *parts, *sheets) if parts or sheets else page.absent("No images yet.")


def _site_images(
    site: str, rows: Mapping[str, Sequence[ShownCase]], labels: Mapping[str, Any], n_kinds: int
) -> page.Html:
    if not rows:
        return page.join(page.heading(f"Site {site}"), page.absent("No images yet."))
    missing = page.absent("Only one of real and synthetic images is there yet.") if len(rows) < n_kinds else ""
    caption = f"Site {site}: {' / '.join(rows)}"
    shown = page.picture(real_beside_synthetic(rows, labels), caption)
    return page.join(page.heading(f"Site {site}"), shown, missing)


def _filter_section(files: RunFiles) -> page.Html | None:
    folders = files.stage_folders("filter")
    read = [(folder, read_mapping(folder.path / "filter.json")) for folder in folders]
    records = [{"fold": folder.fold, "site": folder.site} | record for folder, record in read if record]
    rows = [scalars(record) for record in without_absent(records)]
    pictures = [
        page.picture((folder.path / name).read_bytes(), f"Site {folder.site}, fold {folder.fold}: {caption}")
        for folder in files.first_of_each_site("filter")
        for name, caption in FILTER_PICTURES.items()
        if (folder.path / name).is_file()
    ]
    if not rows and not pictures:
        return None if is_baseline_run(files) else page.absent("The filter has not run yet.")
    return page.join(table_of(rows), *pictures)


def _shared_section(files: RunFiles) -> page.Html | None:
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
            card = page.element("pre", (folder.path / "CARD.md").read_text(encoding="utf-8", errors="replace"))
            cards.append(page.details(f"Card of site {folder.site}, fold {folder.fold}", card))
    refusals = page.join(*(page.element("div", text, "refused") for text in refused))
    if not rows:
        return refusals or (None if is_baseline_run(files) else page.absent("Nothing has been shared yet."))
    figures = [scalars(row) for row in without_absent(evidence) if len(row) > 2]
    privacy = page.join(page.heading("Evidence about privacy"), table_of(figures)) if figures else ""
    return page.join(refusals, table_of(rows), privacy, *cards)


def _training_stages(files: RunFiles) -> dict[str, str]:
    """Stages with curves and their titles, those of a scaling study after the fine-tuning from all sites."""
    unions = {
        f"{FINETUNE_OF_UNION}{name}": f"Segmentation, fine-tuned from the synthetic images of {name} (syn{name}-real-X)"
        for name in files.finetune_unions()
    }
    stages = TRAINING_STAGES | unions
    return dict(sorted(stages.items(), key=lambda item: stage_rank(item[0])))


def _curves_section(files: RunFiles) -> page.Html:
    parts = []
    for stage, title in _training_stages(files).items():
        if stage in LEFT_OUT_WHERE_ABSENT[is_baseline_run(files)] and not files.stage_folders(stage):
            continue
        curves: dict[str, list[list[dict[str, Any]]]] = {}
        for folder in files.stage_folders(stage):
            curves.setdefault(folder.site, []).append(read_curves(folder.path / "curves.jsonl"))
        png = curves_figure({site: curves[site] for site in sorted(curves)})
        shown = page.picture(png, f"{title}: one colour a site, one line a fold") if png else None
        alarms = [_alarm(folder, alarm) for folder in files.stage_folders(stage) for alarm in _alarms(folder)]
        parts.append(page.join(page.heading(title), shown or page.absent("No curves yet."), *alarms))
    return page.join(*parts)


def _alarms(folder: StageFolder) -> list[dict[str, Any]]:
    return read_curves(folder.path / "alarms.jsonl")


def _alarm(folder: StageFolder, alarm: Mapping[str, Any]) -> page.Html:
    unit = alarm.get("unit", "")
    return page.paragraph(
        f"Alarm at site {folder.site}, fold {folder.fold}, {alarm['step']:g} {unit}: {alarm.get('message', '')}. "
        f"Training went on from {alarm.get('back_to', 0):g} {unit} with other random numbers."
    )


def _time_section(files: RunFiles) -> page.Html:
    records = files.records()
    if not records:
        return page.absent("No stage has finished yet.")
    stages = sorted({record.stage for record in records}, key=lambda stage: (stage_rank(stage), stage))
    rows = [_stage_row(stage, [record for record in records if record.stage == stage]) for stage in stages]
    total = format_seconds(sum(record.seconds for record in records))
    header = ["Stage", "done", "total", "longest", "of site", "device", "host"]
    columns = ["fold", "stage", "site", "time", "device", "finished"]
    every = [
        [str(record.fold), record.stage, record.site, format_seconds(record.seconds), record.device, record.finished]
        for record in records
    ]
    return page.join(
        page.paragraph(f"{total} of work in {len(records)} finished stages{_wall_clock(records)}."),
        page.picture(stage_times_figure(records), "Time per stage, all folds, by site"),
        page.table(header, rows),
        page.details("Every stage", page.table(columns, every, text=True)),
    )


def _stage_row(stage: str, records: Sequence[StageRecord]) -> list[str]:
    longest = max(records, key=lambda record: record.seconds)
    total = format_seconds(sum(record.seconds for record in records))
    places = (", ".join(sorted({name for name in names if name})) or "-" for names in _places(records))
    return [stage, str(len(records)), total, format_seconds(longest.seconds), longest.site, *places]


def _places(records: Sequence[StageRecord]) -> tuple[list[str], list[str]]:
    return [record.device for record in records], [record.host for record in records]


def _wall_clock(records: Sequence[StageRecord]) -> str:
    ends = [end.isoformat(" ", "minutes") for end in map(finished_at, records) if end is not None]
    return f"; the first ended {min(ends)}, the last {max(ends)}" if ends else ""


def _identity_section(files: RunFiles) -> page.Html:
    records = files.records()
    versions = {name: version for record in records for name, version in record.versions.items()}
    rows = [["experiment", files.run.resolve().name], ["folds", ", ".join(map(str, files.folds))]]
    for name, value in scalars(files.run_notes()).items():
        rows.append([name, page.element("code", value) if name == "command" else value])
    seeds = sorted({record.seed for record in records if record.seed})
    if seeds:
        shown = ", ".join(seeds) if len(seeds) <= 3 else f"{len(seeds)} different ones, in the manifests"
        rows.append(["stage seeds", shown])
    for title, names in zip(("devices", "hosts"), _places(records), strict=True):
        rows.append([title, ", ".join(sorted({name for name in names if name})) or "-"])
    rows.extend([f"version of {name}", versions[name]] for name in sorted(versions))
    return page.table(["What", "Value"], rows, text=True)
