import platform
import subprocess
import sys

import pytest
from conftest import ROOT

COUNT = """
import resource, sys, torch
from src.cli import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_what_comes_next():
    def faults(side: str) -> int:
        command = [sys.executable, "-c", COUNT, side]
        return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    freed, kept = faults("free"), faults("keep")
    assert freed > 100  # the kernel clears memory for each tensor, in pages of 4 KiB to 2 MiB
    assert kept < freed / 10
