"""Large tensors reuse memory after ``keep_freed_memory``."""

from __future__ import annotations

import subprocess
import sys

import pytest

# page faults of steps that need the same 188 MiB in four tensors, once their places have settled
FAULTS = """
import resource, sys, torch
from training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(20):
    if step == 15:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(n * 2**20) for n in (12, 9, 16, 10)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_steps_use_again_the_memory_that_steps_before_them_freed_and_by_default_do_not() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "default")
    }
    assert faults["kept"] < faults["default"] / 100
