"""Every command of the repository: how it is asked for help, what it loads for that, and how it ends."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.packages import cases, facts
from support.paths import REPOSITORY

from common.command import command, exit_code_of
from common.errors import InputError, StoppedError
from common.exit_codes import ExitCode, code_of_sweep
from sharing import write_package
from studies.startup import HEAVY, commands

MODULES = [each for each in commands() if each.endswith(".py") is False]
SCRIPTS = [each for each in commands() if each.endswith(".py")]
SLOW_TO_IMPORT = ("torch", "monai", "nnunetv2", "ray")
WATCH = "import atexit, sys; atexit.register(lambda: sys.stderr.write(str([n for n in {!r} if n in sys.modules])))"

BAD_INPUT = {  # the cheapest mistake of each command
    "dataset.check": ["root=/no/such/folder", "site_column=site"],
    "dataset.export_table": ["root=/no/such/folder", "site_column=site"],
    "dataset.mni_slices": ["--wheel=/no/such.whl", "--out=out"],
    "dataset.prepare": ["qata", "--raw=/no/such/folder", "--out=out"],
    "diffusion.benchmark": ["--device=no_such_device"],
    "diffusion.plan": ["/no/such/folder", "--device=cpu"],
    "diffusion.sample": ["--checkpoint=/no/such.safetensors", "--device=cpu"],
    "diffusion.train": ["/no/such/folder", "--dimensions=2D", "--model=ddpm"],
    "studies.scheduler_benchmark": ["--no-such-option"],
    "evaluation.report": ["/no/such/run"],
    "features.benchmark": ["--queries=many"],
    "federated.benchmark": ["--floats=many"],
    "gan.benchmark": ["--precision=fp8"],
    "gan.sample": ["--checkpoint=/no/such.safetensors", "--device=cpu"],
    "gan.throughput": ["--checkpoint=/no/such.safetensors", "--device=cpu"],
    "memorization.audit": ["--site-images=/no/such/folder", "--out=out"],
    "sharing.verify": ["/no/such/package"],
    "studies.accountant_comparison": ["--steps=many"],
    "studies.calibration_study": ["--site-images=/no/such/folder", "--out=out"],
    "studies.gate_level": ["--cells=many"],
    "studies.interval_simulation": ["--runs=many"],
    "evaluation.compare": ["absent", "absent"],
    "studies.generator_comparison": ["--config-name=no_such", "--generators=ddpm", "--minutes=1", "--out=out"],
    "studies.generator_study": ["--config-name=no_such", "--out=out"],
    "studies.memorization_study": ["--config-name=no_such", "--out=out"],
    "studies.sampler_study": ["--checkpoint=/no/such", "--run=/no/such/run", "--site=A", "--out=out"],
    "studies.startup": ["--runs=many"],
}


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def loaded_by(target: str, arguments: list[str]) -> tuple[list[str], str]:
    """Which slow packages a command has loaded when it ends, and its output."""
    started = f"runpy.run_path({target!r}, run_name='__main__')"
    if not target.endswith(".py"):
        started = f"runpy.run_module({target!r}, run_name='__main__', alter_sys=True)"
    code = f"{WATCH.format(SLOW_TO_IMPORT)}; import runpy; sys.argv[1:] = {arguments!r}; {started}"
    ended = run(["-c", code], REPOSITORY)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ast.literal_eval(ended.stderr[ended.stderr.rindex("[") :]), ended.stdout


def test_there_are_commands_to_test():
    assert len(MODULES) >= 20 and len(SCRIPTS) == 3 and set(SLOW_TO_IMPORT) <= set(HEAVY)


@pytest.mark.parametrize("module", MODULES)
def test_help_says_what_a_command_does_and_loads_nothing_slow(module):
    loaded, text = loaded_by(module, ["--help"])
    assert loaded == []
    usage, description, *_ = text.split("\n\n")
    assert usage.startswith(f"usage: python -m {module} ")
    assert len(description) > 20 and text.count(f"python -m {module}") >= 2  # the usage, and an example
    for block in re.findall(r"^  (-[^\n]+)", text, re.MULTILINE):
        assert block.strip(), "an option without a word about it"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_loads_nothing_slow(script, tmp_path):
    loaded, _ = loaded_by(script, ["dry_run=true", f"path.logs={tmp_path}", f"path.data={tmp_path}"])
    assert loaded == []


def test_every_option_of_every_command_says_what_it_is(monkeypatch):
    """A user cannot guess what an option without a help text does."""
    import argparse

    silent = []

    def checked(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        silent.extend(f"{parser.prog} {action.dest}" for action in parser._actions if not action.help)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", checked)
    for module in MODULES:
        name = "evaluation.report.__main__" if module == "evaluation.report" else module
        with pytest.raises(SystemExit):
            importlib.import_module(name).main([])
    assert silent == []


@pytest.mark.parametrize("module", MODULES)
def test_bad_input_ends_with_2(module, tmp_path, monkeypatch, capsys):
    """In this process, as most commands load PyTorch before they look at their input."""
    monkeypatch.chdir(tmp_path)
    name = "evaluation.report.__main__" if module == "evaluation.report" else module
    try:
        code = importlib.import_module(name).main(BAD_INPUT[module])
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code == ExitCode.BAD_INPUT, capsys.readouterr().err
    assert capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "mistake", ["no.such=key", "generator=no_such", "train.gan.kimg=many", "--config-name=no_such"]
)
def test_a_mistake_on_an_experiments_command_line_ends_with_2(script, mistake, tmp_path):
    if script != "run_nnunet.py" and mistake != "no.such=key":
        pytest.skip("the same code")
    ended = run([str(REPOSITORY / script), mistake, "dry_run=true"], tmp_path)
    assert ended.returncode == ExitCode.BAD_INPUT, ended.stderr[-2000:]


def test_a_package_that_was_changed_is_refused_with_3(tmp_path):
    write_package(tmp_path / "A", cases(1), facts(), volumetric=False)
    verify = ["-m", "sharing.verify", str(tmp_path / "A")]
    assert run(verify, tmp_path).returncode == ExitCode.DONE
    image = sorted((tmp_path / "A").rglob("*.png"))[0]
    image.write_bytes(image.read_bytes() + b"x")
    ended = run(verify, tmp_path)
    assert ended.returncode == ExitCode.REFUSED and image.name in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_with_5_and_can_go_on(number, tmp_path):
    """Stopped in its first stage, which is then seen as half done."""
    from support.tiny_experiment import TINY

    arguments = [str(REPOSITORY / "run_nnunet.py"), *TINY, "cluster=inline", f"path.logs={tmp_path}"]
    arguments += [f"path.data={tmp_path}", "general.exp_name=stopped"]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )
    logs = tmp_path / "stopped" / "fold_0" / "logs"
    deadline = time.monotonic() + 240
    while not list(logs.glob("*.begun.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == ExitCode.STOPPED, errors[-2000:]
    assert "was stopped" in errors and "Traceback" not in errors
    planned = run([*arguments, "dry_run=true"], tmp_path)
    assert planned.returncode == ExitCode.DONE and ", 0 to do" not in planned.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a", where="b", fix="c"), ExitCode.BAD_INPUT),
        (StoppedError("the cluster is gone"), ExitCode.STOPPED),
        (KeyboardInterrupt(), ExitCode.STOPPED),
        (SystemExit(signal.SIGTERM), ExitCode.STOPPED),  # what Ray makes of the signal
    ],
)
def test_errors_become_messages_and_codes(error, code, capsys):
    def work() -> None:
        raise error

    assert exit_code_of(work) == code
    assert capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_sigterm_ends_the_work_and_the_handler_before_is_back():
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == ExitCode.STOPPED
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    """As with ``| head -1``."""
    code = "from common.command import exit_code_of; import sys\n"
    code += "sys.exit(exit_code_of(lambda: [sys.stdout.write('x' * 1000) for _ in range(10000)] and None))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == ExitCode.STOPPED and errors == ""


@pytest.mark.parametrize(
    ("codes", "of_all"),
    [([], 0), ([0, 0], 0), ([0, 1], 6), ([3, 1], 6), ([0, 2], 6), ([0, 3], 3), ([1, 1], 1), ([1, 2], 2), ([2], 2)],
)
def test_a_sweep_with_results_and_failures_is_partial(codes, of_all):
    assert code_of_sweep(codes) == of_all


def test_a_sweep_of_which_a_part_fails_ends_with_6(tmp_path):
    ended = run(
        [str(REPOSITORY / "run_nnunet.py"), "-m", "dry_run=true", "data.fold=0,99", f"path.data={tmp_path}"], tmp_path
    )
    assert ended.returncode == ExitCode.PARTIAL, ended.stderr[-2000:]


def test_the_page_has_the_table_of_the_codes():
    page = (REPOSITORY / "docs" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", page, re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]
    assert "docs/exit-codes.md" in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("shim", [p for p in REPOSITORY.glob("*/*.py") if "run_moved(" in p.read_text()], ids=str)
def test_an_old_name_runs_the_command_and_names_the_new_one(shim):
    if shim.name == "moved.py":
        pytest.skip("what the shims call")
    old = f"{shim.parent.name}.{shim.stem}"
    (new,) = re.findall(r'run_moved\(__spec__\.name, "([\w.]+)"\)', shim.read_text())
    assert new in MODULES and old not in MODULES
    ended = run(["-m", old, "--help"], REPOSITORY)
    assert ended.returncode == 0 and f"usage: python -m {new}" in ended.stdout
    assert f"`python -m {old}` is now `python -m {new}`" in ended.stderr


def test_a_command_reads_its_arguments_in_any_order():
    def add_arguments(parser) -> None:
        parser.add_argument("--a")
        parser.add_argument("rest", nargs="*")

    @command(add_arguments)
    def main(chosen) -> None:
        seen.update(vars(chosen))

    seen: dict[str, object] = {}
    assert main(["x", "--a", "1", "y"]) == ExitCode.DONE
    assert json.dumps(seen) == '{"a": "1", "rest": ["x", "y"]}'
