"""Large tensors reuse memory after ``keep_freed_memory``."""

from __future__ import annotations

import subprocess
import sys

import pytest

# fewest page faults of making 64 MiB again, of five times
FAULTS = """
import resource, sys, torch
from gan.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
seen = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(seen[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_and_by_default_is_not() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "default")
    }
    assert faults["kept"] < 100 < faults["default"]
