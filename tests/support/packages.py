"""Small packages, good ones, and what is needed to make them bad and sign them again."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.files import json_text, sha256_of_file
from common.settings import from_dict, to_dict
from gan.settings import GanConfig, GanSettings
from memorization.gates import DROPPED_SHARE, EVIDENCE, GATES, LEAKAGE_GATES, PLANTED_RECALL, GateKind
from memorization.leakage.metrics import METRICS
from sharing import FailedGate, PackageFacts, Refusal, SharedAudit, SyntheticCase, write_package, write_refusal

FIGURE = {"value": 0.4, "low": 0.3, "high": 0.5}


def audit_of(failed: tuple[str, ...] = (), share: float = 0.2, unmeasured: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of four kept images, ``share`` of all dropped; gates are enforced unless some failed.

    Every figure of leakage is 0.4: within the limits 0.5 and 0.3, and beyond 0.1 and 0.9, the limits of those that
    failed.
    ``unmeasured``: leakage gates for which the site has too few patients.
    """
    gates = [gate_of(kind, kind.name in failed, kind.name in unmeasured) for kind in GATES]
    levels = sum(gate["level"] is not None for gate in gates)
    for gate in gates:
        gate |= {} if gate["level"] is None else {"level": 0.05 / levels}
        gate |= {DROPPED_SHARE: {"value": share}, EVIDENCE: {"value": float(levels)}}.get(gate["name"], {})
    p_of = {gate["name"]: gate["p"] for gate in gates}
    return {
        "n_audited": 4,
        "enforced": not failed,
        "familywise_level": 0.05,
        "figures": [{"name": one.name, "unit": one.unit, **FIGURE, "p": p_of.get(one.name)} for one in METRICS],
        "planted": {"n": 65, "found": 63, "mean_recall": 0.95, "honest_dropped_share": 0.07},
        "gates": gates,
    }


def gate_of(kind: GateKind, fails: bool, is_unmeasured: bool) -> dict[str, Any]:
    """A gate as JSON holds it; its level follows from how many have one."""
    limits = {"<=": (0.5, 0.1), ">=": (0.3, 0.9)}[kind.comparison]
    gate = {"name": kind.name, "unit": kind.unit, "value": 0.4, "comparison": kind.comparison, "limit": limits[fails]}
    gate |= {"p": 0.001 if fails else 0.7, "level": 0.05, "decision": "failed" if fails else "passed"}
    if kind not in LEAKAGE_GATES:
        gate |= {"p": None, "level": None, "limit": {DROPPED_SHARE: 0.5, PLANTED_RECALL: 0.9, EVIDENCE: 1.0}[kind.name]}
        gate |= {"value": 0.95}
    if is_unmeasured:
        gate |= {"value": None, "p": None, "level": None, "decision": "not measurable"}
    return gate


def gate_named(audit: dict[str, Any], name: str) -> dict[str, Any]:
    """One gate of an audit, to be changed."""
    return next(gate for gate in audit["gates"] if gate["name"] == name)


PRIVACY = {
    "rule": "percentile",
    "embedder": "efficientnet_lite0",
    "calibration": "cross_fit",
    "percentile": 5.0,
    "threshold_l2": 0.02,
    "n_sampled": 5,
    "n_kept": 4,
    "n_dropped": 1,
    "audit": audit_of(),
}
ONE_STAGE = ((1, 1),)
GENERATOR = {"name": "stylegan2", **to_dict(GanSettings(GanConfig(), (12, 20), 1, ONE_STAGE, ((3, 3),), 4.0, 500, 0.2))}


def facts(channels: tuple[str, ...] = ("grey",), site: str = "A") -> PackageFacts:
    return PackageFacts(site, channels, {"lung": 1}, (999.0, 1.0, 1.0), "source", GENERATOR, PRIVACY)


def cases(n_channels: int, dtype: type = np.uint8, site: str = "A") -> list[SyntheticCase]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max, (4, n_channels, 1, 12, 20), dtype=dtype)
    labels = rng.integers(0, 2, (4, 1, 12, 20), dtype=np.uint8)
    return [SyntheticCase(f"{site}_syn_{i}", image, label) for i, (image, label) in enumerate(zip(images, labels))]


def write_refused(folder: Path) -> None:
    """What stands in the place of a package of the site that ``folder`` is named after."""
    audit = from_dict(SharedAudit, {**audit_of(("C_T",)), "enforced": True})
    write_refusal(folder, Refusal(folder.name, audit, (FailedGate("C_T", "-9 is beyond its limit", "more patients"),)))


def write_volumes(folder: Path) -> None:
    """Two stacks of two slices, of 12 x 20 pixels, 4 x 0.5 x 0.75 mm."""
    described = PackageFacts("A", ("CT",), {"organ": 1}, (4.0, 0.5, 0.75), "source", GENERATOR, PRIVACY)
    image, labels = np.full((1, 2, 12, 20), -700.0, np.float32), np.ones((2, 12, 20), np.uint8)
    write_package(folder, [SyntheticCase(f"A_syn_{i}", image, labels) for i in range(2)], described, True)


def sign(folder: Path) -> None:
    """What a hostile sender does last: the checksums of what lies in the folder now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    manifest["files"] = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
    (folder / "manifest.json").write_text(json_text(manifest))


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    sign(folder)


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a JSON file, and sign if the manifest is another."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json_text(content))
    if name != "manifest.json":
        sign(folder)


def replace_text(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) >= 1
    (folder / name).write_text(text.replace(old, new, 1))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG made by hand: ``rows`` before compression, ``extra`` chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    compressed = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + compressed + chunk(b"IEND", b"")
