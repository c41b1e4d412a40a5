"""Audit the filter on a site's images.

    python -m memorization.audit --site-images images --out audit

Plants copies of the site's own images under many kinds of change and reports what the filter finds of them, and how
many honest images (real ones that are no copies) it drops. The folder holds PNG, JPEG or TIFF images, or is an
autoshare image set (the artifact of a ``slices`` stage). Everything written stays at the site: the sheet of copies
shows patients.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.command import command
from common.errors import InputError
from common.files import write_json, write_text
from common.image_set import load_image_set
from common.markdown import markdown_table
from common.progress import shown_progress
from common.settings import to_dict
from features.embedders import EMBEDDERS, build_embedder
from memorization.copy_score import REGISTRATION, embedding_scorer
from memorization.planted.copies import KINDS, Kind, plant
from memorization.planted.planted_audit import RATES, FilterAudit, Recall, audit_paper_rule, audit_scorers

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
EMBEDDER_BATCH = 32


def add_image_arguments(parser: argparse.ArgumentParser, size_px: int) -> None:
    """What a site's images are, for ``read_site_images``, and what makes features of them."""
    parser.add_argument("--site-images", type=Path, required=True, help="folder of images, or an image set")
    parser.add_argument("--patient", default="(.+)", help="regular expression: its first group is the patient")
    parser.add_argument("--patients", type=Path, help="CSV instead: file names, then patients, below a header")
    parser.add_argument("--size-px", type=int, default=size_px, help="images of files are resized to this square")
    parser.add_argument("--embedder", choices=EMBEDDERS, default=EMBEDDERS[0], help="what makes features of images")
    parser.add_argument("--weights", help="a local file, for openclip")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_arguments(parser, size_px=128)
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and pictures; stays at the site")
    parser.add_argument("--level", type=float, default=0.05, help="of honest images that may be dropped")
    parser.add_argument("--copies", type=int, default=8, help="of every kind and strength")
    parser.add_argument("--device", default="cpu", help="of the embedder")
    parser.add_argument(
        "--site-descriptor",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train a descriptor on half of the indexed patients and audit it too: minutes on one core",
    )


@command(_add_arguments)
def main(chosen: argparse.Namespace) -> None:
    """Audit, write the tables and pictures, print the table."""
    from memorization.pictures import draw_rows

    images, patients = read_site_images(chosen.site_images, chosen.patient, chosen.size_px, chosen.patients)
    audits = _audit(chosen, images, patients)
    write_audit(chosen.out, audits, len(images), len(set(patients)))
    draw_rows(chosen.out / "copies.png", {kind.name: _example(kind, images, chosen.seed) for kind in KINDS})
    sys.stdout.write((chosen.out / "audit.md").read_text(encoding="utf-8"))


def read_site_images(
    folder: Path, patient: str, size_px: int, table: Path | None = None
) -> tuple[np.ndarray, list[str]]:
    """Images (n, channels, size, size) and the patient of each.

    Args:
        patient: regular expression whose first group, in a file's name without ending, is the patient.
        table: CSV instead, with a header, file names in its first column and patients in its second.

    Raises:
        InputError: no images, one that cannot be read, or one whose patient is not found.
    """
    if (folder / "index.json").is_file():
        stored = load_image_set(folder)
        return stored.images, [str(entry.patient) for entry in stored.entries]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise InputError(
            f"there is no image ({', '.join(ENDINGS)})", where=folder, fix="name the folder of the site's images"
        )
    images = [_read(path, size_px) for path in files]
    channels = {image.shape[0] for image in images}
    if len(channels) > 1:
        raise InputError("there are grey and colour images", where=folder, fix="give images of one kind")
    if table is None:
        return np.stack(images), [_patient(path, patient) for path in files]
    return np.stack(images), _from_table(table, files)


def _audit(chosen: argparse.Namespace, images: np.ndarray, patients: Sequence[str]) -> list[FilterAudit]:
    """The paper's rule, every scorer alone, and the fused filter last."""
    from memorization.site_descriptor.scorer import SITE_DESCRIPTOR

    embedder = build_embedder(chosen.embedder, batch_size=EMBEDDER_BATCH, device=chosen.device, weights=chosen.weights)
    scorers = [embedding_scorer(embedder), REGISTRATION]
    learners = [SITE_DESCRIPTOR] if chosen.site_descriptor else []
    with shown_progress() as progress:
        paper = audit_paper_rule(images, patients, embedder, chosen.copies, chosen.seed)
        audits = audit_scorers(
            images, patients, scorers, chosen.level, chosen.copies, chosen.seed, progress=progress, learners=learners
        )
    return [paper, *audits]


def write_audit(folder: Path, audits: Sequence[FilterAudit], n_images: int, n_patients: int) -> None:
    """``audit.json``, ``audit.md`` and ``recall.png``."""
    from memorization.pictures import draw_shares

    folder.mkdir(parents=True, exist_ok=True)
    filters = [_plain(audit) for audit in audits]
    write_json(folder / "audit.json", {"n_images": n_images, "n_patients": n_patients, "filters": filters})
    write_text(folder / "audit.md", _as_markdown(audits, n_images, n_patients))
    tables = [audit.by_kind(RATES[0]) for audit in audits]
    rows = {kind: [(table[kind], f"{table[kind]:.2f}") for table in tables] for kind in tables[0]}
    label = f"planted copies found where at most {RATES[0]:.0%} of honest images are dropped"
    draw_shares(folder / "recall.png", rows, label, [audit.name.replace(", ", "\n") for audit in audits])


def _as_markdown(audits: Sequence[FilterAudit], n_images: int, n_patients: int) -> str:
    """Recall by kind for every filter at a measured false-drop rate of 5 %, and of the last filter all strengths."""
    names = [audit.name for audit in audits]
    by_kind = [audit.by_kind(RATES[0]) for audit in audits]
    figures = {kind: [f"{table[kind]:.2f}" for table in by_kind] for kind in by_kind[0]} | {
        "**mean**": [f"**{np.mean(list(table.values())):.3f}**" for table in by_kind],
        "**worst kind**": [f"**{min(table.values()):.2f}**" for table in by_kind],
        f"mean at {RATES[1]:.0%}": [f"{np.mean(list(audit.by_kind(RATES[1]).values())):.3f}" for audit in audits],
        "mean at its own level": [f"{np.mean(list(audit.by_kind().values())):.3f}" for audit in audits],
        "level": [f"{audit.level:.3f}" for audit in audits],
        "honest images dropped": [_share(audit.false_drops) for audit in audits],
        "kappa between calibrations": [f"{audit.consistency:.2f}" for audit in audits],
    }
    last = audits[-1]
    strengths = [
        [
            condition.kind,
            f"{condition.strength:g} {condition.unit}".strip(),
            _share(recall),
            *(_share(last.recall_at[rate][condition]) for rate in RATES),
            f"{last.auc[condition]:.3f}",
        ]
        for condition, recall in last.recall.items()
    ]
    lines = [
        f"{n_images} images of {n_patients} patients. Copies found, by kind (mean over strengths), where at most "
        f"{RATES[0]:.0%} of the honest images are dropped:",
        "",
        *markdown_table(["kind", *names], [[name, *cells] for name, cells in figures.items()]),
        "",
        f"Every strength, {names[-1]}:",
        "",
        *markdown_table(["kind", "strength", "found at its level", "at 5 %", "at 1 %", "AUC"], strengths),
    ]
    return "\n".join(lines) + "\n"


def _share(recall: Recall) -> str:
    low, high = recall.interval
    return f"{recall.value:.2f} [{low:.2f}, {high:.2f}]"


def _plain(audit: FilterAudit) -> dict[str, object]:
    """As JSON: conditions become rows."""
    rows = [
        {
            **to_dict(condition),
            **to_dict(recall),
            "auc": audit.auc[condition],
            "found_at": {f"{rate:g}": table[condition].found for rate, table in audit.recall_at.items()},
        }
        for condition, recall in audit.recall.items()
    ]
    drops = audit.false_drops
    return {
        "name": audit.name,
        "level": audit.level,
        "honest": {"n": drops.n, "dropped": drops.found, "interval": list(drops.interval)},
        "consistency_kappa": audit.consistency,
        "copies": rows,
    }


def _read(path: Path, size_px: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as stored:
            image = stored.convert("RGB" if stored.mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr") else "L")
            array = np.asarray(image.resize((size_px, size_px), Image.Resampling.BOX))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"cannot be read as an image ({error})", where=path, fix="repair or remove it") from error
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]


def _from_table(table: Path, files: Sequence[Path]) -> list[str]:
    with table.open(newline="", encoding="utf-8") as stream:
        patients = {row[0]: row[1] for row in list(csv.reader(stream))[1:] if len(row) > 1}
    missing = [path.name for path in files if path.name not in patients]
    if missing:
        raise InputError(f"{missing[0]} has no patient ({len(missing)} files)", where=table, fix="add rows for them")
    return [patients[path.name] for path in files]


def _patient(path: Path, expression: str) -> str:
    found = re.match(expression, path.stem)
    if found is None or not found.groups():
        raise InputError(
            f"this name has no patient by {expression!r}",
            where=path,
            fix="give --patient an expression with one group, as '(.+)_[0-9]+'",
        )
    return str(found.group(1))


def _example(kind: Kind, images: np.ndarray, seed: int) -> np.ndarray:
    """The first image under every strength."""
    pair = images[:2]
    return np.stack([plant(kind, strength, pair[:1], pair[1:], seed)[0] for strength in kind.strengths])


if __name__ == "__main__":
    sys.exit(main())
