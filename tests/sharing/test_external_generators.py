"""A package of a generator that the receiver does not have: bounded names and numbers, and nothing is imported."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.packages import cases, facts
from support.spoiled_packages import external

from sharing import PackageError, verify_package, write_package

GOOD = {"name": "mine", "external": True, "n_steps": 5, "rate": 0.1, "is_fast": False, "kind": "a-b.c", "sizes": [1, 2]}
REFUSED: dict[str, tuple[dict[str, object], str]] = {  # what the generator says, words of the reason
    "a name of autoshare": ({"name": "ddpm"}, "generator.name ddpm"),
    "a sentence as name": ({"name": "of Doe"}, "of Doe"),
    "no name": ({"name": None}, "generator.name"),
    "not quite external": ({"external": "yes"}, "generator.external yes"),
    "a sentence as a key": ({"John Doe": 1}, "John Doe"),
    "a sentence as a value": ({"note": "John Doe, 1950"}, "John Doe, 1950"),
    "a sentence in a list": ({"notes": [1, "John Doe"]}, "John Doe"),
    "something nested": ({"config": {"privacy": {"epsilon": 0.1}}}, "generator.config"),
    "a list of lists": ({"pixels": [[1, 2], [3, 4]]}, "generator.pixels"),
    "a long list": ({"pixels": [1] * 33}, "33 values"),
    "many keys": ({f"pixel_{i}": i for i in range(65)}, "keys"),
    "a huge number": ({"pixel": 1e13}, "generator.pixel"),
    "a hash": ({"source": "0123456789abcdef"}, "hash of a file"),
    "a module": ({"adapter": "os.path:join"}, "os.path:join"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "package"
    write_package(folder, cases(1), replace(facts(), generator=GOOD), volumetric=False)
    return folder


def test_it_is_verified_and_its_card_promises_nothing_that_it_cannot_know(good: Path) -> None:
    assert verify_package(good).manifest.generator == GOOD
    card = " ".join((good / "CARD.md").read_text().split())
    assert "a generator (mine)" in card and "or by the generator itself" in card and "no differential privacy" in card


@pytest.mark.parametrize(("told", "words"), REFUSED.values(), ids=REFUSED)
def test_anything_but_bounded_names_and_numbers_is_refused(
    good: Path, tmp_path: Path, told: dict[str, object], words: str
) -> None:
    package = tmp_path / "package"
    shutil.copytree(good, package)
    external(**told)(package)
    with pytest.raises(PackageError) as refused:
        verify_package(package)
    assert [reason for reason in refused.value.reasons if reason.file == "manifest.json" and words in reason.problem]


@pytest.mark.parametrize("name", ["os", "os.path:join", "mine"])
def test_nothing_is_imported_that_it_names(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    imported: list[str] = []
    monkeypatch.setattr("generators.registry.importlib.import_module", imported.append)
    shutil.copytree(good, tmp_path / "package")
    external(name=name, adapter="antigravity:x")(tmp_path / "package")
    with pytest.raises(PackageError):
        verify_package(tmp_path / "package")
    assert imported == []
