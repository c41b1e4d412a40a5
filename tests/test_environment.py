"""pyproject.toml, constraints.txt, env_autoshare.yml and the Makefile say the same about the environment."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support.paths import REPOSITORY

PIN = re.compile(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9.]+)")  # a "+" would be a local version, a "/" an address
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = [text for group in PROJECT["optional-dependencies"].values() for text in group]
REQUIREMENTS = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS)]


def constraint_lines() -> list[str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in constraint_lines())}


def environment() -> dict:
    return yaml.safe_load((REPOSITORY / "env_autoshare.yml").read_text())


def test_every_constraint_is_an_exact_public_version():
    """No address, no local version, no range: the file installs the same everywhere."""
    assert [line for line in constraint_lines() if not PIN.fullmatch(line)] == []
    assert "://" not in (REPOSITORY / "constraints.txt").read_text()


def test_no_package_is_pinned_twice():
    assert len(pins()) == len(constraint_lines())


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_has_a_pin_that_satisfies_it(requirement):
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"{requirement} has no pin in constraints.txt"
    assert requirement.specifier.contains(pinned), f"{pinned} does not satisfy {requirement}"


def test_conda_environment_installs_the_project_with_the_same_pins():
    (from_pip,) = [item["pip"] for item in environment()["dependencies"] if isinstance(item, dict)]
    assert from_pip == ["-c constraints.txt", "-e .[test]"]
    assert "://" not in (REPOSITORY / "env_autoshare.yml").read_text()


def test_conda_environment_names_the_python_that_was_tested():
    python = next(item for item in environment()["dependencies"] if str(item).startswith("python"))
    version = python.split("=")[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert f"Python {version}" in (REPOSITORY / "constraints.txt").read_text().splitlines()[0]
    assert "pip" in environment()["dependencies"]


def test_makefile_accepts_the_pythons_that_the_project_supports():
    makefile = (REPOSITORY / "Makefile").read_text()
    accepted = re.search(r"sys\.version_info\[:2\] in \((.*?)\), f", makefile)
    assert accepted is not None
    named = {".".join(pair) for pair in re.findall(r"\((\d+), (\d+)\)", accepted[1])}
    supported = SpecifierSet(PROJECT["requires-python"])
    assert named == {f"3.{minor}" for minor in range(20) if supported.contains(f"3.{minor}")}
    assert "-c constraints.txt" in makefile
