"""Federated rounds on real nnU-Nets: one site is ordinary training, failures leave a site out, a kill loses nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from support.blobs import SPLITS, write_blobs

from common.checkpoints import load_tensors
from common.settings import to_dict
from engine.workers import InlineWorkers, WorkerSpec
from federated.client import Client
from federated.rounds import run_rounds
from federated.settings import RoundSettings
from federated.update import write_update
from nnunetv2_mod import PlanSettings, TrainSettings, adopt_plan, plan_dataset, train
from nnunetv2_mod.plan import with_batch_norm

ROUNDS = 3
SHORT = TrainSettings(n_epochs=ROUNDS, n_iterations=3, n_val_iterations=1)
SEEDS = {"A": 5, "B": 6, "C": 7}


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> dict[str, Path]:
    """Three sites of different sizes; the discs of 2D PNGs of one size give them one and the same plan."""
    folders = {}
    for index, site in enumerate(SEEDS):
        folders[site] = tmp_path_factory.mktemp(f"planned_{site}")
        raw = write_blobs(folders[site] / "raw", seed=index)
        splits = {**SPLITS, "train": SPLITS["train"][: 6 - index]}
        plan_dataset(raw, folders[site], PlanSettings(base_features=4), splits)
    return folders


def specs(planned: dict[str, Path], out: Path, settings: RoundSettings, train_settings=SHORT, factory=None):
    return {
        site: WorkerSpec(
            factory or "federated.client:Client",
            {
                "planned": str(folder),
                "folder": str(out / "sites" / site),
                "train": to_dict(train_settings),
                "rounds": to_dict(settings),
                "seed": SEEDS[site],
                "initial_seed": SEEDS["A"],
                "device": "cpu",
            },
        )
        for site, folder in planned.items()
    }


def federate(planned, out: Path, factory=None, **settings):
    rounds = RoundSettings(**{"rounds": ROUNDS, **settings})
    return run_rounds(InlineWorkers(specs(planned, out, rounds, factory=factory)), out, rounds)


def only(planned, *sites: str):
    return {site: planned[site] for site in sites}


@pytest.fixture(scope="module")
def undisturbed(planned, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    federate(only(planned, "A", "B"), out)
    return out


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_tensors(model / "model.safetensors")[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["average", "keep"])
def test_rounds_of_one_site_are_its_ordinary_training_to_the_bit(planned, tmp_path, optimizer):
    """The same weights, and the same epoch chosen as the best one."""
    train(planned["A"], tmp_path / "alone", SHORT, seed=SEEDS["A"])
    state = federate(only(planned, "A"), tmp_path / "rounds", optimizer=optimizer)
    alone = load_tensors(tmp_path / "alone" / "model" / "model.safetensors")
    federated = load_tensors(tmp_path / "rounds" / "models" / "all" / "model" / "model.safetensors")
    assert equal(federated[0], alone[0])
    assert federated[1] == alone[1]
    curve = [json.loads(line) for line in (tmp_path / "alone" / "curves.jsonl").read_text().splitlines()]
    assert [point["val_dice"] for point in state.curves] == [point["pseudo_dice"] for point in curve]
    smoothed = [point["pseudo_dice_ema"] for point in curve]  # nnU-Net smooths in single precision
    assert [point["val_dice_ema"] for point in state.curves] == pytest.approx(smoothed, abs=1e-6)


def test_the_first_average_is_the_mean_of_what_each_site_would_have_trained(planned, tmp_path):
    """Weighted by training cases: 6 at A, 5 at B."""
    settings = RoundSettings(rounds=ROUNDS)
    clients = {site: spec.build() for site, spec in specs(only(planned, "A", "B"), tmp_path, settings).items()}
    files = {}
    for site, client in clients.items():
        initial = str(tmp_path / f"initial_{site}.safetensors")
        assert client.describe(initial) == {"n_cases": {"A": 6, "B": 5}[site]}
        files[site] = str(tmp_path / f"{site}.safetensors")
        client.train(0, initial, files[site], [])
    trained = {site: load_tensors(Path(file))[0] for site, file in files.items()}
    federate(only(planned, "A", "B"), tmp_path / "out", rounds=1)
    averaged = weights(tmp_path / "out" / "models" / "all" / "model")
    names = [name for name in averaged if name in trained["A"]]
    assert len(names) > 20
    for name in names:
        expected = (6 * trained["A"][name] + 5 * trained["B"][name]) / 11
        torch.testing.assert_close(averaged[name], expected, rtol=1e-5, atol=1e-7)


def test_the_best_round_is_chosen_on_the_average_not_on_the_sites_own_models(planned, undisturbed, tmp_path):
    """D9: the score in the curves is that of the averaged file at each site, recomputed here."""
    point = json.loads((undisturbed / "curves.jsonl").read_text().splitlines()[-1])
    settings = RoundSettings(rounds=ROUNDS)
    slot = json.loads((undisturbed / "hub" / "hub_state.json").read_text())["slot"]
    last = undisturbed / "hub" / f"model_{slot}.safetensors"
    for site, spec in specs(only(planned, "A", "B"), tmp_path, settings).items():
        assert spec.build().validate(ROUNDS, str(last))["val_dice"] == point[f"val_dice_{site}"]
    assert point["val_dice"] == pytest.approx((point["val_dice_A"] + point["val_dice_B"]) / 2)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "keep"}, {"local_norms": True}, {"prox_mu": 0.1}])
def test_a_hub_killed_in_a_round_goes_on_to_the_same_result(planned, tmp_path, settings):
    """SIGKILL while round 2 trains; the process that goes on makes all workers anew."""
    sites = only(planned, "A", "B")
    federate(sites, tmp_path / "whole", **settings)
    process = multiprocessing.get_context("fork").Process(
        target=federate, args=(sites, tmp_path / "cut", f"{__name__}:KillsTheHub"), kwargs=settings
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    done = json.loads((tmp_path / "cut" / "hub" / "hub_state.json").read_text())
    assert done["round_index"] == 1
    federate(sites, tmp_path / "cut", **settings)
    models = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "models").glob("*/model"))
    assert models
    for model in models:
        assert equal(weights(tmp_path / "cut" / model), weights(tmp_path / "whole" / model)), model
    assert (tmp_path / "cut" / "curves.jsonl").read_bytes() == (tmp_path / "whole" / "curves.jsonl").read_bytes()


class KillsTheHub(Client):
    """Kills its process in the middle of round 1 (counted from 0)."""

    def train(self, round_index, model, update, keep_rounds):
        answer = super().train(round_index, model, update, keep_rounds)
        if round_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


class SendsNaN(Client):
    """Site B's weights explode in round 1."""

    def train(self, round_index, model, update, keep_rounds):
        answer = super().train(round_index, model, update, keep_rounds)
        if round_index == 1 and "planned_B" in str(self._planned):
            tensors, metadata = load_tensors(Path(update))
            tensors[sorted(tensors)[0]][..., 0] = float("nan")
            write_update(Path(update), tensors, metadata)
        return answer


class SendsAnotherShape(SendsNaN):
    """Site B sends a network of another shape in round 1."""

    def train(self, round_index, model, update, keep_rounds):
        answer = Client.train(self, round_index, model, update, keep_rounds)
        if round_index == 1 and "planned_B" in str(self._planned):
            tensors, metadata = load_tensors(Path(update))
            name = sorted(tensors)[0]
            write_update(Path(update), {**tensors, name: tensors[name][None]}, metadata)
        return answer


class Fails(Client):
    """Site B's worker fails in round 1."""

    def train(self, round_index, model, update, keep_rounds):
        if round_index == 1 and "planned_B" in str(self._planned):
            raise RuntimeError("the site lost its power")
        return super().train(round_index, model, update, keep_rounds)


@pytest.mark.parametrize(
    ("factory", "why"), [("SendsNaN", "NaN"), ("SendsAnotherShape", "not F32"), ("Fails", "lost its power")]
)
def test_a_round_goes_on_without_a_site_that_cannot_be_used_and_says_so(planned, tmp_path, caplog, factory, why):
    """And the site is back in the next round."""
    state = federate(only(planned, "A", "B"), tmp_path, f"{__name__}:{factory}")
    assert [(item["round"], item["site"]) for item in state.left_out] == [(2, "B")]
    assert why in state.left_out[0]["why"]
    assert "goes on without site B" in caplog.text
    assert "train_loss_B" in state.curves[2]
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "models" / "all" / "model").values())


class AlwaysFails(Client):
    """No site can train."""

    def train(self, round_index, model, update, keep_rounds):
        raise RuntimeError("no power anywhere")


def test_a_round_without_any_site_ends_with_every_sites_reason(planned, tmp_path):
    with pytest.raises(RuntimeError, match=r"A: .*no power anywhere.*B: .*no power anywhere"):
        federate(only(planned, "A", "B"), tmp_path, f"{__name__}:AlwaysFails")


def test_sites_asked_in_another_order_give_the_same_bits(planned, undisturbed, tmp_path):
    federate({site: planned[site] for site in "BA"}, tmp_path)
    assert equal(weights(tmp_path / "models" / "all" / "model"), weights(undisturbed / "models" / "all" / "model"))


def test_fedbn_leaves_the_normalisation_at_each_site(planned, tmp_path):
    federate(planned, tmp_path, local_norms=True, rounds=1)
    models = {site: weights(tmp_path / "models" / site / "model") for site in planned}
    for name in models["A"]:
        shared = all(torch.equal(models["A"][name], models[site][name]) for site in planned)
        assert shared == (".norm." not in name and "all_modules.1" not in name), name


def test_fedbn_keeps_statistics_at_each_site_where_the_network_has_batch_norm(planned, undisturbed, tmp_path):
    """nnU-Net's instance norm has no statistics: FedBN kept 0.3 % of the numbers, and no statistics."""
    assert not any("running_mean" in name for name in weights(undisturbed / "models" / "all" / "model"))
    for site in "AB":
        (description,) = planned[site].glob("raw/**/dataset.json")
        plans = with_batch_norm(json.loads((planned[site] / "plans.json").read_text()))
        adopt_plan(description.parent, plans, tmp_path / site, SPLITS)
    federate({site: tmp_path / site for site in "AB"}, tmp_path / "run", local_norms=True, rounds=1)
    models = {site: weights(tmp_path / "run" / "models" / site / "model") for site in "AB"}
    statistics = [name for name in models["A"] if "running_mean" in name]
    assert statistics and all(not torch.equal(models["A"][name], models["B"][name]) for name in statistics)


def test_fedprox_stays_closer_to_the_common_model(planned, tmp_path):
    """The proximal pull over one round of one site; with mu = 0 it is FedAvg to the bit."""
    moved = {}
    for mu in (0.0, 5.0):
        settings = RoundSettings(rounds=1, prox_mu=mu)
        client = specs(only(planned, "A"), tmp_path / str(mu), settings)["A"].build()
        before, after = tmp_path / f"before{mu}.safetensors", tmp_path / f"after{mu}.safetensors"
        client.describe(str(before))
        client.train(0, str(before), str(after), [])
        first, last = load_tensors(before)[0], load_tensors(after)[0]
        moved[mu] = sum(((last[n] - first[n]) ** 2).sum().item() for n in first if not n.startswith("momentum/"))
    assert 0 < moved[5.0] < 0.9 * moved[0.0]


def test_the_proximal_gradient_is_mu_times_the_distance(planned, tmp_path):
    client = specs(only(planned, "A"), tmp_path, RoundSettings(rounds=1, prox_mu=0.25))["A"].build()
    trainer = client._trainer
    client.describe(str(tmp_path / "m.safetensors"))
    client._take(str(tmp_path / "m.safetensors"), 0)
    _, parameter = next(iter(trainer._network.named_parameters()))
    parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        parameter += 2.0
    trainer._pull()
    torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.5))


def test_a_forgotten_momentum_is_forgotten_in_every_round(planned, tmp_path):
    """Policy "reset" travels with the weights alone, half of "average"."""
    federate(only(planned, "A", "B"), tmp_path / "reset", optimizer="reset")
    federate(only(planned, "A", "B"), tmp_path / "keep", optimizer="keep")
    sizes = {name: json.loads((tmp_path / name / "summary.json").read_text())["bytes_up"] for name in ("reset", "keep")}
    assert sizes["reset"] == sizes["keep"]
    assert not equal(
        weights(tmp_path / "reset" / "models" / "all" / "model"),
        weights(tmp_path / "keep" / "models" / "all" / "model"),
    )
