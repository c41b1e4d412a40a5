"""What a site writes instead of a package that its gates refused: the figures, the reasons, and what would help."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from common.files import write_json, write_text
from common.settings import to_dict
from memorization.gates import FAILED
from sharing.card import gate_table
from sharing.errors import SAME_RELEASE, PackageError, Reason, said, shown
from sharing.folder import read_document, stamp_of, typed
from sharing.schema import MANIFEST, SCHEMA_VERSION, is_site_name
from sharing.shared_audit import SharedAudit, faults_of_audit
from sharing.strict_json import MAX_JSON_BYTES

REFUSED, REFUSED_CARD = "refused.json", "REFUSED.md"
CARD = """# Site {site} shares nothing

The site's gates refused the export of its synthetic images. This folder holds no image and is no package.

{reasons}

{gates}

{way_out}
"""
NOT_ENFORCED = (
    "The site can still share them on its own responsibility, with `gates.enforce=false`. "
    "The package then says first that gates were not enforced, and which failed or were not measurable."
)
NOTHING_KEPT = "The filter dropped every image: there is nothing to share, whether gates are enforced or not."


@dataclass(frozen=True)
class FailedGate:
    """Why a gate refused, and the way out."""

    name: str
    reason: str
    what_would_help: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}; what would help: {self.what_would_help}"


@dataclass(frozen=True)
class Refusal:
    """``refused.json``."""

    site: str
    audit: SharedAudit
    failed: tuple[FailedGate, ...]
    schema_version: int = SCHEMA_VERSION
    written_by: str = ""

    def __str__(self) -> str:
        return f"site {self.site} refused to export: " + "; ".join(str(gate) for gate in self.failed)


def write_refusal(folder: Path, refusal: Refusal) -> None:
    """Write ``refused.json`` and ``REFUSED.md`` into the empty ``folder``."""
    reasons = "\n".join(f"- {gate}" for gate in refusal.failed)
    way_out = NOT_ENFORCED if refusal.audit.n_audited else NOTHING_KEPT
    card = CARD.format(site=refusal.site, reasons=reasons, gates=gate_table(refusal.audit.gates), way_out=way_out)
    write_text(folder / REFUSED_CARD, card)
    write_json(folder / REFUSED, {**to_dict(refusal), "written_by": f"autoshare {version('autoshare')}"})


def read_refusal(folder: Path) -> Refusal | None:
    """The refusal in a stranger's folder, or None where there is none or a manifest stands beside it.

    Raises:
        PackageError: a refusal that our writer would not have written.
    """
    if not (folder / REFUSED).is_symlink() and not (folder / REFUSED).exists():
        return None
    if (folder / MANIFEST).exists():
        return None  # whoever checks it as a package finds a file that no package holds
    status = (folder / REFUSED).lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON_BYTES:
        raise PackageError.of(folder, REFUSED, f"is no file of at most {MAX_JSON_BYTES} bytes")
    content = read_document(folder, REFUSED, stamp_of(status))
    if content.get("schema_version") != SCHEMA_VERSION:
        problem = f"has schema_version {shown(content.get('schema_version'))}, not {SCHEMA_VERSION}"
        raise PackageError.of(folder, REFUSED, problem, SAME_RELEASE)
    refusal = typed(Refusal, content, folder, REFUSED)
    faults = [said(fault) for fault in faults_of_audit(refusal.audit)]
    failed = [gate.name for gate in refusal.audit.gates if gate.decision == FAILED]
    if refusal.audit.n_audited and not refusal.audit.enforced:
        faults.append("refuses, although it says that gates were not enforced")
    if not is_site_name(refusal.site):
        faults.append("names no site")
    if not refusal.failed or [gate.name for gate in refusal.failed] != failed:
        faults.append(f"names as failed other gates than its audit does, {shown(failed)}")
    if not all(text.isprintable() for gate in refusal.failed for text in (gate.reason, gate.what_would_help)):
        faults.append("holds a control character")
    if faults:
        raise PackageError(folder, [Reason(REFUSED, fault) for fault in faults])
    return refusal
