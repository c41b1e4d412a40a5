"""The report's sections on the stages: training curves with their alarms, time, and what identifies the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.curves import read_curves
from evaluation.report.federated import is_baseline_run
from evaluation.report.fields import format_seconds, scalars
from evaluation.report.html import Html, absent, details, element, heading, join, paragraph, picture, table
from evaluation.report.pictures import curves_figure, stage_times_figure
from evaluation.report.run import FINETUNE_OF_UNION, RunFiles, StageRecord, finished_at, stage_rank

TRAINING_STAGES = {
    "generator": "Generator",
    "segment_real": "Segmentation, the site's real images (real-X)",
    "segment_syn": "Segmentation, shared synthetic images (syn-X; X is a union of sites)",
    "finetune": "Segmentation, fine-tuned on the site's real images (syn-real-X)",
    "segment_dsl": "Segmentation, DSL's synthetic images (dsl-all)",
}
LEFT_OUT_WHERE_ABSENT = {  # a run of baselines alone trains no generator, a run without DSL nothing on its images
    False: ("segment_dsl",),
    True: ("generator", "segment_syn", "finetune", "segment_dsl"),
}


def curves_section(files: RunFiles) -> Html:
    """The curves of every training, those of a scaling study after the fine-tuning from all sites."""
    unions = {
        f"{FINETUNE_OF_UNION}{name}": f"Segmentation, fine-tuned from the synthetic images of {name} (syn{name}-real-X)"
        for name in files.finetune_unions()
    }
    parts = []
    for stage, title in sorted((TRAINING_STAGES | unions).items(), key=lambda item: stage_rank(item[0])):
        folders = files.stage_folders(stage)
        if stage in LEFT_OUT_WHERE_ABSENT[is_baseline_run(files)] and not folders:
            continue
        curves: dict[str, list[list[dict[str, Any]]]] = {}
        for folder in folders:
            curves.setdefault(folder.site, []).append(read_curves(folder.path / "curves.jsonl"))
        png = curves_figure({site: curves[site] for site in sorted(curves)})
        shown = picture(png, f"{title}: one colour a site, one line a fold") if png else absent("No curves yet.")
        alarms = [
            paragraph(
                f"Alarm at site {folder.site}, fold {folder.fold}, {alarm['step']:g} {alarm.get('unit', '')}: "
                f"{alarm.get('message', '')}. Training went on from {alarm.get('back_to', 0):g} "
                f"{alarm.get('unit', '')} with other random numbers."
            )
            for folder in folders
            for alarm in read_curves(folder.path / "alarms.jsonl")
        ]
        parts.append(join(heading(title), shown, *alarms))
    return join(*parts)


def time_section(files: RunFiles) -> Html:
    """What each stage took, and when the first and the last ended."""
    records = files.records()
    if not records:
        return absent("No stage has finished yet.")
    stages = sorted({record.stage for record in records}, key=lambda stage: (stage_rank(stage), stage))
    rows = [_stage_row(stage, [record for record in records if record.stage == stage]) for stage in stages]
    ends = [end.isoformat(" ", "minutes") for end in map(finished_at, records) if end is not None]
    wall_clock = f"; the first ended {min(ends)}, the last {max(ends)}" if ends else ""
    total = format_seconds(sum(record.seconds for record in records))
    every = [
        [str(record.fold), record.stage, record.site, format_seconds(record.seconds), record.device, record.finished]
        for record in records
    ]
    columns = ["fold", "stage", "site", "time", "device", "finished"]
    return join(
        paragraph(f"{total} of work in {len(records)} finished stages{wall_clock}."),
        picture(stage_times_figure(records), "Time per stage, all folds, by site"),
        table(["Stage", "done", "total", "longest", "of site", "device", "host"], rows),
        details("Every stage", table(columns, every, text=True)),
    )


def _stage_row(stage: str, records: Sequence[StageRecord]) -> list[str]:
    longest = max(records, key=lambda record: record.seconds)
    total = format_seconds(sum(record.seconds for record in records))
    devices, hosts = _named(record.device for record in records), _named(record.host for record in records)
    return [stage, str(len(records)), total, format_seconds(longest.seconds), longest.site, devices, hosts]


def _named(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name})) or "-"


def identity_section(files: RunFiles) -> Html:
    """What was run, with which seeds, on which machines, with which versions."""
    records = files.records()
    rows = [["run", files.run.resolve().name], ["folds", ", ".join(map(str, files.folds))]]
    for name, value in scalars(files.run_notes()).items():
        rows.append([name, element("code", value) if name == "command" else value])
    seeds = sorted({record.seed for record in records if record.seed})
    if seeds:
        shown = ", ".join(seeds) if len(seeds) <= 3 else f"{len(seeds)} different ones, in the manifests"
        rows.append(["stage seeds", shown])
    rows.append(["devices", _named(record.device for record in records)])
    rows.append(["hosts", _named(record.host for record in records)])
    versions = {name: version for record in records for name, version in record.versions.items()}
    rows.extend([f"version of {name}", versions[name]] for name in sorted(versions))
    return join(table(["What", "Value"], rows, text=True), _other_code(files.other_code()))


def _other_code(stages: Mapping[str, str]) -> Html:
    """Which finished trainings the last run's code did not make; nothing where it made all."""
    if not stages:
        return Html("")
    return join(
        heading("Trainings made by other code"),
        paragraph("The program changed after these trainings. They were kept; general.redo=changed_code redoes them."),
        table(["Stage", "What changed"], [[stage, stages[stage]] for stage in sorted(stages)], text=True),
    )
