"""Generators at equal wall-clock budgets.

    python -m studies.generator_comparison --config-name=demo --generators=stylegan2,ddpm --minutes 8 --out comparison

The command measures how many seconds each generator needs for a thousand images, chooses the length of its training so
that it takes the minutes asked for, and runs the whole experiment with it (``<out>/comparison_<generator>``). A
generator may become slower as it trains (StyleGAN2 does, by its augmentation): one whose minutes were wrong by more
than a tenth is trained once more, at the length that its own training suggests. A table shows the results.
The same command resumes: it reads what was measured and does not repeat finished runs. A site whose gates refuse its
package is a result; a run that fails ends the command with exit code 1 and names its log.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.command import command
from common.exit_codes import ExitCode
from common.files import read_json, write_json, write_text
from common.image_set import load_image_set
from common.seeds import derive_seed
from common.settings import from_dict, to_dict
from engine.dependencies import REPOSITORY
from engine.run_stage import set_threads
from evaluation.report.run import RunFiles, find_folds
from generators.interface import SampleRequest
from generators.registry import find_generator
from memorization.pictures import draw_rows
from pipeline.entry import compose_experiment
from pipeline.stage_factory import ALL
from studies.comparison_tables import NOTES, format_rows
from studies.generator_figures import Place, figures_of, n_samples_of, places_of, read_features
from studies.training_speed import Speed, measure
from training.timing import interleaved_seconds

log = logging.getLogger(__name__)

NAME = "comparison"
N_SHOWN = 8  # samples of a generator and site in the picture
N_TIMED = 32  # images of a round
N_TIMED_ROUNDS = 3
TOLERANCE = 0.1  # of the minutes asked for


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-name", required=True, help="an experiment of config/nnunet")
    parser.add_argument("--generators", type=_names, required=True, help="of config/generator, with commas between")
    parser.add_argument("--minutes", type=float, required=True, help="that a training may take at a site")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the table and the picture")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of speed")
    parser.add_argument("--round-seconds", type=float, default=20.0, help="of its longest training")
    parser.add_argument("--with-real", action="store_true", help="real training images are the picture's first row")
    parser.add_argument("overrides", nargs="*", help="as of run_nnunet.py; of one generator alone: ddpm:key=value")


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> ExitCode:
    """Measure, run, state."""
    _write_lengths(chosen)
    for generator in chosen.generators:
        code, path = _run_for_the_minutes(chosen, generator)
        if code:
            log.error("FAILED %s: exit code %d; log: %s", generator, code, path)
            return ExitCode.STOPPED if code == ExitCode.STOPPED else ExitCode.FAILED
    own_command = shlex.join(["python", "-m", "studies.generator_comparison", *sys.argv[1:]])
    sys.stdout.write("\n".join(_state(chosen, own_command)) + "\n")
    return ExitCode.DONE


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, text.split(","))))


def _overrides(chosen: argparse.Namespace, generator: str) -> list[str]:
    """The user's for all generators and for this one (``ddpm:key=value``), and what the comparison itself sets."""
    prefixes = tuple(f"{name}:" for name in chosen.generators)
    shared = [one for one in chosen.overrides if not one.startswith(prefixes)]
    named = [one.removeprefix(f"{generator}:") for one in chosen.overrides if one.startswith(f"{generator}:")]
    places = (f"general.exp_name={NAME}_{generator}", f"path.logs={chosen.out.absolute()}")
    return [f"generator={generator}", *shared, *named, *places]


def _write_lengths(chosen: argparse.Namespace) -> None:
    """Thousand images for each generator; its speed is measured where ``comparison.json`` does not know it.

    Speeds measured with other overrides are not used; other minutes need no new measurement.
    """
    path = chosen.out / f"{NAME}.json"
    asked = {"config_name": chosen.config_name, "overrides": chosen.overrides}
    known = read_json(path) if path.is_file() else {}
    if any(known.get(key) != value for key, value in asked.items()):
        known = {**asked, "speeds": {}}
    missing = [generator for generator in chosen.generators if generator not in known["speeds"]]
    if missing:
        configs = {name: compose_experiment(chosen.config_name, _overrides(chosen, name)) for name in missing}
        measured = measure(configs, chosen.rounds, chosen.round_seconds)
        known["speeds"] |= {name: to_dict(speed) for name, speed in measured.items()}
    speeds = {name: from_dict(Speed, known["speeds"][name]) for name in chosen.generators}
    if known.get("minutes") != chosen.minutes:
        known = known | {"minutes": chosen.minutes, "kimg": {}, "corrected": []}
    kimg = {name: speed.kimg_in(chosen.minutes) for name, speed in speeds.items()} | known["kimg"]
    for name, speed in speeds.items():
        rate = statistics.median(speed.seconds_per_kimg)
        log.info("%s: %.3g s/kimg, %g kimg in %g minutes", name, rate, kimg[name], chosen.minutes)
    write_json(path, {"corrected": []} | known | {"kimg": kimg})


def _run_for_the_minutes(chosen: argparse.Namespace, generator: str) -> tuple[int, Path]:
    """As ``_run``; twice where the length has to be corrected."""
    kimg = _corrected(chosen, generator)  # by a training that an earlier call of this command finished
    code, path = _run(chosen, generator, kimg)
    again = kimg if code else _corrected(chosen, generator)
    return (code, path) if again == kimg else _run(chosen, generator, again)


def _corrected(chosen: argparse.Namespace, generator: str) -> float:
    """The length in thousand images, corrected once by the minutes that finished trainings of that length took."""
    path = chosen.out / f"{NAME}.json"
    known = read_json(path)
    kimg = float(known["kimg"][generator])
    cards = [place.folder("generator") / "card.json" for place in places_of(chosen.out / f"{NAME}_{generator}")]
    finished = [card for card in (read_json(file) for file in cards if file.is_file()) if card["is_finished"]]
    took = [card["time"]["seconds"] / 60 for card in finished if card["length"]["planned_kimg"] == kimg]
    if not took or generator in known["corrected"]:
        return kimg
    longer = statistics.mean(took) / chosen.minutes
    if abs(longer - 1) <= TOLERANCE:
        return kimg
    corrected = float(f"{kimg / longer:.2g}")
    log.info("%s: %g kimg took %.3g minutes; %g kimg instead", generator, kimg, longer * chosen.minutes, corrected)
    write_json(
        path, known | {"kimg": known["kimg"] | {generator: corrected}, "corrected": [*known["corrected"], generator]}
    )
    return corrected


def _run(chosen: argparse.Namespace, generator: str, kimg: float) -> tuple[int, Path]:
    """The experiment with one generator, in a process of its own: 0, or the exit code of a failure, and its log."""
    script, path = REPOSITORY / "run_nnunet.py", chosen.out / f"{NAME}_{generator}.log"
    overrides = [*_overrides(chosen, generator), f"train.gan.kimg={kimg:g}"]
    log.info("%s: running the experiment, log: %s", generator, path)
    with path.open("a", encoding="utf-8") as stream:
        command = [sys.executable, str(script), f"--config-name={chosen.config_name}", *overrides]
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    run = chosen.out / f"{NAME}_{generator}"
    is_result = code == ExitCode.REFUSED or (code == ExitCode.FAILED and _nothing_shared(run))
    return 0 if is_result else code, path


def _nothing_shared(run: Path) -> bool:
    """Whether in some fold every site's gates refused: then nothing is pooled, and ``merge`` fails."""
    places = places_of(run)
    folds = {place.fold for place in places}
    return any(all(place.failed_gates() for place in places if place.fold == fold) for fold in folds)


def _state(chosen: argparse.Namespace, command: str) -> list[str]:
    """The lines of the page; the page, the picture and all figures are written too."""
    runs = {generator: chosen.out / f"{NAME}_{generator}" for generator in chosen.generators}
    places = {generator: places_of(run) for generator, run in runs.items()}
    config = compose_experiment(chosen.config_name, _overrides(chosen, chosen.generators[0]))
    device = "cuda" if config.cluster.gpus.embed else "cpu"
    n_samples = n_samples_of([place for found in places.values() for place in found])
    rates = _sampling_rates(chosen.out / f"{NAME}.json", places)
    rows = []
    for generator, found in places.items():
        features = {place: read_features(place, n_samples, chosen.out / "embeddings", device) for place in found}
        results = RunFiles(runs[generator], find_folds(runs[generator])).results
        rows += [
            {**row, "n_samples": n_samples, "images_per_s": rates[generator][row["site"]]}
            for row in figures_of(generator, features, results)
        ]
    write_json(chosen.out / f"{NAME}.json", {**read_json(chosen.out / f"{NAME}.json"), "rows": rows})
    draw_rows(chosen.out / f"{NAME}.png", _shown(places, with_real=chosen.with_real))
    lines = _page(rows, command, chosen.minutes)
    write_text(chosen.out / f"{NAME}.md", "\n".join(lines) + "\n")
    return lines


Rates = dict[str, dict[str, list[float]]]
"""Images a second by generator, then by site or ``all``: median, least and largest of the rounds."""


def _sampling_rates(path: Path, places: Mapping[str, Sequence[Place]]) -> Rates:
    """From ``comparison.json`` if it has them for exactly these trainings, else timed now and written there."""
    first = {name: [place for place in found if place.fold == found[0].fold] for name, found in places.items()}
    timed = {name: [place.read("generator", "manifest.json")["digest"] for place in of] for name, of in first.items()}
    known = read_json(path)
    if known.get("timed") != timed:
        known |= {"timed": timed, "images_per_s": _time_sampling(first)}
        write_json(path, known)
    return dict(known["images_per_s"])


def _time_sampling(places: Mapping[str, Sequence[Place]]) -> Rates:
    """In turns, after a round that warms up."""
    set_threads(1)
    seeds = [derive_seed("timed", number) for number in range(N_TIMED)]
    works = {}
    for generator, found in places.items():
        for place in found:
            settings = place.read("generator", "manifest.json")["settings"]
            backend = find_generator(settings.get("adapter", settings["name"]))
            request = SampleRequest(trained=place.folder("generator"), seeds=seeds)
            works[generator, place.site] = partial(backend.sample, request)
    seconds = interleaved_seconds(works, N_TIMED_ROUNDS)
    rates: Rates = {generator: {} for generator in places}
    for generator, of in rates.items():
        per_site = {site: [N_TIMED / s for s in spent] for (name, site), spent in seconds.items() if name == generator}
        per_site[ALL] = [rate for rates_of_site in per_site.values() for rate in rates_of_site]
        of |= {site: [statistics.median(found), min(found), max(found)] for site, found in per_site.items()}
    return rates


def _shown(places: Mapping[str, Sequence[Place]], *, with_real: bool) -> dict[str, np.ndarray]:
    """Rows of the picture: each generator's first samples that passed the filter, site by site, of the first fold."""
    rows = {}
    for site in dict.fromkeys(place.site for found in places.values() for place in found):
        of_site = {name: next(place for place in found if place.site == site) for name, found in places.items()}
        if with_real:
            place = next(iter(of_site.values()))
            rows[f"real, {site}"] = load_image_set(place.folder("slices")).of_split("train").images[:N_SHOWN]
        rows |= {f"{name}, {site}": load_image_set(p.folder("filter")).images[:N_SHOWN] for name, p in of_site.items()}
    return rows


def _page(rows: Sequence[Mapping[str, Any]], command: str, minutes: float) -> list[str]:
    of_site = {row["site"]: row for row in rows}
    counts = [
        f"`{site}`: {row['n_test']} images of {row['n_test_patients']} test patients, {row['n_training']} trained on"
        for site, row in of_site.items()
    ]
    notes = {"n_samples": rows[0]["n_samples"], "n_rounds": N_TIMED_ROUNDS, "n_timed": N_TIMED, "all": ALL}
    return [
        *("# Generators at equal wall-clock budgets", "", f"    {command}", ""),
        f"{minutes:g} minutes of training a site on {rows[0]['machine']}, {os.cpu_count()} cores.",
        *("", *format_rows(rows), "", NOTES.format(counts="; ".join(counts), **notes), ""),
        f"![Samples that passed the filter]({NAME}.png)",
    ]


if __name__ == "__main__":
    sys.exit(main())
