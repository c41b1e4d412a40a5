"""A receiver decides every gate again: no decision contradicts its figure, and the first lines say what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.packages import audit_of, cases, facts, gate_named, sign, write_refused

from common.exit_codes import ExitCode
from common.files import json_text
from common.settings import from_dict
from memorization.gates import EVIDENCE, LEAKAGE_GATES, PLANTED_RECALL
from sharing import PackageError, verify_package, write_package
from sharing.card import render_card
from sharing.schema import Manifest
from sharing.verify import main

Change = Callable[[dict[str, Any]], object]


def set_gate(name: str, **values: object) -> Change:
    return lambda audit: gate_named(audit, name).update(values)


def both(*changes: Change) -> Change:
    return lambda audit: [change(audit) for change in changes]


def set_figure(name: str, **values: object) -> Change:
    return lambda audit: next(one for one in audit["figures"] if one["name"] == name).update(values)


def set_planted(**values: object) -> Change:
    return lambda audit: audit["planted"].update(values)


UNENFORCED: Change = lambda audit: audit.update(enforced=False)  # noqa: E731
CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    # a decision that its figure, limit and p do not give
    **{
        f"{kind.name} beyond its limit and not by chance, passed": (
            both(
                set_gate(kind.name, limit={"<=": 0.1, ">=": 0.9}[kind.comparison], p=0.001),
                set_figure(kind.name, p=0.001),
            ),
            "must be failed",
        )
        for kind in LEAKAGE_GATES
    },
    "within its limit, failed": (both(UNENFORCED, set_gate("C_T", decision="failed")), "must be passed"),
    "beyond its limit by chance, failed": (
        both(UNENFORCED, set_gate("C_T", decision="failed", limit=0.9)),
        "must be passed",
    ),
    "enough copies found, failed": (both(UNENFORCED, set_gate(PLANTED_RECALL, decision="failed")), "must be passed"),
    "too few copies found, passed": (
        both(set_planted(found=40, mean_recall=0.6), set_gate(PLANTED_RECALL, value=0.6)),
        "must be failed",
    ),
    "share dropped within its limit, failed": (
        both(UNENFORCED, set_gate("dropped share", decision="failed")),
        "must be passed",
    ),
    "too few gates measured, passed": (set_gate(EVIDENCE, limit=7.0), "must be failed"),
    # a figure that is another one than that of its name
    "other value than the figure": (set_gate("AuthPct over held-out", value=0.45), "the value in audit.figures"),
    "other p than the figure": (set_gate("C_T", p=0.5), "as in audit.figures"),
    "other number of gates measured": (set_gate(EVIDENCE, value=5.0), "number of leakage gates"),
    # a gate that is measured and is not, or the reverse
    "no figure, passed": (both(UNENFORCED, set_gate("C_T", value=None, p=None, level=None)), "must be not measurable"),
    "a figure, not measurable": (set_gate("C_T", decision="not measurable"), "must be passed"),
    "a figure that is withheld": (set_gate("C_T", value=None, p=None, decision="not measurable"), "audit.figures"),
    "no copies planted, passed": (
        both(lambda audit: audit.update(planted=None), set_gate(PLANTED_RECALL, value=None)),
        "must be not measurable",
    ),
    # a level that is not its share of the familywise level
    "level of its own": (set_gate("C_T", level=0.001), "shared equally"),
    "p without a level": (set_gate("C_T", level=None), "p and level of a leakage gate"),
    "figure without p": (set_gate("C_T", p=None), "p and level of a leakage gate"),
    "p of a gate without a test": (set_gate(EVIDENCE, p=0.5), "p and level of a leakage gate"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "A"
    write_package(folder, cases(1), facts(), volumetric=False)
    return folder


@pytest.mark.parametrize(("change", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_decision_that_contradicts_its_figure_is_refused(good: Path, tmp_path: Path, change: Change, words: str):
    """The sender writes a card that fits and signs everything: only deciding again can tell."""
    package = tmp_path / "A"
    shutil.copytree(good, package)
    content = json.loads((package / "privacy.json").read_text())
    change(content["audit"])
    (package / "privacy.json").write_text(json_text(content))
    manifest = from_dict(Manifest, json.loads((package / "manifest.json").read_text()))
    (package / "CARD.md").write_text(render_card(manifest, content))
    sign(package)
    with pytest.raises(PackageError) as refused:
        verify_package(package)
    assert words in str(refused.value) and str(refused.value).isascii()
    assert main([str(package)]) == ExitCode.REFUSED


def first_lines(folder: Path, audit: dict[str, Any], capsys) -> tuple[int, list[str]]:
    """The exit code, and the lines before the first empty one."""
    write_package(folder, cases(1), replace(facts(), privacy=facts().privacy | {"audit": audit}), volumetric=False)
    code = main([str(folder)])
    return code, capsys.readouterr().out.split("\n\n")[0].splitlines()


def test_sound_and_every_gate_passed(tmp_path: Path, capsys) -> None:
    code, lines = first_lines(tmp_path / "A", audit_of(), capsys)
    assert code == ExitCode.DONE and lines[0].endswith("A: sound: whole, unchanged and without contradiction")
    assert lines[1:] == ["  Every gate was measured and passed."]


def test_gates_that_failed_and_were_not_enforced_are_named_first(tmp_path: Path, capsys) -> None:
    """The command said nothing of them, and ended with 0."""
    code, lines = first_lines(tmp_path / "A", audit_of(("C_T", "FLD gap")), capsys)
    assert code == ExitCode.PARTIAL and "sound, but gates failed or were not measurable" in lines[0]
    assert lines[1] == "  The site did not enforce its gates (gates.enforce=false)."
    assert "Gates that failed: C_T 0.4 standard errors (wanted: >= 0.9, p 0.001, level 0.0083); FLD gap" in lines[2]


def test_gates_that_were_not_measurable_are_named_first(tmp_path: Path, capsys) -> None:
    code, lines = first_lines(tmp_path / "A", audit_of(unmeasured=("membership AUC", "FLD gap")), capsys)
    assert code == ExitCode.PARTIAL and "sound, but" in lines[0]
    assert "not measurable: FLD gap, membership AUC; nothing is known of what they look for." in lines[1]
    assert lines[2] == "  Each of the other 7 gates was measured and passed."


def test_gates_that_were_not_enforced_and_passed_are_said_to_be_so(tmp_path: Path, capsys) -> None:
    code, lines = first_lines(tmp_path / "A", {**audit_of(), "enforced": False}, capsys)
    assert code == ExitCode.DONE and lines[1] == "  The site did not enforce its gates (gates.enforce=false)."


def test_a_refused_export_and_a_package_of_an_earlier_release_are_not_sound(good: Path, tmp_path: Path, capsys) -> None:
    write_refused(tmp_path / "B")
    assert main([str(tmp_path / "B")]) == ExitCode.REFUSED
    shutil.copytree(good, tmp_path / "A")
    manifest = json.loads((tmp_path / "A" / "manifest.json").read_text())
    (tmp_path / "A" / "manifest.json").write_text(json_text(manifest | {"schema_version": 4}))
    assert main([str(tmp_path / "A")]) == ExitCode.REFUSED
    assert "schema_version 4, not 5; way out: let both sites use the same release" in capsys.readouterr().err


def test_the_table_of_gates_shows_each_limit_with_its_direction(tmp_path: Path, capsys) -> None:
    write_package(tmp_path / "A", cases(1), facts(), volumetric=False)
    assert main([str(tmp_path / "A")]) == ExitCode.DONE
    shown = capsys.readouterr().out
    for gate in audit_of()["gates"]:
        row = next(line for line in shown.splitlines() if line.startswith(gate["name"]))
        assert f"{gate['comparison']} {gate['limit']:g}" in row and gate["unit"] in row


def test_a_value_beyond_its_limit_that_chance_explains_is_said_to_be_so(tmp_path: Path, capsys) -> None:
    audit = audit_of()
    gate_named(audit, "C_T").update(limit=0.9)
    code, _ = first_lines(tmp_path / "A", audit, capsys)
    card = (tmp_path / "A" / "CARD.md").read_text()
    assert code == ExitCode.DONE and ">= 0.9 | 0.7 | <= 0.0083 | passed, as chance explains the value |" in card
