"""The hub: rounds of local training and averaging over live workers, resumed at the round in which it was killed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from common.files import read_json, write_json, write_text
from common.progress import Progress, silent
from common.settings import from_dict, to_dict
from engine.workers import Failure, Workers
from federated.average import average_updates
from federated.settings import RoundSettings, weights_of
from federated.update import Layout, open_update, overwrite_update

log = logging.getLogger(__name__)

EMA_KEPT, EMA_NEW = 0.9, 0.1  # nnU-Net's, over the validation of its epochs
STATE = "hub_state.json"


@dataclass(frozen=True)
class HubState:
    """All that the hub knows after ``round_index`` rounds; written last, so that a killed round is done again whole."""

    round_index: int = 0
    n_cases: Mapping[str, int] = field(default_factory=dict)
    ema: float | None = None
    best_ema: float | None = None
    best_round: int = 0
    slot: int = 0  # of the last model's file
    best_slot: int = 0
    left_out: tuple[Mapping[str, Any], ...] = ()
    curves: tuple[Mapping[str, Any], ...] = ()
    overhead_s: float = 0.0
    seconds: float = 0.0


def run_rounds(workers: Workers, out: Path, settings: RoundSettings, progress: Progress = silent) -> HubState:
    """Train in rounds and leave ``out/models/<site>/model`` (one for all under ``all`` unless sites keep tensors).

    Each round: every site trains from the common model and sends a file; the hub averages the files; every site
    validates the **average**; the round with the best smoothed mean over sites is the result (the original chose by
    the sites' own models before averaging, D9). A site that fails, dies or sends what cannot be used is left out of
    that round, which is said in the log, the curves and ``summary.json``; it is asked again in the next.

    Raises:
        RuntimeError, InputError: no site could take part in a round.
    """
    hub = out / "hub"
    hub.mkdir(parents=True, exist_ok=True)
    state = from_dict(HubState, read_json(hub / STATE)) if (hub / STATE).is_file() else HubState()
    if state.round_index == 0:
        state = _begin(workers, hub)
    layout = open_update(_model(hub, state.slot)).layout
    floats = torch.empty(layout.n_floats)  # one result for all rounds
    while state.round_index < settings.rounds:
        state = _one_round(workers, hub, settings, layout, state, floats)
        write_json(hub / STATE, to_dict(state))
        progress(state.round_index, settings.rounds, "rounds")
    _export(workers, out, settings, state)
    write_text(out / "curves.jsonl", "".join(_curve_line(point) for point in state.curves))
    write_json(out / "summary.json", summary(state, settings, layout))
    for site in workers.sites:
        _update(hub, site).unlink(missing_ok=True)
    waited = f"{state.overhead_s:.1f} s of it neither training nor validation"
    log.info("%d rounds in %.0f s, %s", state.round_index, state.seconds, waited)
    return state


def summary(state: HubState, settings: RoundSettings, layout: Layout) -> dict[str, Any]:
    """What is worth knowing of a finished training; bytes per site and round."""
    weights = weights_of(state.n_cases, settings.weighting)
    total = sum(weights.values())
    return {
        "rounds": settings.rounds,
        "local_epochs": settings.local_epochs,
        "optimizer": settings.optimizer,
        "prox_mu": settings.prox_mu,
        "local_norms": settings.local_norms,
        "best_round": state.best_round,
        "weights": {site: weight / total for site, weight in weights.items()},
        "left_out": list(state.left_out),
        "bytes_up": layout.n_bytes,
        "bytes_down": layout.n_bytes,
    }


def _curve_line(point: Mapping[str, Any]) -> str:
    first = {key: point[key] for key in ("step", "unit")}
    return json.dumps(first | {key: point[key] for key in sorted(set(point) - set(first))}) + "\n"


def _model(hub: Path, slot: int) -> Path:
    """Three files are enough: the last model, the best one, and the one that is being written."""
    return hub / f"model_{slot}.safetensors"


def _begin(workers: Workers, hub: Path) -> HubState:
    """Every site draws the same first weights; the first site's file becomes the common model of round 0."""
    answers = ask_to_begin(workers, "describe", {site: {"initial": str(_update(hub, site))} for site in workers.sites})
    _update(hub, workers.sites[0]).replace(_model(hub, 0))
    return HubState(n_cases={site: answer["n_cases"] for site, answer in answers.items()})


def ask_to_begin(workers: Workers, method: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The answers of all sites; RuntimeError where one has none, with every such site's reason."""
    answers = workers.ask(method, arguments)
    failed = {site: answer.problem for site, answer in answers.items() if isinstance(answer, Failure)}
    if failed:
        reasons = "; ".join(f"{site}: {problem}" for site, problem in sorted(failed.items()))
        raise RuntimeError(f"sites could not begin: {reasons}")
    return answers


def _update(hub: Path, site: str) -> Path:
    return hub / f"update_{site}.safetensors"


def _one_round(
    workers: Workers, hub: Path, settings: RoundSettings, layout: Layout, state: HubState, floats: torch.Tensor
) -> HubState:
    """One round of FedAvg (McMahan et al. 2017, algorithm 1); only file names and plain numbers pass between them."""
    started = time.monotonic()
    index, model = state.round_index, str(_model(hub, state.slot))
    (slot, *_) = sorted({0, 1, 2} - {state.slot, state.best_slot})

    # every site reads the common model, trains its local epochs and sends all its tensors in one file
    common = {"round_index": index, "model": model, "keep_rounds": [index, state.best_round]}
    trained = workers.ask("train", {site: {**common, "update": str(_update(hub, site))} for site in workers.sites})
    left_out = {site: answer.problem for site, answer in trained.items() if isinstance(answer, Failure)}
    paths = {site: _update(hub, site) for site in workers.sites if site not in left_out}
    if not paths:
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted(left_out.items()))
        raise RuntimeError(f"no site could train in round {index + 1}: {reasons}")

    # the hub averages the files, weighted by cases, over a file that the state does not name: a cut-off loses nothing
    average = average_updates(paths, weights_of(state.n_cases, settings.weighting), layout, floats)
    left_out |= average.left_out
    overwrite_update(_model(hub, slot), layout.named(average.integers, average.floats), {})

    # every site validates the average
    asked = {"round_index": index + 1, "model": str(_model(hub, slot))}
    validated = workers.ask("validate", dict.fromkeys(workers.sites, asked))
    for site, answer in validated.items():
        if isinstance(answer, Failure):
            left_out[site] = f"{left_out.get(site, '')} validation: {answer.problem}".strip()
    for site in sorted(left_out):
        log.warning("round %d goes on without site %s: %s", index + 1, site, left_out[site])
    return _after(state, slot, trained, validated, left_out, time.monotonic() - started)


def _after(
    state: HubState,
    slot: int,
    trained: Mapping[str, Any],
    validated: Mapping[str, Any],
    left_out: Mapping[str, str],
    seconds: float,
) -> HubState:
    """The state after a round: smoothed validation as nnU-Net smooths its own, the best round, a line of the curves."""
    index = state.round_index + 1
    trained = {site: answer for site, answer in trained.items() if not isinstance(answer, Failure)}
    validated = {site: answer for site, answer in validated.items() if not isinstance(answer, Failure)}
    defined = [answer["val_dice"] for answer in validated.values() if not math.isnan(answer["val_dice"])]
    val_dice = sum(defined) / len(defined) if defined else math.nan
    ema = state.ema
    if defined:
        ema = val_dice if ema is None else ema * EMA_KEPT + EMA_NEW * val_dice
    is_best = state.best_ema is None or (ema is not None and ema > state.best_ema)
    point = {
        "step": index,
        "unit": "round",
        "train_loss": sum(answer["train_loss"] for answer in trained.values()) / len(trained),
        "val_dice": val_dice,
        "val_dice_ema": math.nan if ema is None else ema,
        **{f"train_loss_{site}": answer["train_loss"] for site, answer in sorted(trained.items())},
        **{f"val_dice_{site}": answer["val_dice"] for site, answer in sorted(validated.items())},
    }
    busy_s = max((answer["train_s"] for answer in trained.values()), default=0.0)
    busy_s += max((answer["validate_s"] for answer in validated.values()), default=0.0)
    missing = tuple({"round": index, "site": site, "why": left_out[site]} for site in sorted(left_out))
    return replace(
        state,
        round_index=index,
        ema=ema,
        best_ema=ema if is_best else state.best_ema,
        best_round=index if is_best else state.best_round,
        slot=slot,
        best_slot=slot if is_best else state.best_slot,
        left_out=(*state.left_out, *missing),
        curves=(*state.curves, point),
        overhead_s=state.overhead_s + seconds - busy_s,
        seconds=state.seconds + seconds,
    )


def _export(workers: Workers, out: Path, settings: RoundSettings, state: HubState) -> None:
    """One model a site where tensors stay there, else one for all, written by the first site that can.

    Raises:
        RuntimeError: a site could not write its model, or none could write the common one.
    """
    problems: dict[str, str] = {}
    for site in workers.sites:
        name = site if settings.local_norms else "all"
        asked = {
            "round_index": state.best_round,
            "model": str(_model(out / "hub", state.best_slot)),
            "out": str(out / "models" / name / "model"),
        }
        answer = workers.ask("export", {site: asked})[site]
        if isinstance(answer, Failure):
            problems[site] = answer.problem
        elif not settings.local_norms:
            return
    if problems:
        raise RuntimeError("; ".join(f"{site} could not write its model: {why}" for site, why in problems.items()))
