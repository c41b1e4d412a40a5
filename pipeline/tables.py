"""What a run prints and leaves as tables: the plan of a dry run, and the results of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_text
from evaluation.report import write_report
from evaluation.results import KEY_COLUMNS, format_table, read_results, summarise, write_table

if TYPE_CHECKING:
    from pipeline.config import ExperimentConfig
    from pipeline.run import RunPlan


def write_fold_results(run: Path, fold: int, evaluated: Sequence[Path]) -> None:
    """``results.csv``, ``summary.csv``, ``summary.txt`` and ``report.html`` of one fold, from its evaluate stages."""
    import pandas as pd

    folder = run / f"fold_{fold}"
    if evaluated:
        results = pd.concat([read_results(path / "results.csv") for path in evaluated])
        write_table(folder / "results.csv", results.sort_values(list(KEY_COLUMNS), kind="stable"))
        summary = summarise(results)
        write_table(folder / "summary.csv", summary)
        write_text(folder / "summary.txt", format_table(summary) + "\n")
    write_report(run, folds=[fold], out=folder)


def format_plan(plan: RunPlan, config: ExperimentConfig) -> str:
    """The dry run's table: every stage, done or to do, with what it asks for."""
    header = ("stage", "state", "CPUs", "GPUs", "runs on")
    rows = [header]
    for stage_id in plan.graph.topological_order():
        stage = plan.graph.stages[stage_id]
        pinned = config.cluster.pin_sites and stage.private_to
        node = f"site:{stage.private_to}" if pinned else "any node"
        asked = (f"{stage.resources.cpus:g}", f"{stage.resources.gpus:g}")
        rows.append((stage_id, plan.states[stage_id], *asked, node))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    n_to_do = len(plan.graph.stages) - len(plan.done)
    total = f"{len(plan.graph.stages)} stages, {n_to_do} to do; nothing was run"
    return "\n".join([*lines, "", *_facts(config), total])


def _facts(config: ExperimentConfig) -> list[str]:
    train = config.train
    finetune = train.nnunet_epochs_finetune or train.nnunet_epochs
    return [
        f"experiment  {config.general.exp_name}: {config.run}",
        f"nnU-Net     {train.nnunet_epochs} epochs x {train.nnunet_iterations} iterations ({train.nnunet_schedule}); "
        f"fine-tuning {finetune} epochs ({train.nnunet_schedule_finetune})",
        f"generator   {config.generator.name}, kimg {train.gan.kimg}, images per site {config.generate.n_images}",
        f"filter      {config.memorization.embedder}, percentile {config.memorization.percentile:g} "
        f"({config.memorization.calibration})",
    ]
