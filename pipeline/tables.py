"""What a run prints and leaves as tables: the plan of a dry run, and the results of a fold."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import read_json, write_text
from common.seeds import derive_seed
from dataset.enough_patients import gate_lines
from dataset.folds import assign_folds
from dataset.images import VOLUME_ENDINGS, file_ending
from dataset.source import Case
from engine.run_plan import RunPlan
from evaluation.curves import NETWORK_COLUMNS
from evaluation.results import KEY_COLUMNS, aligned, format_table, read_results, summarise, write_table
from pipeline.baselines import strategy_in_words
from pipeline.config import IMAGES_PER_TRAINING_IMAGE, ExperimentConfig
from pipeline.site_data import SiteData
from pipeline.stage_factory import ALL, base_name
from pipeline.unions import Union

log = logging.getLogger(__name__)


def write_fold_tables(folder: Path, finished: Mapping[str, Path]) -> None:
    """``results.csv``, ``networks.csv``, ``summary.csv`` and ``summary.txt`` of one fold, from its evaluate stages."""
    import pandas as pd

    evaluated = [path for stage_id, path in finished.items() if base_name(stage_id.split("/")[1]) == "evaluate"]
    if evaluated:
        results = pd.concat([read_results(path / "results.csv") for path in evaluated])
        write_table(folder / "results.csv", results.sort_values(list(KEY_COLUMNS), kind="stable"))
        networks = pd.DataFrame([read_json(path / "network.json") for path in evaluated], columns=list(NETWORK_COLUMNS))
        networks = networks.drop_duplicates(["model", "fold", "seed"]).sort_values(["model", "seed"])
        write_table(folder / "networks.csv", networks)
        faulty = networks[networks["fault"] != ""]
        for row in faulty.to_dict("records"):
            log.warning("%s (fold %s, seed %s) %s", row["model"], row["fold"], row["seed"], row["fault"])
        summary = summarise(results)
        write_table(folder / "summary.csv", summary)
        write_text(folder / "summary.txt", format_table(summary, set(faulty["model"])) + "\n")


def format_plan(plan: RunPlan, facts: Sequence[str], *, pins_sites: bool) -> str:
    """The dry run's table: every stage, done or to do, with what it asks for; then ``facts`` of the experiment."""
    rows = [("stage", "state", "CPUs", "GPUs", "runs on")]
    for stage_id in plan.graph.order:
        stage = plan.graph.stages[stage_id]
        node = f"site:{stage.private_to}" if pins_sites and stage.private_to else "any node"
        asked = (f"{stage.resources.cpus:g}", f"{stage.resources.gpus:g}")
        rows.append((stage_id, plan.states[stage_id], *asked, node))
    n_to_do = len(plan.graph.stages) - len(plan.done)
    total = f"{len(plan.graph.stages)} stages, {n_to_do} to do; nothing was run"
    return "\n".join([*aligned(rows), "", *facts, *_kept(plan), total])


def _kept(plan: RunPlan) -> list[str]:
    """Finished trainings that stay although other code made them, and how to redo them."""
    if not plan.other_code:
        return []
    named = [f"  {stage_id}: {changes}" for stage_id, changes in plan.other_code.items()]
    return ["these trainings were made by other code and stay; general.redo=changed_code redoes them:", *named]


def experiment_in_words(config: ExperimentConfig, data: SiteData) -> list[str]:
    """Lengths, generator, filter and baselines of the main experiment, for the dry run."""
    sites, cases = data.sites, data.cases
    train = config.train
    finetune = train.nnunet_epochs_finetune or train.nnunet_epochs
    lines = [
        f"experiment  {config.general.exp_name}: {config.run}",
        f"nnU-Net     {train.nnunet_epochs} epochs x {train.nnunet_iterations} iterations ({train.nnunet_schedule}); "
        f"fine-tuning {finetune} epochs ({train.nnunet_schedule_finetune})",
    ]
    if config.evaluation.synthetic and config.evaluation.real_long:
        lines.append(f"control     real-long: own images only, {train.from_scratch_as_long().n_epochs} epochs")
    if config.data.test_sites:
        lines.append(f"only tested {', '.join(config.data.test_sites)}")
    if config.general.n_seeds > 1:
        lines.append(f"seeds       {config.general.n_seeds} trainings of every network")
    if config.evaluation.synthetic:
        lines += [f"generator   {config.generator.name}, {text}" for text in _generator_lengths(config, sites, cases)]
        lines.append(
            f"filter      {config.memorization.rule}, {config.memorization.embedder}, "
            f"percentile {config.memorization.percentile:g} ({config.memorization.calibration})"
        )
        lines += gate_prospects(config, cases)
    for strategy in config.federated.strategies:
        lines.append(f"federated   {strategy}: {strategy_in_words(config, strategy)}")
    if config.scaling.unions:
        unions = (*config.scaling.named_unions(sites), Union(ALL, tuple(sites)))
        lines.append("scaling     " + "; ".join(f"{union.name}: {' '.join(union.sites)}" for union in unions))
    return lines


def gate_prospects(config: ExperimentConfig, cases: Sequence[Case]) -> list[str]:
    """Whether each site has enough patients for its leakage gates, from the data alone; empty without data."""
    patients: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        patients[case.site].add(case.patient)
    gates = config.gates
    return gate_lines(
        {site: len(names) for site, names in sorted(patients.items())},
        config.folds,
        config.generator.train_on,
        gates.familywise_level,
        gates.min_measured,
    )


def _generator_lengths(config: ExperimentConfig, sites: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """What ``auto`` comes to at each site, from its images, or from the published counts where the data is not here."""
    counts = training_images(config, cases) or _published_images(config, sites)
    asked = (config.train.gan.kimg, config.generate.n_images)
    if "auto" not in asked or not counts:
        return [f"kimg {asked[0]}, images per site {asked[1]}"]
    about = "" if cases else "about "
    lines = []
    for (fold, site), count in sorted(counts.items()):
        kimg = count if asked[0] == "auto" else asked[0]
        n_images = IMAGES_PER_TRAINING_IMAGE * count if asked[1] == "auto" else asked[1]
        lines.append(f"fold {fold}, site {site}: {about}{kimg} kimg, {about}{n_images} images")
    return lines


def training_images(config: ExperimentConfig, cases: Sequence[Case]) -> dict[tuple[int, str], int]:
    """Images that each site's generator will see, by fold and site; empty for volumes: their slices are not known."""
    if not cases or any(file_ending(case.image) in VOLUME_ENDINGS for case in cases):
        return {}
    counts = {}
    for site in sorted({case.site for case in cases} - set(config.data.test_sites)):
        seed = derive_seed(config.general.seed_base, "folds", site)
        splits = assign_folds([case for case in cases if case.site == site], seed)
        for fold in config.folds:
            with_val = config.generator.train_on == "train_and_val"
            counts[fold, site] = len(splits[fold].train) + (len(splits[fold].val) if with_val else 0)
    return counts


def _published_images(config: ExperimentConfig, sites: Sequence[str]) -> dict[tuple[int, str], int]:
    about = config.data.about
    share = 0.8 if config.generator.train_on == "train_and_val" else 0.6
    equal = about.n_images / max(1, len(sites))
    published = {**about.n_images_of_site, **about.n_slices_of_site}
    counts = {site: round(share * published.get(site, equal)) for site in sites}
    return {(fold, site): count for fold in config.folds for site, count in counts.items() if count}
