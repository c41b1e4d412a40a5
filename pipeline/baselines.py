"""The stages of what the experiment is compared with: training in rounds (FedAvg, FedProx, FedBN) and DSL."""

from __future__ import annotations

from collections.abc import Iterator

from common.settings import to_dict
from engine.graph import Stage
from federated.settings import RoundSettings
from pipeline.config import DSL, ExperimentConfig, FederatedConfig
from pipeline.stage_factory import ALL, StageFactory, TrainedModel


def federated_stages(make: StageFactory) -> Iterator[Stage]:
    """What all strategies need of the sites, and their trainings."""
    config = make.config
    in_rounds = [strategy for strategy in config.federated.strategies if strategy != DSL]
    # what each site tells of its images as a whole
    if config.federated.strategies:
        for site in make.sites:
            yield make.stage("statistics", site, {}, {"plan": site})
    # one plan for all sites, from what each tells or (for parity) from pooled real data, and their cases by it
    if in_rounds:
        source = "plan"
        if config.federated.plan_from != "real_all":
            source, settings = "negotiate", {"plan": to_dict(config.plan), "dataset_name": make.dataset_name(ALL)}
            yield make.stage(source, ALL, settings, {f"statistics:{site}": ("statistics", site) for site in make.sites})
        norm = {} if config.federated.norm == "instance" else {"norm": config.federated.norm}
        for site in make.sites:
            yield make.stage("adopt", site, norm, {"prepare": site, "common_plan": (source, ALL)})
    for strategy in in_rounds:
        yield rounds_stage(make, strategy)
    if DSL in config.federated.strategies:
        yield from dsl_stages(make)


def rounds_stage(make: StageFactory, strategy: str) -> Stage:
    """One strategy's training over all sites at once.

    Batches and first weights are drawn by the seeds of the sites' own trainings, so that with one site the result is
    that site's ordinary network.
    """
    rounds = round_settings(make.config.federated, strategy, make.config.train.nnunet_epochs)
    train = make.config.train.segmentation(n_epochs=rounds.rounds * rounds.local_epochs)
    settings = {
        "train": to_dict(train),
        "rounds": to_dict(rounds),
        "seeds": {site: make.seed("segment_real", site) for site in make.sites},
        "initial_seed": make.seed("segment_real", make.sites[0]),
    }
    inputs = {f"adopt:{site}": ("adopt", site) for site in make.sites}
    return make.stage("rounds", ALL, settings, inputs, name=strategy, members=make.sites)


def round_settings(config: FederatedConfig, strategy: str, n_epochs: int) -> RoundSettings:
    """What a strategy's name stands for; as many rounds as give every site the epochs of an ordinary training."""
    deviations = {"fedavg": {}, "fedprox": {"prox_mu": config.prox_mu}, "fedbn": {"local_norms": True}}
    return RoundSettings(
        rounds=config.rounds or max(1, n_epochs // config.local_epochs),
        local_epochs=config.local_epochs,
        weighting=config.weighting,
        optimizer=config.optimizer,
        **deviations[strategy],  # type: ignore[arg-type]
    )


def strategy_in_words(config: ExperimentConfig, strategy: str) -> str:
    """What a strategy will do, for the dry run."""
    if strategy == DSL:
        dsl, n_images = config.federated.dsl, config.federated.dsl_images_per_mask
        length = f"{dsl.n_iterations} iterations" if dsl.n_iterations else f"{dsl.n_epochs} epochs of the largest site"
        return f"{length}, {dsl.batch_size} masks a site and iteration, {n_images} image(s) a mask"
    rounds = round_settings(config.federated, strategy, config.train.nnunet_epochs)
    parts = [f"{rounds.rounds} rounds, each {rounds.local_epochs} x {config.train.nnunet_iterations} iterations a site"]
    parts += [f"weights by {rounds.weighting}", f"momentum: {rounds.optimizer}"]
    parts += [f"mu {rounds.prox_mu:g}"] if rounds.prox_mu else []
    parts += ["normalisation layers stay at the sites"] if rounds.local_norms else []
    return ", ".join(parts)


def federated_models(make: StageFactory) -> Iterator[TrainedModel]:
    """The networks of the strategies: one for all, or one a site where layers stay at the sites."""
    config = make.config.federated
    for strategy in config.strategies:
        if strategy == DSL:
            yield TrainedModel("dsl-all", ALL, ("segment_dsl", ALL))
            continue
        per_site = round_settings(config, strategy, make.config.train.nnunet_epochs).local_norms
        for name in make.sites if per_site else (ALL,):
            yield TrainedModel(f"{strategy}-{name}", name, (strategy, ALL), f"models/{name}/model")


def dsl_stages(make: StageFactory) -> Iterator[Stage]:
    """DSL's generator, its synthetic dataset, and nnU-Net trained on that as every other row of the table is (D10)."""
    config = make.config
    settings = {"dsl": to_dict(config.federated.dsl), "seeds": {site: make.seed("dsl", site) for site in make.sites}}
    of_sites = {f"{name}:{site}": (name, site) for site in make.sites for name in ("prepare", "plan")}
    slices = {f"slices:{site}": ("slices", site) for site in make.sites}
    yield make.stage("dsl", ALL, settings, {**slices, **of_sites}, members=make.sites, hub_works=True)
    dataset = {
        "plan": to_dict(config.plan),
        "dataset_name": make.dataset_name(DSL),
        "sites": list(make.sites),
        "images_per_mask": config.federated.dsl_images_per_mask,
        "min_slice_distance_mm": config.data.min_slice_distance_mm,
        "stack_size": config.label.stack_size,
        "validation_fraction": config.merge.validation_fraction,
        "max_validation_images": config.merge.max_validation_images,
    }
    told = {f"statistics:{site}": ("statistics", site) for site in make.sites}
    yield make.stage("dsl_dataset", ALL, dataset, {"dsl": ALL, **told})
    train = {"train": to_dict(config.train.segmentation())}
    yield make.stage("segment_dsl", ALL, train, {"plan": ("dsl_dataset", ALL)})
