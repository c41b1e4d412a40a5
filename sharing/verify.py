"""Check a package that was received, or one that is about to be sent.

    python -m sharing.verify received/A

The first lines say whether the package is sound, and which gates were not enforced, failed or were not measurable.

Exit code 0: sound, and every gate was measured and passed. 6: sound, but a gate failed (and was not enforced) or was
not measurable. 3: not sound, or its site refused to export it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from common.command import command
from common.errors import InputError
from common.exit_codes import ExitCode
from evaluation.results import aligned
from sharing.card import GATE_COLUMNS, gate_row
from sharing.received import Package, verify_package
from sharing.refused import read_refusal
from sharing.schema import CARD, DATASET, FIGURES, MANIFEST
from sharing.shared_audit import is_all_passed, statements

CHECKED = f"""  folder: no links, special files, hidden or other files, empty folders; sizes and numbers within bounds
  {MANIFEST}, {FIGURES}: known schema, keys, types and bounds; no paths, no hashes but those of the files
  {DATASET}, {CARD}: what follows from the manifest, to the byte
  gates: every figure is the one it is named after, every decision follows from its figure and its limit
  files: those of the manifest, no more and no fewer, with its SHA-256
  images and labels: size, type, number of slices and label ids as in the manifest; no metadata, no bytes besides
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", type=Path, help="the folder; it is read, and nothing is written")
    parser.add_argument(
        "--written-here", action="store_true", help="before sending: no text may name this machine or its user"
    )


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> ExitCode:
    """Check one package; print what was checked, or a line for each reason why it is refused."""
    if not os.path.lexists(chosen.package):
        raise InputError("there is no such folder", where=chosen.package, fix="give the folder of a package")
    refusal = read_refusal(chosen.package)
    if refusal is not None:
        reasons = "".join(f"  {gate}\n" for gate in refusal.failed)
        sys.stderr.write(f"{chosen.package}: no package; site {refusal.site} refused to export it:\n{reasons}")
        return ExitCode.REFUSED
    package = verify_package(chosen.package, written_here=chosen.written_here)
    sys.stdout.write(f"{_verdict(package)}\n\n{_gates(package)}\n\n{_summary(package)}\n{CHECKED}")
    return ExitCode.DONE if is_all_passed(package.audit) else ExitCode.PARTIAL


def _verdict(package: Package) -> str:
    """The first lines: sound or sound with a but, and every reason for the but."""
    sound = (
        "sound: whole, unchanged and without contradiction"
        if is_all_passed(package.audit)
        else "sound, but gates failed or were not measurable"
    )
    return "\n".join([f"{package.folder}: {sound}", *(f"  {said}" for said in statements(package.audit))])


def _gates(package: Package) -> str:
    """Every gate with figure, unit, limit and decision."""
    return "\n".join(
        aligned([GATE_COLUMNS, *([cell.strip("*") for cell in gate_row(gate)] for gate in package.audit.gates)])
    )


def _summary(package: Package) -> str:
    manifest = package.manifest
    height, width = manifest.image_size_px
    return (
        f"{package.folder}: site {manifest.site}, {manifest.n_images} images of "
        f"{height} x {width} pixels in {manifest.n_cases} cases, {len(manifest.files) + 1} files, "
        f"{package.n_bytes} bytes; checked:"
    )


if __name__ == "__main__":
    sys.exit(main())
