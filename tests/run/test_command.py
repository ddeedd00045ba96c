"""How the process of a command ends."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL

from src.run.errors import ConfigError, need

HANDLER = "import atexit; atexit.register(print, 'an early handler', flush=True)\n"
SCRIPT = f"""{HANDLER}
import sys
import src.run.private
from src.run.command import command

@command
def main(args):
    return 0

main()
"""


@pytest.mark.parametrize(("then", "code"), [("raise ValueError('after it')", 1), ("sys.exit(7)", 7)])
def test_a_script_goes_on_after_a_command(tmp_path, then, code):
    (tmp_path / "script.py").write_text(SCRIPT + then)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "an early handler\n")


def test_a_command_calls_what_was_registered_before_it(tmp_path):
    """As coverage is: by a module that Python loads at its start."""
    (tmp_path / "sitecustomize.py").write_text(HANDLER)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "src.train", *SMALL, "--model.optimizer.lr", "-1", "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.endswith("an early handler\n")


def test_what_is_not_installed_is_asked_for():
    need("torch", "export")
    with pytest.raises(ConfigError, match=r'nothing_of_the_name is not installed -> pip install -e "\.\[export\]"'):
        need("nothing_of_the_name", "export")
