"""Generators at equal budgets: lengths from speeds, what is read of a run, the table; samplers beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.diffusion_models import tiny_settings
from support.image_makers import PixelEmbedder
from support.packages import write_refused
from support.paths import REPOSITORY
from support.tiny_experiment import TINY

from common.errors import InputError
from common.files import read_json, write_json
from common.image_set import ImageEntry, ImageSet, load_image_set, save_image_set
from common.progress import silent
from common.resampling import clopper_pearson
from diffusion.data import ImageData
from diffusion.training_run import train
from evaluation.results import COLUMNS
from features.fidelity import frechet_distance
from features.fidelity_comparison import ComparedSets, compare_frechet
from features.fidelity_monitor import FidelityMonitor
from memorization.pictures import draw_rows
from pipeline.stages.slices import slices
from studies import generator_comparison, sampler_study
from studies.comparison_tables import HEADER, format_rows
from studies.generator_comparison import NAME, main
from studies.generator_figures import Features, Place, figures_of, n_samples_of, nearest_ratio, places_of
from studies.heldout_images import images_of_split
from studies.training_speed import Speed
from training.monitor import NEAREST_TRAIN

N_SAMPLES = {"A": 12, "B": 10}
SPLITS = {"train": [0, 1, 2], "val": [3], "test": [4, 5]}


def features(n: int, seed: int, shift: float = 0.0, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def sides(n_a: int, seed: int = 0, shift: float = 1.0) -> ComparedSets:
    return ComparedSets(features(n_a, seed, shift), features(4, seed + 1), features(5, seed + 2), list("ppqrs"))


def test_the_length_follows_from_the_budget_in_two_digits() -> None:
    speed = Speed((30.0, 20.0, 10.0), (10.0,), 0.03)
    assert speed.kimg_in(8) == 23.0  # (480 - 10) / (20 * 1.03) = 22.8
    assert Speed((300.0,), (-2.0,), 0.1).kimg_in(8) == 1.5
    with pytest.raises(InputError, match="beside its steps"):
        speed.kimg_in(0.1)


def test_the_larger_set_counts_in_parts_as_large_as_the_smaller() -> None:
    site = sides(9)
    found = compare_frechet([[site]], 0)
    parts = [frechet_distance(site.a[start : start + 4], site.references) for start in (0, 4)]
    real = frechet_distance(site.b, site.references)
    assert found.a.value == pytest.approx(np.mean(parts)) and found.b.value == pytest.approx(real)
    assert found.ratio.value == pytest.approx(np.mean(parts) / real)
    for estimate in (found.a, found.b, found.ratio):
        assert estimate.low < estimate.value < estimate.high


def test_every_part_has_images_of_every_site() -> None:
    """Of sites with another mean each, parts of one site alone would lie far from the pool."""
    one, other = sides(8), sides(8, 9, shift=30.0)
    parts = [np.concatenate([site.a[start : start + 4] for site in (one, other)]) for start in (0, 4)]
    references = np.concatenate([one.references, other.references])
    expected = np.mean([frechet_distance(part, references) for part in parts])
    assert compare_frechet([[one, other]], 0).a.value == pytest.approx(expected)
    folds = compare_frechet([[one], [other]], 0).a.value
    assert folds == pytest.approx(np.mean([compare_frechet([[site]], 0).a.value for site in (one, other)]))


def test_a_pair_with_itself_has_the_ratio_1_without_doubt() -> None:
    same = features(8, 0)
    ratio = compare_frechet([[ComparedSets(same, same, features(5, 1), list("ppqrs"))]], 0, is_paired=True).ratio
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_the_nearest_ratio_is_that_of_the_gauge() -> None:
    rng = np.random.default_rng(0)
    real, samples = rng.integers(0, 255, (22, 1, 8, 8), np.uint8), rng.integers(0, 255, (9, 1, 8, 8), np.uint8)
    entries = [ImageEntry(f"i{i}", patient=f"p{i}") for i in range(len(real))]
    training, validation = (ImageSet(real[part], tuple(entries[part])) for part in (slice(12), slice(12, None)))
    gauge = FidelityMonitor(training, validation, 1, mirrored=True)
    gauge._embedder = PixelEmbedder()
    embedded = [gauge.embed(x) for x in (samples, training.images, training.images[..., ::-1], validation.images)]
    patients = tuple(entry.patient for entry in validation.entries)
    value, low, high = nearest_ratio([Features(*embedded, patients, embedded[3][:2], patients[:2])], 0)
    assert value == pytest.approx(gauge.measure(samples, gauge.n_references)[NEAREST_TRAIN])
    assert low < value < high


PLANS = {
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "patch_size": [16, 16],
            "median_image_size_in_voxels": [16, 16],
            "spacing": [999.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "batch_size": 2,
            "pool_op_kernel_sizes": [[1, 1], [2, 2]],
            "conv_kernel_sizes": [[3, 3], [3, 3]],
        }
    },
}


def write_site(fold: Path, site: str, seed: int, dtype: type = np.uint8) -> None:
    """What the stages of a site leave, as far as it is read: six patients' images that are larger than the plan's."""
    place, rng = Place(fold, site), np.random.default_rng(seed)
    dataset = place.folder("prepare") / "raw" / "Dataset100_x"
    for split, numbers in SPLITS.items():
        for number in numbers:
            file = dataset / ("imagesTs" if split == "test" else "imagesTr") / f"{site}{number}_0000.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(1, 255, (20 + 2 * number, 24)).astype(dtype) * (200 if dtype is np.uint16 else 1)
            Image.fromarray(pixels).save(file)
    cases = {split: [f"{site}{number}" for number in numbers] for split, numbers in SPLITS.items()}
    write_json(dataset.parent / "splits.json", cases)
    write_json(dataset.parent / "patients.json", {case: f"p{case[1:]}" for of in cases.values() for case in of})
    write_json(dataset / "dataset.json", {"file_ending": ".png"})
    write_json(place.folder("plan") / "plans.json", PLANS)
    context = SimpleNamespace(
        inputs={"plan": place.folder("plan"), "prepare": place.folder("prepare")},
        stage=SimpleNamespace(settings={"min_slice_distance_mm": 4.0}),
        out=place.folder("slices"),
        progress=silent,
    )
    slices(context)  # type: ignore[arg-type]
    n_samples = N_SAMPLES[site]
    images = rng.integers(0, 255, (n_samples, 1, 16, 16)).astype(dtype)
    samples = ImageSet(images, tuple(ImageEntry(f"s{i}", seed=i) for i in range(n_samples)))
    save_image_set(place.folder("sample"), samples)
    save_image_set(place.folder("filter"), samples.subset(range(n_samples - 1)))
    write_json(place.folder("filter") / "filter.json", {"n_sampled": n_samples, "n_dropped": 1})
    settings = {"name": "ddpm", "settings": {"mirror": False}, "train_on": "train"}
    write_json(place.folder("generator") / "manifest.json", {"settings": settings, "digest": f"of {site}"})
    card = {"time": {"seconds": 60.0 * (seed + 1), "machine": "CPU"}, "length": {"kimg": 2.0}}
    write_json(place.folder("generator") / "card.json", card)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two sites; that of B was refused."""
    folder = tmp_path_factory.mktemp("run")
    for seed, site in enumerate("AB"):
        write_site(folder / "fold_0", site, seed)
    write_refused(folder / "fold_0" / "share" / "B")
    return folder


def results_of(*models: str) -> pd.DataFrame:
    """Four cases of as many patients a site; syn-real is better by 0.1 in each."""
    rows = []
    for model in models:
        for site in "AB":
            for case in range(4):
                dice = 0.9 + 0.1 * (case % 2) + 0.1 * (model == "syn-real")
                rows.append((f"{model}-{site}", site, site, 0, 0, f"p{case}", f"{site}{case}", "lung", dice))
    return pd.DataFrame(rows, columns=list(COLUMNS[:9]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_held_out_images_are_made_as_the_slices_are(dtype: type, tmp_path: Path) -> None:
    """The training images, made this way, are the generator's own to the last bit, shrunk, windowed and padded."""
    write_site(tmp_path, "A", 0, dtype)
    stored = load_image_set(tmp_path / "slices" / "A")
    assert stored.info.scale < 1
    for split in ("train", "val"):
        made = images_of_split(tmp_path, "A", split)
        assert np.array_equal(made.images, stored.of_split(split).images) and made.images.dtype == dtype
    test = images_of_split(tmp_path, "A", "test")
    assert [entry.patient for entry in test.entries] == ["p4", "p5"] and len(np.unique(test.images)) > 50


def test_what_a_run_says_of_its_generator(run: Path) -> None:
    places = places_of(run)
    assert [place.site for place in places] == ["A", "B"] and n_samples_of(places) == 10
    known = {
        place: Features(
            features(10, i), features(3, i), None, features(3, 9), ("v", "t", "u"), features(2, 8), ("t", "u")
        )
        for i, place in enumerate(places)
    }
    both, own, other = figures_of("ddpm", known, results_of("syn-real", "real"))
    assert [row["site"] for row in (both, own, other)] == ["all", "A", "B"]
    assert [row["minutes"] for row in (both, own, other)] == [1.5, 1.0, 2.0]
    assert both["copies"] == [2 / 22, *clopper_pearson(2, 22)] and own["copies"][0] == 1 / 12
    assert both["dice"][0] == pytest.approx(1.05) and both["dice_real"][0] == pytest.approx(0.95)
    assert both["dice_gain"] == pytest.approx([0.1, 0.1, 0.1])
    assert both["failed_gates"] == {"B": ["C_T"]} and own["failed_gates"] == {}
    assert (both["n_test"], both["n_test_patients"], both["n_training"]) == (4, 4, 6)
    alone = figures_of("ddpm", known, results_of("real"))[0]
    assert alone["dice"] is None and alone["dice_gain"] is None and alone["dice_real"][0] == pytest.approx(0.95)
    assert figures_of("ddpm", known, None)[0]["dice_real"] is None
    table = format_rows([{**row, "images_per_s": [3.0, 2.0, 4.0]} for row in (both, own, alone)])
    assert {line.count(" | ") for line in table} == {len(HEADER) - 1}
    assert "B refused: C_T" in table[2] and table[3].endswith("none refused |") and " | - | 95.0 [" in table[4]


def test_the_picture_takes_sites_of_several_sizes_and_few_images(tmp_path: Path) -> None:
    rows = {"a": np.zeros((8, 1, 16, 12), np.uint8), "b": np.zeros((2, 3, 8, 8), np.uint16)}
    draw_rows(tmp_path / "rows.png", rows)
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.width > 600


class Recorded:
    """Stands for the experiments' processes."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.commands = list(codes), list[list[str]]()

    def __call__(self, command: list[str], **_: object) -> SimpleNamespace:
        self.commands.append(command)
        return SimpleNamespace(returncode=self.codes.pop(0))


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *codes: int) -> tuple[list[str], Recorded]:
    """A comparison whose speeds are known, and its arguments."""
    overrides = ["general.seed_base=1", "ddpm:generate.n_images=2", "ldm:generate.n_images=3"]
    speed = {"seconds_per_kimg": [20.0], "fixed_seconds": [0.0], "gauge_share": 0.0}
    known = {"config_name": "demo", "overrides": overrides, "speeds": {"ddpm": speed, "ldm": speed}}
    write_json(tmp_path / f"{NAME}.json", known)
    recorded = Recorded(*codes)
    monkeypatch.setattr(generator_comparison, "subprocess", SimpleNamespace(run=recorded, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(generator_comparison, "measure", None)  # what is known is not measured
    monkeypatch.setattr(generator_comparison, "_state", lambda *_: ["the table"])
    options = ["--config-name=demo", "--generators=ddpm,ldm", "--minutes=8", f"--out={tmp_path}"]
    return [*options, *overrides], recorded


def test_every_generator_gets_its_length_and_its_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused site (exit code 3) is a result."""
    arguments, recorded = prepared(tmp_path, monkeypatch, 3, 0)
    assert main(arguments) == 0 and capsys.readouterr().out == "the table\n"
    of_ddpm, of_ldm = recorded.commands
    wanted = {"generator=ddpm", "general.seed_base=1", "generate.n_images=2", "train.gan.kimg=24"}
    wanted |= {"general.exp_name=comparison_ddpm", f"path.logs={tmp_path}"}
    assert wanted <= set(of_ddpm) and "generate.n_images=3" not in of_ddpm
    assert {"generator=ldm", "generate.n_images=3", "general.seed_base=1"} <= set(of_ldm)
    assert read_json(tmp_path / f"{NAME}.json")["kimg"] == {"ddpm": 24.0, "ldm": 24.0}
    with pytest.raises(TypeError):  # other overrides make another experiment: it is measured
        main([*arguments, "general.seed_base=2"])
    assert main([*arguments, "no_such.key=2"]) == 2


def test_a_generator_that_grew_slower_is_trained_once_more_at_the_length_its_minutes_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StyleGAN2's augmentation costs more as it trains, which a short measurement does not see; 8 minutes are asked."""
    arguments, recorded = prepared(tmp_path, monkeypatch, 0, 0, 0, 0, 0)
    slow_down = {"ddpm": 60.0, "ldm": 21.0}  # s/kimg

    def run(command: list[str], **options: object) -> SimpleNamespace:
        of = {word.partition("=")[0]: word.partition("=")[2] for word in command}
        kimg, generator = float(of["train.gan.kimg"]), of["generator"]
        folder = tmp_path / f"comparison_{generator}" / "fold_0" / "generator" / "A"
        time = {"seconds": kimg * slow_down[generator]}
        write_json(folder / "card.json", {"is_finished": True, "length": {"planned_kimg": kimg}, "time": time})
        return recorded(command)

    monkeypatch.setattr(generator_comparison, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
    assert main(arguments) == 0
    lengths = [next(word for word in command if "kimg" in word) for command in recorded.commands]
    assert lengths == ["train.gan.kimg=24", "train.gan.kimg=8", "train.gan.kimg=24"]  # 21 s are within a tenth
    assert main(arguments) == 0  # and resumes with what it found
    assert [next(word for word in command if "kimg" in word) for command in recorded.commands[3:]] == lengths[1:]


def test_a_failing_run_ends_the_command_and_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments, recorded = prepared(tmp_path, monkeypatch, 1)
    assert main(arguments) == 1
    assert len(recorded.commands) == 1 and str(tmp_path / "comparison_ddpm.log") in caplog.text


def test_where_every_site_is_refused_nothing_is_merged_and_that_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, _ = prepared(tmp_path, monkeypatch, 1, 0)
    for site in "AB":
        (tmp_path / "comparison_ddpm" / "fold_0" / "generator" / site).mkdir(parents=True)
        write_refused(tmp_path / "comparison_ddpm" / "fold_0" / "share" / site)
    assert main(arguments) == 0


def test_samplers_are_compared_and_nothing_is_sampled_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(in_latents=False)
    train(ImageData(load_image_set(run / "fold_0" / "slices" / "A").images, settings, 1), tmp_path, settings, 1)
    out = tmp_path / "study"
    arguments = [f"--checkpoint={tmp_path / 'generator.safetensors'}", f"--run={run}", "--site=A", f"--out={out}"]
    arguments += ["--samplers=ddpm:8,multistep:2,ddim:4", "--n-images=18"]
    assert sampler_study.main(arguments) == 0
    table = capsys.readouterr().out
    assert "| ddpm | 8 |" in table and "1 (the reference)" in table and "2 test patients" in table
    assert table.count("\n| ") == 4 and (out / "study.md").read_text() == table
    (out / "ddim_4" / "000016.json").unlink()  # as one killed between the images and their record
    images = (out / "ddim_4" / "000016.npy").read_bytes()
    assert sampler_study.main(arguments) == 0 and (out / "ddim_4" / "000016.npy").read_bytes() == images
    monkeypatch.setattr(sampler_study, "sample", None)
    capsys.readouterr()
    assert sampler_study.main(arguments) == 0
    assert sampler_study.main([*arguments, "--seed=5"]) == 2


@pytest.mark.slow
def test_two_generators_from_the_command_line_to_the_table(tmp_path: Path) -> None:
    """The tiny experiment, as a user would compare on it; the same command again only reads."""
    tiny = [one for one in TINY if not one.startswith(("--config", "general.", "train.gan.", "generator.settings."))]
    command = [sys.executable, "-m", "studies.generator_comparison", "--config-name=demo", "--minutes=0.15"]
    command += ["--generators=stylegan2_small,ddpm", f"--out={tmp_path / 'out'}", "--rounds=1", "--round-seconds=2"]
    command += [*tiny, f"path.data={tmp_path / 'data'}", "generate.n_images=12", "evaluation.real_all=false"]
    command += ["generator.settings.n_snapshots=2"]
    command += ["stylegan2_small:generator.settings.channel_max=8", "ddpm:generator.settings.channels=[8,16]"]
    command += ["ddpm:generator.settings.n_evaluations=4"]

    def pages() -> list[str]:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=850)
        assert ended.returncode == 0, ended.stderr[-4000:]
        assert (tmp_path / "out" / "comparison.md").read_text() == ended.stdout
        return [ended.stdout, (tmp_path / "out" / "comparison.json").read_text()]

    page, figures = pages()
    assert sum(line.startswith(("| stylegan2_small |", "| ddpm |")) for line in page.splitlines()) == 6
    rows = json.loads(figures)["rows"]
    assert all(row["multiple"][0] > 0 and row["dice"] is not None for row in rows)
    assert (tmp_path / "out" / "comparison.png").is_file()
    assert pages() == [page, figures]
