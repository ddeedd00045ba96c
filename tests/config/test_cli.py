import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL
from processes import python

from src.config.request import command_parser, read_request, with_defaults
from src.run.device import fastest_precision

COUNT = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from src.config.build import keep_freed_memory
    keep_freed_memory()
for _ in range(3):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_in_a_run_folder_the_precision_stays_what_it_was(tmp_path):
    from src.config.build import settled_precision

    flags = [*SMALL, "--run_dir", str(tmp_path)]
    request = read_request(command_parser("train", None), flags)
    assert settled_precision(request) == fastest_precision("auto")
    (tmp_path / "config.yaml").write_text("trainer: {precision: 64-true}")
    assert settled_precision(request) == "64-true"


def test_no_default_stands_for_a_fact_of_the_data():
    """Else a saved config would contradict the data, and `evaluate` refuse it."""
    config = read_request(command_parser("train", None), SMALL).config
    network = with_defaults(config)["model"]["init_args"]["network"]["init_args"]
    assert network == {"widths": [32, 16], "dropout": 0.2, "in_channels": 1, "image_size": [28, 28]}
    config["data"] = {"class_path": "src.data.module.DataModule", "init_args": {}}  # does not say what it provides
    network = with_defaults(config)["model"]["init_args"]["network"]["init_args"]
    assert network == {"widths": [32, 16], "dropout": 0.2}


def test_one_batch_is_not_all_of_them(run):
    for given in ("1", "1.0"):
        flags = [*SMALL, "--trainer.limit_val_batches", given]
        assert f"limit_val_batches: {given}\n" in run([*flags, "--print_config"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_what_comes_next(loaded, tmp_path):
    command = [sys.executable, "-c", COUNT, "free"]  # not forked: this process may keep what is freed
    freed = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    child = python(["-c", COUNT, "keep"], ROOT, dict(os.environ), tmp_path / "output")
    assert child.wait() == 0, child.output
    assert freed > 100  # the kernel clears memory for each tensor, in pages of 4 KiB to 2 MiB
    assert int(child.output) < freed / 10
