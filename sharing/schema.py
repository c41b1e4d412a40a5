"""What a package's JSON may say: every key with its type, and the bounds of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.settings import from_dict
from generators.bounded_settings import MAX_LIST_LENGTH, NAME, faults_of_bounded
from generators.registry import built_in_adapters, find_generator
from memorization.calibration import RULES
from memorization.gates import FAILED
from nnunetv2_mod.raw_dataset import DATASET_JSON, IMAGES, LABELS, NIFTI, PNG, image_name
from sharing.shared_audit import Fault, SharedAudit, failing, faults_of_audit
from sharing.strict_json import strings_of

SCHEMA_VERSION = 5
MANIFEST, DATASET, FIGURES, CARD = "manifest.json", DATASET_JSON, "privacy.json", "CARD.md"
DROP_LIST, DROP_LIST_VERSION = "drop.json", 1  # what a site answers about another's package
DOCUMENTS = (DATASET, FIGURES, CARD)  # what the manifest lists besides images and labels
DTYPES = {PNG: ("uint8", "uint16"), NIFTI: ("float32",)}  # of images; labels are uint8
GENERATOR_KEYS = ("name", "external")  # written beside the settings

MAX_FILES = 200_000  # 100 000 images and their labels; each costs a receiver an open file and about 200 bytes
MAX_IMAGE_PX = 2**24  # 4096 x 4096, a mammogram; decoded whole, 48 MiB as RGB
MAX_PACKAGE_PX = 2**36  # 100 000 images of 512 x 512 with labels are 2**35.6; inflating so many takes minutes
MAX_CHANNELS = 16
MAX_LABEL_ID = 255  # labels are uint8
MAX_SPACING_MM = 10_000.0  # nnU-Net writes 999 for images without a third axis
MAX_DISTANCE_L2 = 4.001  # squared, between unit vectors, with rounding
MAX_CASE_NAME_CHARS = 64 + 5 + 9  # a site, "_syn_", a number

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_PROGRAM = re.compile(r"autoshare [0-9][A-Za-z0-9.+]{0,31}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[^<>|`\[\]\\]{1,64}")  # of people's words, those that no Markdown reader takes for more
_HASH = re.compile(r"[0-9A-Fa-f]{16}")
_PATH = re.compile(r"""(?:^|[\s"'=(:,;])(?:/[\w.]|[A-Za-z]:[\\/]|\\\\\w|~\w*/|file:/)""")


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``; ``files`` (name in the package -> SHA-256) names every other file."""

    schema_version: int
    written_by: str
    site: str
    n_cases: int
    n_images: int
    image_size_px: tuple[int, int]  # (height, width)
    dtype: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]  # without the background
    file_ending: str
    spacing_mm: tuple[float, float, float]  # (through-plane, row, column)
    intensity_space: str
    generator: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def rgb(self) -> bool:
        """Whether the three channels of an image lie in one file, as nnU-Net reads colour."""
        return (self.file_ending, self.dtype, len(self.channel_names)) == (PNG, "uint8", 3)

    @property
    def cases(self) -> list[str]:
        """Names of the cases, sorted."""
        inside = (name.removeprefix(f"{LABELS}/") for name in self.files if name.startswith(f"{LABELS}/"))
        return sorted(name.removesuffix(self.file_ending) for name in inside)

    def images_of(self, case: str) -> list[str]:
        """The files that hold a case's channels."""
        n_files = 1 if self.rgb else len(self.channel_names)
        return [f"{IMAGES}/{image_name(case, channel, self.file_ending)}" for channel in range(n_files)]

    def labels_of(self, case: str) -> str:
        """The file that holds a case's labels."""
        return f"{LABELS}/{case}{self.file_ending}"


@dataclass(frozen=True)
class PrivacyFigures:
    """``privacy.json``: totals of the filter against copies, and the audit that let the package out."""

    rule: str
    embedder: str
    calibration: str
    percentile: float
    threshold_l2: float | None  # squared distance of unit vectors; the fused rule has none
    n_sampled: int
    n_kept: int
    n_dropped: int
    audit: SharedAudit


def is_site_name(name: str) -> bool:
    """Whether a site may be called so."""
    return bool(_SITE.fullmatch(name))


def is_case_name(name: str, site: str) -> bool:
    """Whether ``name`` is a site's name and a number, as every synthetic case is called."""
    return re.fullmatch(rf"{re.escape(site)}_syn_[0-9]{{1,9}}", name) is not None


def faults_of_manifest(manifest: Manifest) -> Iterator[Fault]:
    """Values that no package of ours has."""
    m, (height, width), n_channels = manifest, manifest.image_size_px, len(manifest.channel_names)
    n_px = m.n_images * height * width * (n_channels + 1)
    names, ids = [*m.channel_names, *m.labels], list(m.labels.values())
    yield from failing(
        ("written_by", m.written_by, bool(_PROGRAM.fullmatch(m.written_by)), "autoshare and its version"),
        ("site", m.site, is_site_name(m.site), "1 to 64 letters, digits, and _ . -"),
        ("n_cases", m.n_cases, 1 <= m.n_cases <= m.n_images, "1 to the number of images"),
        ("images and labels of pixels", n_px, n_px <= MAX_PACKAGE_PX, f"at most {MAX_PACKAGE_PX} pixels in all"),
        ("image_size_px", m.image_size_px, min(height, width) >= 1, "pixels, at least 1"),
        ("image_size_px", m.image_size_px, height * width <= MAX_IMAGE_PX, f"at most {MAX_IMAGE_PX} pixels"),
        ("file_ending", m.file_ending, m.file_ending in DTYPES, f"one of {tuple(DTYPES)}"),
        ("dtype", m.dtype, m.dtype in DTYPES.get(m.file_ending, ()), "what its file type holds"),
        ("channel_names", n_channels, 1 <= n_channels <= MAX_CHANNELS, f"1 to {MAX_CHANNELS}"),
        ("labels", ids, bool(ids) and sorted(ids) == list(range(1, len(ids) + 1)), "ids 1, 2, ... without gaps"),
        ("labels", len(ids), len(ids) <= MAX_LABEL_ID, f"at most {MAX_LABEL_ID}"),
        ("labels", "background", "background" not in m.labels, "names of other things"),
        ("intensity_space", m.intensity_space, m.intensity_space in ("source", "normalised"), "known"),
    )
    for name in names:
        if not (_LABEL.fullmatch(name) and name.isprintable()):
            yield "channel_names, labels", name, r"1 to 64 printable characters without < > | ` [ ] \ "
    if not all(0 < value <= MAX_SPACING_MM for value in manifest.spacing_mm):
        yield "spacing_mm", manifest.spacing_mm, f"above 0 and at most {MAX_SPACING_MM:g} mm"
    yield from _faults_of_generator(manifest.generator)
    bad_sums = (sum_ for sum_ in manifest.files.values() if not _CHECKSUM.fullmatch(sum_))
    yield from (("files", sum_, "a SHA-256 in 64 hexadecimal digits") for sum_ in bad_sums)


def _is_threshold(figures: PrivacyFigures) -> bool:
    if figures.threshold_l2 is None:
        return figures.rule == "fused"
    return figures.rule == "percentile" and 0 <= figures.threshold_l2 <= MAX_DISTANCE_L2


def faults_of_figures(figures: PrivacyFigures, n_images: int) -> Iterator[Fault]:
    """Values that no filter and no audit writes, or that contradict the number of images shared."""
    f, n_made = figures, figures.n_kept + figures.n_dropped
    yield from failing(
        ("embedder", f.embedder, bool(_WORD.fullmatch(f.embedder)), "a name"),
        ("calibration", f.calibration, bool(_WORD.fullmatch(f.calibration)), "a name"),
        ("percentile", f.percentile, 0 <= f.percentile <= 100, "0 to 100"),
        ("rule", f.rule, f.rule in RULES, f"one of {RULES}"),
        ("threshold_l2", f.threshold_l2, _is_threshold(f), f"0 to {MAX_DISTANCE_L2}, null if fused"),
        ("n_dropped", f.n_dropped, f.n_dropped >= 0, "0 or more"),
        ("n_kept", f.n_kept, f.n_kept == n_images, f"the manifest's n_images, {n_images}"),
        ("n_sampled", f.n_sampled, f.n_sampled == n_made, "n_kept and n_dropped together"),
    )
    audit = figures.audit
    if not 1 <= audit.n_audited <= figures.n_kept:
        yield "audit.n_audited", audit.n_audited, "1 to n_kept"
    yield from faults_of_audit(audit, figures.n_sampled, figures.n_dropped)
    if audit.enforced:
        failed = (gate.name for gate in audit.gates if gate.decision == FAILED)
        yield from (("audit.gates", name, "not failed, where gates are enforced") for name in failed)


def telling_texts(content: Any, names_of_here: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Texts that name a machine or a file, and what they name.

    Args:
        names_of_here: names of this machine and this user, where it is the one that wrote the package.
    """
    here = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names_of_here) or r"(?!)", re.IGNORECASE)
    for text in strings_of(content):
        if _PATH.search(text):
            yield text, "an absolute path"
        if _HASH.search(text):
            yield text, "what may be the hash of a file"
        if here.search(text):
            yield text, "the name of this machine or user"


def _faults_of_generator(generator: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings have the keys and types of a generator of this installation, so that none can hold anything else.

    Those of an ``external`` generator, whose code the receiver may not have, are bounded names and numbers. Nothing is
    imported that a package names: the adapters are those of ``config/generator``.
    """
    name = generator.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield "generator.name", name, "at most 32 lower-case letters, digits and _"
        return
    shared_type = find_generator(name).shared_type if name in built_in_adapters() else None
    settings = {key: value for key, value in generator.items() if key not in GENERATOR_KEYS}
    if "external" in generator:
        if generator["external"] is not True:
            yield "generator.external", generator["external"], "true, or not there"
        if shared_type is not None:
            yield "generator.name", name, "another name, as that is a generator of autoshare"
        yield from faults_of_bounded(settings, "generator")
        return
    if shared_type is None:
        yield "generator.name", name, f"one of {sorted(built_in_adapters())}"
        return
    try:
        from_dict(shared_type, settings, "generator")
    except TypeError as error:
        yield "generator", str(error), f"the settings of {name}"
    yield from _unplain(settings, "generator")


def _unplain(value: Any, where: str) -> Iterator[Fault]:
    if isinstance(value, str) and not _WORD.fullmatch(value):
        yield where, value, "a word"
    elif isinstance(value, list) and len(value) > MAX_LIST_LENGTH:
        yield where, f"{len(value)} values", f"at most {MAX_LIST_LENGTH}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _unplain(item, f"{where}.{key}")
