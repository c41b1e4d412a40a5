"""The package that leaves a site: images, labels, JSON and a card; nothing of a real patient, nothing pickled."""

from sharing.drop_list import read_drop_list, write_drop_list
from sharing.errors import PackageError
from sharing.package import PackageFacts, SyntheticCase, read_case, write_package, write_raw_cases
from sharing.received import Package, verify_package
from sharing.refused import FailedGate, Refusal, read_refusal, write_refusal
from sharing.shared_audit import SharedAudit, SharedFigure, SharedGate, SharedPlanted, rounded_share, statements

__all__ = [
    "FailedGate",
    "Package",
    "PackageError",
    "PackageFacts",
    "Refusal",
    "SharedAudit",
    "SharedFigure",
    "SharedGate",
    "SharedPlanted",
    "SyntheticCase",
    "read_case",
    "read_drop_list",
    "read_refusal",
    "rounded_share",
    "statements",
    "verify_package",
    "write_drop_list",
    "write_package",
    "write_raw_cases",
    "write_refusal",
]
