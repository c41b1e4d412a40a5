"""Generators that the product does not know: a toy with a YAML of its own, and one that is named by its class alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.paths import REPOSITORY
from support.tiny_experiment import TINY, composed

from common.errors import InputError
from common.exit_codes import ExitCode
from engine.dependencies import code_of
from generators.registry import find_generator
from pipeline.config import ExperimentConfig, GeneratorConfig, check_experiment
from pipeline.experiment import build_graph

(YAML,) = (REPOSITORY / "tests" / "support" / "toy_generator" / "generator").glob("*.yaml")
TOY = yaml.safe_load(YAML.read_text())
SHORT = ("train.nnunet_epochs=1", "train.nnunet_iterations=2", "evaluation.real_all=false", "generate.n_images=12")
OF_PRODUCT = ("*.py", "*.toml", "*.md", "Makefile", "config/**/*", "docs/**/*", "tests/**/*")
WHITE_NOISE = """
import numpy as np

from common.errors import InputError
from generators.interface import GeneratorBackend

LOUDNESS = 40


class Adapter(GeneratorBackend):
    name = "white_noise"

    def check(self, settings):
        if set(settings) - {"grey"}:
            raise InputError(f"{sorted(settings)}", where="generator.settings", fix="use grey alone")
        return {"grey": 100, **settings}

    def train(self, request):
        np.save(request.out / "learned.npy", request.images[0] * 0 + request.settings["grey"])
        return dict(request.settings)

    def sample(self, request):
        level = np.load(request.trained / "learned.npy")
        noise = [np.random.default_rng(seed).integers(-LOUDNESS, LOUDNESS, level.shape) for seed in request.seeds]
        return np.clip(level + np.stack(noise), 0, 255).astype(np.uint8)
"""


def python(*arguments: str, cwd: Path, knows_toy: bool = True) -> subprocess.CompletedProcess[str]:
    """As a user would: from a folder of their own, with the toy importable or not."""
    path = (REPOSITORY, REPOSITORY / "tests") if knows_toy else (REPOSITORY,)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> Path:
    """The whole tiny experiment with the toy, chosen by its own YAML."""
    cwd = tmp_path_factory.mktemp("toy")
    chosen = (f"--config-dir={YAML.parent.parent}", *TINY, f"generator={TOY['name']}", *SHORT)
    ended = python(str(REPOSITORY / "run_nnunet.py"), *chosen, cwd=cwd)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return cwd / "runs" / "tiny"


def test_the_toy_runs_the_whole_experiment(toy_run: Path) -> None:
    fold = toy_run / "fold_0"
    summary = (fold / "summary.txt").read_text()
    assert all(model in summary for model in ("real-A", "syn-all", "syn-real-A", "syn-real-B"))
    manifest = json.loads((fold / "generator" / "A" / "manifest.json").read_text())
    assert manifest["settings"]["adapter"] == TOY["adapter"]
    assert TOY["adapter"] in manifest["code"]  # a change of the adapter is a change of the stage's code


def test_a_receiver_without_the_toy_verifies_its_package(toy_run: Path) -> None:
    package = toy_run / "fold_0" / "share" / "A"
    verified = python("-m", "sharing.verify", str(package), cwd=toy_run, knows_toy=False)
    assert verified.returncode == ExitCode.PARTIAL, verified.stderr  # sound; of so few patients no gate is measurable
    generator = json.loads((package / "manifest.json").read_text())["generator"]
    assert (generator["name"], generator["external"]) == (TOY["name"], True)
    assert "not part of autoshare" in " ".join((package / "CARD.md").read_text().split())
    cannot = python("-c", f"import {TOY['adapter'].split('.')[0]}", cwd=toy_run, knows_toy=False)
    assert cannot.returncode != 0


def test_the_report_has_the_toys_own_section_or_says_why_not(toy_run: Path, tmp_path: Path) -> None:
    for knows_toy, words in ((True, "has drawn noise"), (False, "cannot be loaded")):
        out = ("--out", str(tmp_path / str(knows_toy)))
        ended = python("-m", "evaluation.report", str(toy_run), *out, cwd=tmp_path, knows_toy=knows_toy)
        assert ended.returncode == 0, ended.stderr
        assert words in (tmp_path / str(knows_toy) / "report.html").read_text()
    assert "has drawn noise" in (toy_run / "fold_0" / "report.html").read_text()


def test_adding_the_toy_touched_no_file_outside_its_folder() -> None:
    """Its YAML lies in there too. Neither its name nor its class stands in any other file, of the tests neither."""
    words = {TOY["name"].lower(), TOY["adapter"].partition(":")[2].lower()}
    files = {path for pattern in OF_PRODUCT for path in REPOSITORY.glob(pattern) if path.is_file()}
    rooms = [folder for folder in REPOSITORY.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    files |= {path for room in rooms for path in room.glob("**/*.py")}
    texts = {path: path.read_text().lower() for path in files if path.suffix in (".py", ".toml", ".md", ".yaml", "")}
    naming = [path for path, text in texts.items() if any(word in text for word in words)]
    assert naming and all(path.is_relative_to(YAML.parent.parent) for path in naming)


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's package in their working directory; returns the file of its generator."""
    package = tmp_path / f"package_{tmp_path.name}"  # a name of its own: modules stay loaded
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_generator.py").write_text(WHITE_NOISE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return package / "my_generator.py"


def external(package: Path) -> tuple[str, ...]:
    adapter = f"{package.parent.name}.my_generator:Adapter"
    return "generator=external", f"generator.adapter={adapter}", "~generator.settings.batch_size"


def test_a_generator_of_the_working_directory_runs_the_experiment(own_package: Path) -> None:
    """From that directory, without any file of configuration; then a change of its code is seen."""
    cwd = own_package.parent.parent
    chosen = (*TINY, *external(own_package), "+generator.settings.grey=90", *SHORT, "data.sites=[A]")
    ended = python(str(REPOSITORY / "run_nnunet.py"), *chosen, cwd=cwd, knows_toy=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    package = cwd / "runs" / "tiny" / "fold_0" / "share" / "A"
    verified = python("-m", "sharing.verify", str(package), cwd=REPOSITORY, knows_toy=False)
    assert verified.returncode == ExitCode.PARTIAL, verified.stderr  # sound; of so few patients no gate is measurable
    generator = json.loads((package / "manifest.json").read_text())["generator"]
    assert generator == {"external": True, "grey": 90, "name": "white_noise"}
    own_package.write_text(WHITE_NOISE.replace("LOUDNESS = 40", "LOUDNESS = 41"))
    dry = python(str(REPOSITORY / "run_nnunet.py"), *chosen, "dry_run=true", cwd=cwd, knows_toy=False)
    assert dry.returncode == 0
    states = {line.split()[0]: line.split()[1] for line in dry.stdout.splitlines() if line.startswith("fold_0/")}
    assert states["fold_0/sample/A"] == "redo" and states["fold_0/slices/A"] == "done"


def test_its_name_and_its_code_enter_the_stages(own_package: Path) -> None:
    config = composed("demo", *external(own_package))
    assert config.generator.name == "white_noise"
    stages = build_graph(config, ("A",)).stages
    stage = stages["fold_0/generator/A"]
    assert stage.code == (config.generator.adapter,)
    assert stage.settings["adapter"] == stages["fold_0/sample/A"].settings["adapter"] == config.generator.adapter
    assert f"{own_package.parent.name}.my_generator:LOUDNESS" in code_of(stage.code)
    built_in = build_graph(composed("demo"), ("A",)).stages["fold_0/generator/A"]
    assert built_in.code == ("gan.adapter:StyleGan2",) and "adapter" not in built_in.settings


def test_processes_that_are_started_find_it_too(own_package: Path) -> None:
    """Ray's workers and the processes of a training get the environment of the one that starts them."""
    find_generator(f"{own_package.parent.name}.my_generator:Adapter")
    assert str(own_package.parent.parent) in os.environ["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("generator=external",), "no generator is called 'auto'"),
        (("generator=external", "generator.adapter=no_package.module:Adapter"), "no_package.module:Adapter cannot be"),
        (("generator.name=vae",), "no generator is called 'vae'"),
        (("generator.adapter=decimal:Decimal",), "the generator called stylegan2 is not decimal:Decimal"),
        (("generator.name=mine",), "no generator is called 'mine'"),
        (("generator.name='John Doe'", "generator.adapter=decimal:Decimal"), "'John Doe' is not allowed"),
    ],
)
def test_a_generator_that_is_none_is_refused_before_anything_runs(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError) as refused:
        composed("demo", *overrides)
    assert words in str(refused.value) and "generator." in str(refused.value)


def test_settings_that_no_package_may_tell_are_refused_before_the_training(own_package: Path) -> None:
    with pytest.raises(InputError, match=r"generator\.settings\.grey") as refused:
        composed("demo", *external(own_package), "+generator.settings.grey='of John Doe, 1950'")
    assert "John Doe" in str(refused.value)


@pytest.mark.parametrize("name", ["stylegan2", "ddpm", "ldm"])
def test_a_name_of_the_installation_needs_no_adapter(name: str) -> None:
    """As configurations of older releases give it: the name decides, whatever group the experiment had chosen."""
    settings = {} if name == "stylegan2" else dict(composed("demo", f"generator={name}").generator.settings)
    config = replace(ExperimentConfig(), generator=GeneratorConfig(name, settings=settings))
    assert check_experiment(config).generator.backend.name == name
    other = replace(config.generator, adapter="gan.adapter:StyleGan2")
    assert other.named().backend.name == name
