"""What a site answers when it has compared another site's package with its own patients: names of cases, no more.

``drop.json`` says which cases of one package resemble a patient of the site that checked it. It has no distances, no
scores and no numbers of real images; what it reveals is in docs/what-leaves-a-site.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import write_json
from common.settings import to_dict
from sharing.errors import PackageError, Reason, shown
from sharing.folder import list_only, read_document, typed
from sharing.received import Package
from sharing.schema import DROP_LIST, DROP_LIST_VERSION, MAX_CASE_NAME_CHARS
from sharing.strict_json import MAX_JSON_BYTES

LEFT_OUT_AGAIN = "do not merge; ask the site that checked for a list that its release wrote"
JSON_BYTES_AROUND_A_NAME = 8  # quotes, comma, indentation, line end


@dataclass(frozen=True)
class DropList:
    """``drop.json``; ``cases`` are sorted, each once."""

    schema_version: int
    checked_by: str  # site
    package_of: str  # site
    cases: tuple[str, ...]


def write_drop_list(folder: Path, checked_by: str, package: Package, cases: Iterable[str]) -> None:
    """Write the answer and check it as its receiver will.

    Raises:
        PackageError: a receiver would refuse it.
    """
    answer = DropList(DROP_LIST_VERSION, checked_by, package.manifest.site, tuple(sorted(cases)))
    write_json(folder / DROP_LIST, to_dict(answer))
    try:
        read_drop_list(folder, checked_by, package)
    except PackageError:
        (folder / DROP_LIST).unlink()
        raise


def read_drop_list(folder: Path, checked_by: str, package: Package) -> frozenset[str]:
    """The cases of ``package`` that the site ``checked_by`` wants dropped; a stranger wrote the answer.

    Raises:
        PackageError: anything but the one file, with the listed keys and names of the package's cases.
    """
    known = set(package.manifest.cases)
    max_bytes = MAX_JSON_BYTES + len(known) * (MAX_CASE_NAME_CHARS + JSON_BYTES_AROUND_A_NAME)
    stamp = list_only(folder, DROP_LIST, max_bytes)
    content = read_document(folder, DROP_LIST, stamp, max_bytes=max_bytes)
    answer = typed(DropList, content, folder, DROP_LIST)
    reasons = [Reason(DROP_LIST, fault, LEFT_OUT_AGAIN) for fault in _faults(answer, checked_by, package, known)]
    if reasons:
        raise PackageError(folder, reasons)
    return frozenset(answer.cases)


def _faults(answer: DropList, checked_by: str, package: Package, known: set[str]) -> Iterator[str]:
    expected = {
        "schema_version": DROP_LIST_VERSION,
        "checked_by": checked_by,
        "package_of": package.manifest.site,
    }
    for key, value in expected.items():
        if getattr(answer, key) != value:
            yield f"has {key} {shown(getattr(answer, key))}; it must be {value}"
    if list(answer.cases) != sorted(set(answer.cases)):
        yield "names cases twice or out of order"
    unknown = sorted(set(answer.cases) - known)
    if unknown:
        yield f"names {shown(unknown[0])}, which is no case of the package of site {package.manifest.site}"
