"""The stage graph: controls of equal length, repeated seeds, sites that are only tested."""

from __future__ import annotations

import dataclasses

import pytest
from support.tiny_experiment import composed

from common.errors import InputError
from pipeline.experiment import build_graph
from pipeline.skip import skipped_stages


def graph(*overrides: str, sites=("A", "B")):
    return build_graph(composed("nnunet/demo", *overrides), sites)


def test_real_images_alone_are_trained_on_as_long_as_autoshare_in_all():
    """D14 and the paper's own comparison: syn-real-X trains twice as long as real-X."""
    stages = graph("train.nnunet_epochs=10", "train.nnunet_epochs_finetune=4").stages
    lengths = {site: stages[f"fold_0/segment_long/{site}"].settings["train"]["n_epochs"] for site in ("A", "B", "all")}
    assert lengths == dict.fromkeys(lengths, 14)
    assert "fold_0/evaluate/B/real-long-A" in stages and "fold_0/evaluate/A/real-long-all" in stages
    without = graph("evaluation.real_long=false").stages
    assert not any("long" in stage_id for stage_id in without) and len(without) == len(stages) - 9


def test_further_seeds_repeat_the_networks_and_nothing_else():
    once, thrice = graph().stages, graph("general.n_seeds=3").stages
    assert {stage_id: stage for stage_id, stage in thrice.items() if stage_id in once} == once  # nothing is lost
    new = {stage_id.split("/")[1] for stage_id in thrice.keys() - once.keys()}
    repeated = ("segment_real", "segment_long", "segment_syn", "finetune", "evaluate")
    assert new == {f"{name}.seed{seed}" for name in repeated for seed in (1, 2)}
    tuned = thrice["fold_0/finetune.seed2/A"]
    assert tuned.inputs["segment_syn"] == "fold_0/segment_syn.seed2/all"  # the pretraining is another one too
    assert tuned.inputs["prepare"] == "fold_0/prepare/A" and tuned.seed != once["fold_0/finetune/A"].seed
    assert thrice["fold_0/evaluate.seed2/A/syn-real-A"].settings["seed"] == 2


def test_a_skipped_network_is_skipped_with_every_seed():
    chosen = {"syn-real": {"A": {"applied_unet_from_syn_pretrain": True}}}
    skipped = skipped_stages(chosen, graph("general.n_seeds=2"))
    assert skipped == {"fold_0/finetune/A", "fold_0/finetune.seed1/A"}


def test_a_site_that_is_only_tested_trains_shares_and_pools_nothing():
    config = composed("nnunet/demo", "data.test_sites=[C]")
    stages = build_graph(config, ("A", "B")).stages
    of_c = {stage_id for stage_id, stage in stages.items() if stage.site == "C"}
    assert {stage_id.split("/")[1] for stage_id in of_c} == {"prepare", "evaluate"}
    assert stages["fold_0/prepare/C"].settings["is_only_tested"] and stages["fold_0/prepare/C"].private_to == "C"
    readers = {stage.name for stage in stages.values() if "fold_0/prepare/C" in stage.inputs.values()}
    assert readers == {"evaluate"}
    assert "is_only_tested" not in stages["fold_0/prepare/A"].settings
    with_c = dataclasses.replace(config, data=dataclasses.replace(config.data, test_sites=()))
    assert len(of_c) == 10 and "fold_0/generator/C" in build_graph(with_c, ("A", "B", "C")).stages


def test_two_models_of_one_name_are_refused():
    with pytest.raises(InputError, match="two stages have the same name"):
        graph(sites=("A", "long-A"))


def test_a_second_attempt_is_asked_of_every_network_or_of_none():
    """Without the option no stage's settings change: finished trainings stay."""
    assert not any("retry_failed" in stage.settings for stage in graph().stages.values())
    asked = {
        stage.name for stage in graph("train.retry_failed=true").stages.values() if "retry_failed" in stage.settings
    }
    assert asked == {"segment_real", "segment_long", "segment_syn", "finetune"}


def test_subgroups_touch_no_training():
    once, divided = graph().stages, graph("data.subgroup_columns=[site]").stages
    assert {stage_id: stage for stage_id, stage in divided.items() if stage_id in once} == once
    assert divided.keys() - once.keys() == {"fold_0/subgroups/A", "fold_0/subgroups/B"}
