"""The package that leaves a site: images, labels, JSON and a card; nothing of a real patient, nothing pickled."""

from sharing.package import PackageError, PackageFacts, SyntheticCase, verify_package, write_package, write_raw_cases

__all__ = ["PackageError", "PackageFacts", "SyntheticCase", "verify_package", "write_package", "write_raw_cases"]
