"""The main experiment end to end on tiny data: what it leaves, how it resumes, what it says when it cannot go on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage import io
from support.tiny_experiment import deterministic, manifests, run_command, run_tiny

from sharing import verify_package

MODELS = {"real-A", "real-B", "real-all", "real-long-A", "real-long-B", "real-long-all"}
MODELS |= {"syn-all", "syn-real-A", "syn-real-B"}


def test_results_hold_every_model_on_every_sites_test_patients(tiny_run: Path) -> None:
    with (tiny_run / "fold_0" / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = "model,trained_on,tested_on,fold,seed,patient,case,label,dice,iou,hd95,nsd"
    assert ",".join(rows[0]) == columns
    assert {(row["model"], row["tested_on"]) for row in rows} == {(m, s) for m in MODELS for s in "AB"}
    tested = {row["case"] for row in rows}
    for site in "AB":
        splits = json.loads((tiny_run / f"fold_0/prepare/{site}/raw/splits.json").read_text())
        assert set(splits["test"]) <= tested and not tested & {*splits["train"], *splits["val"]}


def test_the_report_stands_beside_the_results(tiny_run: Path) -> None:
    assert (tiny_run / "fold_0" / "summary.csv").is_file()
    html = (tiny_run / "fold_0" / "report.html").read_text()
    assert "syn-real-A" in html and "data:image/png;base64" in html and "http" not in html.replace("http-equiv", "")


def test_a_package_is_a_raw_dataset_that_nnunet_accepts_without_this_project(tiny_run: Path, tmp_path: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    package = tiny_run / "fold_0" / "share" / "A"
    verify_package(package)
    shutil.copytree(package, tmp_path / "Dataset501_received")
    verify_dataset_integrity(str(tmp_path / "Dataset501_received"), num_processes=1)


def test_nothing_real_is_in_a_package(tiny_run: Path) -> None:
    """D28: no real image, name or metadata leaves; the original shipped a real patient's pickle with every case."""
    real = {path.read_bytes() for path in tiny_run.glob("fold_0/prepare/*/raw/*/images*/*")}
    real_pixels = {io.imread(path).tobytes() for path in tiny_run.glob("fold_0/prepare/*/raw/*/images*/*")}
    patients = {
        name
        for path in tiny_run.glob("fold_0/prepare/*/raw/patients.json")
        for pair in json.loads(path.read_text()).items()
        for name in pair
    }
    texts = ""
    for path in tiny_run.glob("fold_0/share/*/**/*"):
        if path.is_file():
            assert path.suffix in (".png", ".json", ".md")
            if path.suffix == ".png":
                assert path.read_bytes() not in real and io.imread(path).tobytes() not in real_pixels
            else:
                texts += path.read_text()
    assert str(tiny_run) not in texts and os.uname().nodename not in texts
    assert not [name for name in patients if name in texts]


def test_validation_patients_reach_neither_the_generator_nor_the_synthetic_images(tiny_run: Path) -> None:
    """D13: the original trained generators on validation patients and then selected checkpoints on them."""
    for site in "AB":
        splits = json.loads((tiny_run / f"fold_0/prepare/{site}/raw/splits.json").read_text())
        assert json.loads((tiny_run / f"fold_0/generator/{site}/settings.json").read_text())["n_images"] == len(
            splits["train"]
        )


def test_the_pooled_plan_comes_from_packages_alone(tiny_run: Path) -> None:
    """D29: the original took plan and fingerprint of pooled real data, which no deployment has."""
    merged = manifests(tiny_run)["fold_0/merge/all/manifest.json"]
    assert (
        set(merged["inputs"]) == {"package:A", "package:B", "check:A:B", "check:B:A"}
        and merged["settings"]["plan_from"] == "synthetic"
    )


def test_seeds_of_samples_differ_between_sites(tiny_run: Path) -> None:
    """D34: the original sampled every site, fold and experiment from the seeds 0, 1, 2, ..."""
    seeds = []
    for site in "AB":
        index = json.loads((tiny_run / f"fold_0/sample/{site}/index.json").read_text())
        seeds.append({entry["seed"] for entry in index["entries"]})
        assert len(seeds[-1]) == 40
    assert not seeds[0] & seeds[1]


def test_the_same_command_again_runs_no_stage(tiny_run: Path) -> None:
    before = {name: (tiny_run / name).stat().st_mtime_ns for name in manifests(tiny_run)}
    again = run_tiny(cwd=tiny_run.parent.parent)
    assert again.returncode == 0 and "52 stages, 0 to do" in again.stdout
    assert {name: (tiny_run / name).stat().st_mtime_ns for name in manifests(tiny_run)} == before


def test_a_changed_setting_redoes_what_depends_on_it_and_keeps_the_old_result(tiny_run: Path, tmp_path: Path) -> None:
    """D19: the original's re-runs deleted earlier output. D20: experiments overwrote each other."""
    shutil.copytree(tiny_run.parent.parent, tmp_path / "copy", symlinks=True)
    run = tmp_path / "copy" / "runs" / "tiny"
    before = manifests(run)
    changed = run_tiny("evaluation.nsd_tolerance=3.0", cwd=tmp_path / "copy")
    assert changed.returncode == 0, changed.stderr[-2000:]
    after = manifests(run)
    redone = {name for name in before if before[name]["digest"] != after[name]["digest"]}
    assert redone == {name for name in before if "/evaluate/" in name}
    assert len(list(run.glob("superseded/fold_0/evaluate/*/*/*/results.csv"))) == len(redone)


KILLS: list[tuple[str, Callable[[Path], bool]]] = [
    ("generator", lambda run: bool(list(run.glob("fold_0/generator/*/training.safetensors")))),
    ("segment_real", lambda run: bool(list(run.glob("fold_0/segment_real/*/nnunet/**/checkpoint_latest.pth")))),
    ("filter", lambda run: bool(list(run.glob("fold_0/logs/filter-*.begun.json")))),
    ("share", lambda run: bool(list(run.glob("fold_0/logs/share-*.begun.json")))),
]


def test_killed_in_four_stages_and_resumed_it_leaves_the_manifests_of_an_undisturbed_run(
    tiny_run: Path, tmp_path: Path
) -> None:
    """D18, D40, D43: the original had no resume, and a repeated run was another run."""
    run = tmp_path / "runs" / "tiny"
    finished: dict[str, int] = {}
    for stage, is_in_the_middle in KILLS:
        process = subprocess.Popen(
            run_command(cwd=tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not is_in_the_middle(run):
            assert process.poll() is None, f"ended before {stage}"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(run.glob(f"fold_0/logs/{stage}-*.begun.json")), f"{stage} was over before the kill"
        for name, mtime in finished.items():
            assert (run / name).stat().st_mtime_ns == mtime, f"{name} was repeated"
        finished = {name: (run / name).stat().st_mtime_ns for name in manifests(run)}
    ended = run_tiny(cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    ours, theirs = manifests(run), manifests(tiny_run)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert deterministic(ours[name]) == deterministic(theirs[name]), name
    assert all((run / name).stat().st_mtime_ns == mtime for name, mtime in finished.items())
    assert (run / "fold_0/results.csv").read_bytes() == (tiny_run / "fold_0/results.csv").read_bytes()


def test_a_failing_site_stops_only_what_needs_it(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.parent.parent, tmp_path / "copy", symlinks=True)
    run = tmp_path / "copy" / "runs" / "tiny"
    shutil.rmtree(run / "fold_0" / "label" / "B")
    shutil.rmtree(run / "fold_0" / "share")
    (run / "fold_0" / "label" / "B").write_text("a file where the stage wants a folder")
    ended = run_tiny(cwd=tmp_path / "copy")
    assert ended.returncode == 1
    for words in ("FAILED fold_0/label/B", "label-B.log", "fold_0/merge/all"):
        assert words in ended.stdout, ended.stdout[-2000:]
    verify_package(run / "fold_0" / "share" / "A")


def test_a_site_whose_gates_refuse_leaves_no_package_and_the_others_go_on(tiny_run: Path, tmp_path: Path) -> None:
    """Site B's filter is made to say that it dropped most of what was sampled."""
    shutil.copytree(tiny_run.parent.parent, tmp_path / "copy", symlinks=True)
    run = tmp_path / "copy" / "runs" / "tiny"
    for site in "AB":
        path = run / f"fold_0/filter/{site}/filter.json"
        figures = json.loads(path.read_text())
        n_dropped = 4 * figures["n_kept"] if site == "B" else 0
        path.write_text(json.dumps(figures | {"n_dropped": n_dropped, "n_sampled": figures["n_kept"] + n_dropped}))
    enforced = ("gates.enforce=true", "gates.min_measured=0")
    ended = run_tiny(*enforced, cwd=tmp_path / "copy")
    assert ended.returncode == 3, ended.stdout[-2000:]
    assert "REFUSED fold_0/share/B" in ended.stdout and "dropped share" in ended.stdout
    refused = run / "fold_0" / "share" / "B"
    assert sorted(path.name for path in refused.iterdir()) == ["REFUSED.md", "refused.json"]
    assert "site B refused to export" in (run / "fold_0" / "logs" / "share-B.log").read_text()
    verify_package(run / "fold_0" / "share" / "A")
    audit = json.loads((run / "fold_0/share/A/privacy.json").read_text())["audit"]
    assert audit["enforced"] and not any(gate["decision"] == "failed" for gate in audit["gates"])
    images = sorted(path.name for path in run.glob("fold_0/merge/all/raw/*/imagesTr/*"))
    assert images and all(name.startswith("A_syn_") for name in images)
    assert "Refused: nothing leaves this site" in (run / "fold_0" / "report.html").read_text()
    again = run_tiny(*enforced, cwd=tmp_path / "copy")
    assert again.returncode == 3 and "52 stages, 0 to do" in again.stdout and "REFUSED fold_0/share/B" in again.stdout


def test_a_second_process_on_the_same_experiment_is_refused(tiny_run: Path) -> None:
    import fcntl

    with (tiny_run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = run_tiny(cwd=tiny_run.parent.parent)
    assert ended.returncode == 2 and "another process runs this experiment" in ended.stdout


def write_source(root: Path, n_patients: int = 6) -> None:
    """A folder source of two sites whose images are noise with a bright square."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    lines = ["image,patient,site"]
    for site in "AB":
        for patient in range(n_patients):
            name = f"{site}{patient}.png"
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 10:22] = 255
            image = (rng.integers(20, 80, mask.shape) + mask // 2).astype(np.uint8)
            io.imsave(root / "images" / name, image, check_contrast=False)
            io.imsave(root / "masks" / name, mask, check_contrast=False)
            lines.append(f"{name},{site}{patient},{site}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def _missing_mask(root: Path) -> None:
    (root / "masks" / "A1.png").unlink()


def _other_size(root: Path) -> None:
    io.imsave(root / "masks" / "A1.png", np.zeros((32, 30), np.uint8), check_contrast=False)


def _unmapped_label(root: Path) -> None:
    io.imsave(root / "masks" / "A1.png", np.full((32, 32), 7, np.uint8), check_contrast=False)


def _truncated(root: Path) -> None:
    path = root / "images" / "A1.png"
    path.write_bytes(path.read_bytes()[:200])


def _constant(root: Path) -> None:
    io.imsave(root / "images" / "A1.png", np.full((32, 32), 9, np.uint8), check_contrast=False)


def _empty_table(root: Path) -> None:
    (root / "metadata.csv").write_text("image,patient,site\n")


def _too_few_patients(root: Path) -> None:
    lines = (root / "metadata.csv").read_text().splitlines()
    (root / "metadata.csv").write_text("\n".join(line for line in lines if line[:2] not in ("B4", "B5")) + "\n")


@pytest.mark.parametrize(
    "spoil,words",
    [
        (_missing_mask, ("A1.png", "missing")),
        (_other_size, ("A1.png", "32 x 30")),
        (_unmapped_label, ("A1.png", "7")),
        (_truncated, ("A1.png",)),
        (_constant, ("A1.png", "constant")),
        (_empty_table, ("metadata.csv", "no rows")),
        (_too_few_patients, ("site B", "4 patients")),
    ],
)
def test_bad_data_is_refused_before_any_stage_runs(tmp_path: Path, spoil, words: tuple[str, ...], launch) -> None:
    write_source(tmp_path / "source")
    spoil(tmp_path / "source")
    code, message = launch(tmp_path, *FOLDER, f"data.root={tmp_path / 'source'}")
    assert code == 2 and "way out" in message
    for word in words:
        assert word in message, message
    assert not manifests(tmp_path / "runs" / "tiny")


FOLDER = ("data.kind=folder", "data.patient_column=patient", "data.site_column=site")


@pytest.mark.parametrize(
    "override,words",
    [
        ("++train.nnunet_epoch=3", ("train.nnunet_epoch", "train.nnunet_epochs")),
        ("++train.nnunet_epochs=many", ("train.nnunet_epochs", "int", "many")),
        ("data.fold=7", ("data.fold", "7")),
        ("cluster=gpu cluster.kind=inline", ("GPU", "cluster")),
        ("path.logs=/dev/null/runs", ("/dev/null/runs", "cannot write")),
        ("generator.name=stylegan9", ("stylegan9", "stylegan2")),
        ("memorization.embedder=dino", ("dino", "efficientnet_lite0")),
    ],
)
def test_a_bad_configuration_is_refused_before_any_stage_runs(tmp_path, override: str, words, launch) -> None:
    code, message = launch(tmp_path, *override.split())
    assert code == 2 and "way out" in message
    for word in words:
        assert word in message, message


@pytest.fixture
def launch(capsys, caplog):
    """Compose and launch in this process: a subprocess for each bad input would be minutes of imports."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from support.paths import REPOSITORY
    from support.tiny_experiment import tiny

    import pipeline.entry  # noqa: F401  (stores the schema)
    from common.errors import InputError
    from pipeline.config import experiment_config
    from pipeline.launch import launch as launch_experiment

    def call(cwd: Path, *overrides: str) -> tuple[int, str]:
        folders = [f"path.logs={cwd / 'runs'}", f"path.data={cwd / 'data'}"]
        try:
            with initialize_config_dir(str(REPOSITORY / "config" / "nnunet"), version_base="1.3"):
                composed = compose("demo", overrides=[*tiny(*overrides)[1:], *folders, *overrides])
            return launch_experiment(experiment_config(OmegaConf.to_container(composed, resolve=True))), caplog.text
        except InputError as error:
            return 2, str(error)

    return call
