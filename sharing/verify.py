"""Check a package that was received, or one that is about to be sent: ``python -m sharing.verify <package>``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sharing.received import Package, verify_package
from sharing.refusal import PackageError
from sharing.refused import read_refusal
from sharing.schema import CARD, DATASET, FIGURES, MANIFEST

EXIT_REFUSED = 3
CHECKED = f"""  folder: no links, special files, hidden or other files, empty folders; sizes and numbers within bounds
  {MANIFEST}, {FIGURES}: known schema, keys, types and bounds; no paths, no hashes but those of the files
  {DATASET}, {CARD}: what follows from the manifest, to the byte
  files: those of the manifest, no more and no fewer, with its SHA-256
  images and labels: size, type, number of slices and label ids as in the manifest; no metadata, no bytes besides
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one package: 0 with what was checked, 1 with a line a reason, 3 where its site refused to export it."""
    parser = argparse.ArgumentParser(
        prog="python -m sharing.verify", description="Check a package of synthetic images."
    )
    parser.add_argument("package", type=Path, help="the folder; it is read, and nothing is written")
    parser.add_argument(
        "--written-here", action="store_true", help="before sending: no text may name this machine or its user"
    )
    chosen = parser.parse_args(arguments)
    try:
        refusal = read_refusal(chosen.package)
        if refusal is not None:
            reasons = "".join(f"  {gate}\n" for gate in refusal.failed)
            sys.stderr.write(f"{chosen.package}: no package; site {refusal.site} refused to export it:\n{reasons}")
            return EXIT_REFUSED
        package = verify_package(chosen.package, written_here=chosen.written_here)
    except PackageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{_summary(package)}\n{CHECKED}")
    return 0


def _summary(package: Package) -> str:
    manifest = package.manifest
    height, width = manifest.image_size_px
    return (
        f"{package.folder}: whole and unchanged; site {manifest.site}, {manifest.n_images} images of "
        f"{height} x {width} pixels in {manifest.n_cases} cases, {len(manifest.files) + 1} files, "
        f"{package.n_bytes} bytes; checked:"
    )


if __name__ == "__main__":
    sys.exit(main())
