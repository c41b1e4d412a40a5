"""Baselines and scaling as experiments: one site is ordinary training, kills lose nothing, Ray equals inline."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.tiny_experiment import deterministic, manifests, run_command, run_tiny

from common.checkpoints import load_tensors
from engine.graph import Graph, Resources, Stage, within
from engine.run_plan import plan_run
from engine.store import Store
from pipeline.config import ExperimentConfig, FederatedConfig
from pipeline.experiment import build_graph
from pipeline.unions import ScalingConfig

NAME = "general.exp_name=tiny_federated"
STRATEGIES = "federated.strategies=[fedavg,fedbn]"


def federate(*overrides: str, cwd: Path):
    return run_tiny(NAME, STRATEGIES, *overrides, cwd=cwd, script="run_federated.py")


@pytest.fixture(scope="module")
def federated_run(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("federated")
    ended = federate(cwd=cwd)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return cwd / "runs" / "tiny_federated"


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_tensors(model / "model.safetensors")[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_every_approach_is_in_one_table(federated_run):
    with (federated_run / "fold_0" / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    models = {row["model"] for row in rows}
    assert models == {"real-A", "real-B", "real-all", "fedavg-all", "fedbn-A", "fedbn-B"}
    assert {(row["model"], row["tested_on"]) for row in rows} == {(m, site) for m in models for site in "AB"}


def test_federated_training_of_one_site_is_that_sites_own_training(tmp_path):
    """The common plan, the batches and the weights: the two networks are equal to the bit."""
    ended = federate("data.sites=[A]", "federated.strategies=[fedavg]", "evaluation.real_all=false", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    fold = tmp_path / "runs" / "tiny_federated" / "fold_0"
    own = json.loads((fold / "plan/A/plans.json").read_text())
    common = json.loads((fold / "adopt/A/plans.json").read_text())
    assert own["configurations"] == common["configurations"]
    assert same(weights(fold / "fedavg/all/models/all/model"), weights(fold / "segment_real/A/model"))


def test_what_a_site_tells_for_the_plan_names_no_case(federated_run):
    statistics = json.loads((federated_run / "fold_0/statistics/A/statistics.json").read_text())
    assert set(statistics) == {
        *("n_cases", "median_shape", "median_spacing_mm", "fine_spacing_mm", "intensities", "dataset_json"),
        *("relative_size_after_cropping", "image_reader_writer"),
    }
    assert len(statistics["median_shape"]) == 3
    assert "min" not in statistics["intensities"]["0"] and "max" not in statistics["intensities"]["0"]


def test_a_killed_driver_resumes_in_its_round_with_the_same_result(federated_run, tmp_path):
    """SIGKILL once a round is over; the same command goes on and ends with the same manifests."""
    process = subprocess.Popen(
        run_command(NAME, STRATEGIES, cwd=tmp_path, script="run_federated.py"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "runs" / "tiny_federated"
    state = run / "fold_0/fedavg/all/hub/hub_state.json"
    give_up = time.monotonic() + 900
    while not state.is_file() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_in_round = json.loads(state.read_text())["round_index"]
    assert killed_in_round < 3 and not (state.parent.parent / "manifest.json").exists()
    ended = federate(cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    resumed, whole = manifests(run), manifests(federated_run)
    assert {name: deterministic(m) for name, m in resumed.items()} == {n: deterministic(m) for n, m in whole.items()}


@pytest.mark.slow  # two minutes; the next test has its sites as Ray processes too
def test_workers_on_the_nodes_of_their_sites_give_the_same_files(federated_run, two_nodes, tmp_path):
    ray = ("cluster=local", "cluster.pin_sites=true", f"general.ray_address={two_nodes}")
    ray += ("federated.strategies=[fedavg]", "evaluation.real_all=false")
    ended = federate(*ray, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    on_ray, inline = manifests(tmp_path / "runs" / "tiny_federated"), manifests(federated_run)
    assert "fold_0/fedavg/all/manifest.json" in on_ray
    assert {name: m["files"] for name, m in on_ray.items()} == {name: inline[name]["files"] for name in on_ray}


def test_a_site_whose_process_is_killed_is_left_out_of_that_round_and_comes_back(tmp_path):
    """SIGKILL of one site's Ray process in the middle of a round; the run ends well and says what happened."""
    process = subprocess.Popen(
        run_command(
            *(NAME, "federated.strategies=[fedavg]", "evaluation.real_all=false", "cluster=local", "cluster.n_cpus=2"),
            *("train.nnunet_epochs=6", "train.nnunet_iterations=20"),
            cwd=tmp_path,
            script="run_federated.py",
        ),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    stage = tmp_path / "runs/tiny_federated/fold_0/fedavg/all"
    state = stage / "hub/hub_state.json"
    give_up = time.monotonic() + 900
    while not state.is_file() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    if state.is_file():
        os.kill(_pid_of_a_site(), signal.SIGKILL)
    else:  # what it said is the only hint there is
        process.terminate()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    left_out = json.loads((stage / "summary.json").read_text())["left_out"]
    assert len(left_out) == 1 and "died" in left_out[0]["why"]
    points = [json.loads(line) for line in (stage / "curves.jsonl").read_text().splitlines()]
    assert len(points) == 6 and f"train_loss_{left_out[0]['site']}" in points[-1]


def _pid_of_a_site() -> int:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"SiteProcess" in command.read_bytes():
                found.append(int(command.parent.name))
        except OSError:
            continue
    assert found
    return min(found)


def config(*strategies: str, unions: tuple = ()) -> ExperimentConfig:
    return ExperimentConfig(federated=FederatedConfig(strategies=strategies), scaling=ScalingConfig(unions=unions))


def test_a_scaling_study_repeats_nothing_that_the_main_experiment_did(tmp_path):
    """The same stages with the same digests, and the new unions beside them."""
    sites = tuple("ABCDEFGH")
    main, scaling = build_graph(config(), sites), build_graph(config(unions=(2, 4, 8)), sites)
    keys = [plan_run(graph, Store(tmp_path), {}).keys for graph in (main, scaling)]
    before, after = ({name: key.digest for name, key in of.items()} for of in keys)
    assert before.items() <= after.items()
    added = {stage_id for stage_id in set(after) - set(before) if "evaluate" not in stage_id}
    unions = {f"fold_0/{name}/{union}" for name in ("merge", "segment_syn") for union in "24"}
    assert added == unions | {f"fold_0/finetune_{union}/{site}" for union in "24" for site in sites}


def test_the_scaling_study_evaluates_only_what_it_trains():
    """D17: the original trained for days and failed in its last stage, on networks that nobody had trained."""
    graph = build_graph(config(unions=(2, ("C", "A"))), tuple("ABCD"))
    evaluated = {stage.inputs["model"] for stage in graph.stages.values() if stage.name == "evaluate"}
    assert "fold_0/finetune_[C+A]/D" in evaluated and "fold_0/segment_syn/2" in evaluated
    assert {stage.part for stage in graph.stages.values()} >= {"syn2-real-C", "syn[C+A]-real-B", "syn-[C+A]"}


def test_a_federated_stage_reads_nothing_but_the_sites_prepared_cases():
    graph = build_graph(config("fedavg", "fedprox", "fedbn"), ("A", "B", "C"))
    for name in ("fedavg", "fedprox", "fedbn"):
        stage = graph.stages[f"fold_0/{name}/all"]
        assert set(stage.inputs.values()) == {f"fold_0/adopt/{site}" for site in "ABC"}
        assert stage.members == ("A", "B", "C")
    negotiate = graph.stages["fold_0/negotiate/all"]
    assert set(negotiate.inputs.values()) == {f"fold_0/statistics/{site}" for site in "ABC"}


@pytest.mark.parametrize(
    ("n_sites", "asked", "there", "each"),
    [
        (2, 1.0, 2.0, 1.0),
        (3, 1.0, 2.0, 0.5),
        (8, 1.0, 4.0, 0.5),
        (8, 4.0, 16.0, 2.0),
        (3, 0.5, 1.0, 0.25),
        (2, 0.0, 0.0, 0.0),
    ],
)
def test_workers_of_more_sites_than_devices_share_them_evenly(n_sites, asked, there, each):
    """Ray cannot place 0.67 GPU three times on two GPUs: the share must fit whole devices."""
    members = tuple(str(i) for i in range(n_sites))
    stage = Stage("rounds", 0, "all", "f", {}, {}, resources=Resources(1.0, asked * n_sites), members=members)
    (fitted,) = within(Graph({stage.id: stage}), Resources(64.0, there)).stages.values()
    assert fitted.worker_resources.gpus == pytest.approx(each)
    assert fitted.resources.gpus <= there


def test_no_gpu_at_all_is_still_an_error():
    """The share of nothing is not nothing: training must not fall back to the CPU in silence."""
    stage = Stage("rounds", 0, "all", "f", {}, {}, resources=Resources(2.0, 2.0), members=("A", "B"))
    (fitted,) = within(Graph({stage.id: stage}), Resources(4.0, 0.0)).stages.values()
    assert fitted.resources.gpus == 2.0


def test_a_hub_that_computes_has_a_share_of_its_own():
    """DSL's generator lives at the hub: without a GPU of its own it could not be where the discriminators' are."""
    graph = build_graph(config("fedavg", "dsl"), ("A", "B", "C"))
    dsl, fedavg = graph.stages["fold_0/dsl/all"], graph.stages["fold_0/fedavg/all"]
    assert dsl.own_resources == dsl.worker_resources and dsl.resources.cpus == 4.0
    assert fedavg.own_resources == Resources(0.0, 0.0) and fedavg.resources.cpus == 3.0
