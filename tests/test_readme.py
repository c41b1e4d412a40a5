"""Every fenced command of README.md and docs/ parses, and runs on tiny inputs as far as that costs seconds."""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from support.diffusion_models import tiny_settings
from support.nnunet_phantoms import planned, write_ct
from support.packages import cases, facts
from support.paths import REPOSITORY

from common.exit_codes import ExitCode
from common.image_set import ImageEntry, ImageSet, save_image_set
from diffusion.data import ImageData
from diffusion.training_run import train
from evaluation.results import write_results
from pipeline.experiments import FEDERATED, NNUNET, SCALING
from pipeline.launch import run_experiment
from sharing import write_package

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PLACEHOLDERS = ("/path/to/data", "/path/to/polyps", "/path/to/cxr_hannover")
SCRIPTS = {"run_nnunet.py": NNUNET, "run_federated.py": FEDERATED, "run_scaling.py": SCALING}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash")
ALLOWED_BESIDE = ("srun", "sleep", ".", "ray", "nnUNetv2_plan_and_preprocess", "make")
MODULES = {"dataset.check", "dataset.export_table", "dataset.prepare", "evaluation.report", "federated.benchmark"}
MODULES |= {"memorization.audit", "diffusion.plan", "diffusion.train", "diffusion.sample", "diffusion.benchmark"}
MODULES |= {
    "studies.generator_comparison",
    "studies.sampler_study",
    "studies.interval_simulation",
    "evaluation.compare",
}
MODULES |= {"gan.benchmark", "gan.sample", "gan.throughput", "studies.generator_study", "sharing.verify"}
MODULES |= {"studies.interval_simulation"}  # runs in tests/studies/test_interval_simulation.py
LINK = re.compile(r"\]\(([^)#:]+)(#[\w-]+)?\)")
NAMED_FILE = re.compile(r"`((\w+)/[\w/.]+\.(?:py|yaml|md))`")  # path and its first folder


def blocks(page: Path) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in SHELL]


def commands(block: str) -> list[list[str]]:
    """The commands of a block as words, comments and continuations resolved; an assignment is no command."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and not re.fullmatch(r"\w+=.*", line[0])]


COMMANDS = list(dict.fromkeys(tuple(words) for page in PAGES for block in blocks(page) for words in commands(block)))
EXPERIMENTS = [words for words in COMMANDS if words[0] == "python" and words[1] in SCRIPTS]
MODULE_CALLS = [words for words in COMMANDS if words[:2] == ("python", "-m")]


def ids(words: tuple[str, ...]) -> str:
    return " ".join(words)[:90]


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory) -> Path:
    """A folder that has every column and folder the documentation names: two sites of five patients."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    rows = ["image,file,patient,patient_id,site,projection,original_height"]
    for number in range(10):
        for part in ("images", "masks", "lung_masks"):
            pixels = rng.integers(0, 256, (16, 12), np.uint8) if part == "images" else _two_labels(part)
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
        site, projection, height = ("A", "ap", 600) if number < 5 else ("B", "pa", 500)
        rows.append(f"{number}.png,{number}.png,p{number},p{number},{site},{projection},{height}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def _two_labels(part: str) -> np.ndarray:
    mask = np.zeros((16, 12), np.uint8)
    mask[4:8] = 255
    return mask


def substituted(words: tuple[str, ...], source: Path) -> list[str]:
    replaced = list(words)
    for placeholder in PLACEHOLDERS:
        replaced = [word.replace(placeholder, str(source)) for word in replaced]
    return [sys.executable, *replaced[1:]]


def write_modules_of_the_pages(folder: Path) -> None:
    """Every Python block that names its file in its docstring: a data set and a generator of the reader's own."""
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text()):
            named = re.match(r'"""(\w+\.py):', body)
            if language == "python" and named:
                (folder / named[1]).write_text(body)


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_there_are_commands_to_test():
    """A broken pattern would let every other test of this file pass."""
    assert len(EXPERIMENTS) >= 10
    assert {words[2] for words in MODULE_CALLS} == MODULES
    assert ("make", "demo") in COMMANDS
    assert ("make", "test") in COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_block_is_valid_shell(page):
    for block in blocks(page):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=ids)
def test_every_command_is_of_a_kind_that_is_tested(words):
    known = words in EXPERIMENTS or words in MODULE_CALLS
    assert known or words[0] in ALLOWED_BESIDE, f"no test knows {words[0]!r}"


@pytest.mark.parametrize("words", EXPERIMENTS, ids=ids)
def test_experiment_command_dry_runs(words, tiny_source, tmp_path, caplog, monkeypatch):
    """The command as printed, plus a folder of its own and dry_run: it composes, is valid, and finds its data.

    In this process, as a process of its own would import for seconds each; a sweep takes its first value.
    """
    import pipeline.entry  # noqa: F401  (stores the schema)

    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    write_modules_of_the_pages(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, script, *arguments = substituted(words, tiny_source)
    names = [word.removeprefix("--config-name=") for word in arguments if word.startswith("--config-name=")]
    overrides = [word for word in arguments if not word.startswith("-")]
    if "-m" in arguments:
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    with initialize_config_dir(str(SCRIPTS[script].config_folder), version_base="1.3"):
        composed = compose(names[0] if names else "demo", [*overrides, "dry_run=true", f"path.logs={tmp_path}"])
    assert run_experiment(SCRIPTS[script], OmegaConf.to_container(composed, resolve=True)) == 0, caplog.text
    assert "nothing was run" in caplog.text
    if str(tiny_source) in " ".join(arguments):
        assert "data not read" not in caplog.text


@pytest.mark.parametrize("script", ["run_nnunet.py", "run_scaling.py"])
def test_a_script_sweeps_from_the_command_line(script, tmp_path):
    command = [sys.executable, str(REPOSITORY / script), "-m", "data.fold=0,1", "dry_run=true"]
    ended = run([*command, f"path.logs={tmp_path}", f"path.data={tmp_path}"], tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (ended.stdout + ended.stderr).count("nothing was run") == 2


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "dataset.check"], ids=ids)
def test_check_command_reads_its_source(words, tiny_source, tmp_path):
    """Where the command maps three mask values, the masks hold all three."""
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    if any(word.startswith("mask_values=") for word in words):
        for mask in (source / "masks").iterdir():
            pixels = np.asarray(Image.open(mask)).copy()
            pixels[10:12] = 128
            Image.fromarray(pixels).save(mask)
    ended = run(substituted(words, source), tmp_path)
    assert ended.returncode == 0, ended.stderr
    sheet = next((word.removeprefix("out=") for word in words if word.startswith("out=")), "contact_sheet.png")
    assert (tmp_path / sheet).is_file()


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "dataset.prepare"], ids=ids)
def test_prepare_command_is_understood(words, tmp_path):
    """The download is not here: the command must get as far as missing it, which it says by its name."""
    if "--help" in words:
        assert "qata" in run([sys.executable, *words[1:]], REPOSITORY).stdout
        return
    write_modules_of_the_pages(tmp_path)
    raw, out = words.index("--raw") + 1, words.index("--out") + 1
    command = [sys.executable, *words[1:]]
    command[raw], command[out] = str(tmp_path / "download"), str(tmp_path / "out")
    ended = run(command, tmp_path)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert str(tmp_path / "download") in ended.stderr


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "dataset.export_table"], ids=ids)
def test_export_command_writes_the_table(words, tiny_source, tmp_path):
    ended = run(substituted(words, tiny_source), tmp_path)
    assert ended.returncode == 0, ended.stderr
    (out,) = (word.removeprefix("out=") for word in words if word.startswith("out="))
    assert "Dataset700_" in (tmp_path / out).read_text()


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "federated.benchmark"], ids=ids)
def test_benchmark_command_prints_its_ratios(words, tmp_path):
    """With the smallest sizes; no time is asserted."""
    sizes = ("--floats", "1e5", "--repeats", "1", "--rounds", "1", "--epoch-s", "0.1")
    ended = run([sys.executable, *words[1:], *sizes], REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    assert "x the limit" in ended.stdout and "% of a round" in ended.stdout


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2].startswith("gan.")], ids=ids)
def test_generator_command_runs_on_a_checkpoint(words, tmp_path, monkeypatch, capsys):
    """As printed, on an untrained generator where the command expects one; no time is asserted."""
    from support.gan_trainings import untrained

    import gan.benchmark
    import gan.sample
    import gan.throughput

    monkeypatch.chdir(tmp_path)
    if "--checkpoint" in words:
        untrained(tmp_path / words[words.index("--checkpoint") + 1], 1, "uint8")
    if words[2] == "gan.benchmark":
        sizes = ("--res", "8", "--batch", "4", "--fmaps", "0.002", "--repeats", "1")
        assert gan.benchmark.main([*words[3:], *sizes]) == 0
        assert "of roof" in capsys.readouterr().out
        return
    if words[2] == "gan.throughput":
        assert gan.throughput.main([*words[3:], "--passes", "1", "--rounds", "1"]) == 0
        assert "ratio" in capsys.readouterr().out
        return
    assert gan.sample.main(list(words[3:])) == 0
    out = words[words.index("--out") + 1] if "--out" in words else "samples"
    assert len(list((tmp_path / out).iterdir())) == (1 if "--sheet" in words else int(words[words.index("--n") + 1]))


def test_diffusion_commands_lead_from_an_nnunet_dataset_to_volumes(tmp_path, capsys, monkeypatch):
    """In the order of the page, at the smallest lengths. Defect 1 of medimgen: these commands did not exist."""
    import diffusion.benchmark
    import diffusion.plan
    import diffusion.sample
    import diffusion.train

    planned(write_ct, "Dataset004_Hippocampus", tmp_path, ("3d_fullres", "2d"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusion.benchmark, "EVALUATIONS", {"ddpm": 2, "ddim": 2, "multistep": 2})
    settings = tiny_settings(in_latents=True)
    train(
        ImageData(np.random.default_rng(0).integers(0, 255, (2, 1, 16, 16), dtype=np.uint8), settings, 1),
        tmp_path / "trained",
        settings,
        1,
    )
    shorter = {
        "diffusion.train": ["--epochs", "1", "--steps-per-epoch", "1", "--device", "cpu"],
        "diffusion.sample": ["--n", "2", "--evaluations", "2"],
        "diffusion.benchmark": ["--size-px", "32", "--repeats", "1"],
        "diffusion.plan": ["--device", "cpu"],
    }
    found = [words for words in MODULE_CALLS if words[2].startswith("diffusion.")]
    assert {words[2] for words in found} == shorter.keys()
    for words in found:
        arguments = [os.path.expandvars(word) for word in words[3:]]
        if "--checkpoint" in arguments and "runs" in arguments[arguments.index("--checkpoint") + 1]:
            arguments[arguments.index("--checkpoint") + 1] = "trained/generator.safetensors"
        module = {"plan": diffusion.plan, "train": diffusion.train, "sample": diffusion.sample}
        main = module.get(words[2].split(".")[1], diffusion.benchmark).main
        assert main([*arguments, *shorter[words[2]]]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "samples" / "imagesTr").glob("*.nii.gz"))) == 2
    assert (tmp_path / "samples" / "sheet" / "sample_sheet.png").is_file()


@pytest.mark.parametrize("words", [w for w in MODULE_CALLS if w[2] == "studies.generator_study"], ids=ids)
def test_generator_study_command_is_understood(words, tmp_path):
    """The command composes its experiment and looks for its images, which are not in the repository."""
    ended = run(substituted(words, tmp_path / "absent"), REPOSITORY)
    assert ended.returncode != 0 and str(tmp_path / "absent") in ended.stderr


@pytest.mark.parametrize("name", ["generator_comparison", "sampler_study"])
def test_comparison_commands_are_understood(name):
    """What they do is in tests/studies/test_generator_comparison.py."""
    module = importlib.import_module(f"studies.{name}")
    parser = argparse.ArgumentParser()
    module._add_arguments(parser)
    found = [words for words in MODULE_CALLS if words[2] == f"studies.{name}"]
    assert found
    for words in found:
        assert parser.parse_intermixed_args(words[3:]).out is not None


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "evaluation.report"], ids=ids)
def test_report_command_writes_the_report(words, tmp_path):
    folder = tmp_path / words[3]
    (folder / "fold_0").mkdir(parents=True)
    run_record = {"command": "x", "exp_name": "demo", "exp_desc": "", "seed_base": 1}
    (folder / "fold_0" / "run.json").write_text(json.dumps(run_record))
    ended = run([sys.executable, *words[1:]], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "evaluation.compare"], ids=ids)
def test_compare_command_sets_runs_side_by_side(words, tmp_path):
    row = {"model": "real-A", "trained_on": "A", "tested_on": "A", "fold": 0, "seed": 0, "label": "lung"}
    row |= {"dice": 0.5, "iou": 0.4, "hd95": 2.0, "nsd": 0.3}
    for folder in words[3:]:
        rows = [row | {"patient": f"p{number}", "case": f"c{number}"} for number in range(7)]
        write_results(tmp_path / folder / "fold_0" / "results.csv", rows)
    ended = run([sys.executable, *words[1:]], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "no clear difference" in ended.stdout


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "sharing.verify"], ids=ids)
def test_verify_command_checks_a_package(words, tmp_path):
    site = Path(words[3]).name
    write_package(tmp_path / words[3], cases(1, site=site), facts(site=site), volumetric=False)
    ended = run([sys.executable, *words[1:]], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"site {site}, 4 images" in ended.stdout and not ended.stderr


@pytest.mark.parametrize("words", [words for words in MODULE_CALLS if words[2] == "memorization.audit"], ids=ids)
def test_audit_command_writes_its_tables_and_pictures(words, tmp_path, monkeypatch, capsys):
    """With one copy of each kind."""
    from support.image_makers import textures

    import memorization.audit

    monkeypatch.chdir(tmp_path)
    images = textures(12, seed=1, size=32)
    entries = tuple(ImageEntry(f"image{i}", patient=f"patient{i}") for i in range(12))
    save_image_set(tmp_path / words[words.index("--site-images") + 1], ImageSet(images, entries))
    assert memorization.audit.main([*words[3:], "--copies", "1"]) == 0
    assert "| quarter turns |" in capsys.readouterr().out
    out = tmp_path / words[words.index("--out") + 1]
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "recall.png", "copies.png"}


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"], ids=ids)
def test_make_target_exists(words):
    assert re.search(rf"^{re.escape(words[1])}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in COMMANDS if "ray" in words], ids=ids)
def test_ray_command_takes_its_options(words):
    """Parsed by Ray's own command line, without starting anything."""
    from ray.scripts.scripts import cli

    after = [word for word in words[words.index("ray") + 1 :] if word != "&"]
    command = cli.commands[after[0]]
    context = command.make_context(after[0], after[1:])
    json.loads(context.params.get("resources") or "{}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    """Files exist, and a fragment is a heading of its page."""
    for target, fragment in LINK.findall(page.read_text()):
        linked = page.parent / target
        assert linked.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if fragment else []
        assert not fragment or fragment[1:] in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_of_this_repository_that_a_page_names_exist(page):
    for path, folder in NAMED_FILE.findall(page.read_text()):
        assert not (REPOSITORY / folder).is_dir() or (REPOSITORY / path).is_file(), f"{page.name}: {path}"


def test_readme_and_the_experiments_pages_name_every_experiment_that_can_be_run():
    """And the other way round: the dry runs above fail where one does not exist."""
    texts = "".join(
        page.read_text() for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs/experiments").glob("*.md"))
    )
    for script, experiment in SCRIPTS.items():
        named = set(re.findall(rf"{script}[^\n]* --config-name=(\w+)", texts))
        assert named == {path.stem for path in experiment.config_folder.glob("*.yaml")} - {"base"}, experiment.name


def test_readme_paths_exist_in_the_repository():
    text = (REPOSITORY / "README.md").read_text()
    assert [path for path in re.findall(r"`(config/[\w./]+)`", text) if not (REPOSITORY / path).exists()] == []
