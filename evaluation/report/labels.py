"""The report's section on labels that a generator made with its images, compared with those the network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report import html as page
from evaluation.report.fields import stored_pictures
from evaluation.report.run import RunFiles, StageFolder, read_mapping

AGREEMENT, PICTURE = "agreement.json", "least_alike.png"
HOW_TO_READ = (
    "The generator made a label map with every image, and the site's network labelled the same kept images. Neither "
    "map is a reference: low agreement says that one of them is wrong, but not which one. Dice is the mean over the "
    "images where at least one map has the class, with a 95 % interval over images."
)
PICTURE_CAPTION = "the images whose two label maps agree least, both outlined"
HEADER = ("Class", "Dice", "images compared", "neither has it", "of all pixels, generated", "predicted")
SHARED = {"network": "predicted labels are shared", "generated": "generated labels are shared"}


def labels_section(files: RunFiles) -> page.Html | None:
    """A group of rows for each site and fold, and a picture a site; None where no generator made labels."""
    read = [(folder, read_mapping(folder.path / AGREEMENT)) for folder in files.stage_folders("label")]
    found = [(folder, agreement) for folder, agreement in read if agreement]
    if not found:
        return None
    pictures = stored_pictures(files, "label", {PICTURE: PICTURE_CAPTION})
    groups = {_name(folder, agreement): _rows(agreement) for folder, agreement in found}
    return page.join(page.note(HOW_TO_READ), page.table(HEADER, groups), *pictures)


def labelled_by(files: RunFiles, fold: int, site: str) -> str:
    """Who made the labels that a site shares, in words."""
    is_generated = read_mapping(files.folder(fold) / "label" / site / AGREEMENT).get("shared") == "generated"
    return "the generator" if is_generated else "the site's network"


def _name(folder: StageFolder, agreement: Mapping[str, Any]) -> str:
    return f"Site {folder.site}, fold {folder.fold}: {agreement['n_images']} kept images, {SHARED[agreement['shared']]}"


def _rows(agreement: Mapping[str, Any]) -> list[list[str]]:
    """The classes, and all of them together where there are several."""
    rows = [
        [one["label"], _dice(one), str(one["n_compared"]), str(one["n_both_empty"]), *_shares(one)]
        for one in agreement["classes"]
    ]
    return [*rows, ["any class", "", "", "", *_shares(agreement)]] if len(rows) > 1 else rows


def _dice(one: Mapping[str, Any]) -> str:
    if one["dice"] is None:
        return "-"
    if one["low"] is None:
        return f"{one['dice']:.3f}"
    return page.join(f"{one['dice']:.3f}", page.element("small", f"{one['low']:.3f} to {one['high']:.3f}"))


def _shares(record: Mapping[str, Any]) -> tuple[str, str]:
    return f"{record['generated_share']:.1%}", f"{record['predicted_share']:.1%}"
