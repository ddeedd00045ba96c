"""What of the Dockerfile can be checked without Docker."""

import json
import re
import subprocess
from fnmatch import fnmatch
from importlib.util import find_spec

from conftest import ROOT

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]


def of(kind: str) -> list[str]:
    return [text for name, text in STEPS if name == kind]


def test_what_it_copies_is_there_and_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for text in of("COPY") for source in text.split()[:-1]]
    assert len(copied) >= 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is ignored"
    assert {"src", "configs", "requirements.lock", "pyproject.toml"} <= {*copied}


def test_its_commands_are_shell_and_its_user_owns_what_runs_write():
    for text in of("RUN"):
        done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert of("USER") == ["leyden"]
    owned = next(text for text in of("RUN") if "chown leyden" in text).partition("chown leyden")[2].split()
    for folder in json.loads(of("VOLUME")[0]):
        assert folder.removeprefix("/leyden/") in owned
    python, option, module = json.loads(of("ENTRYPOINT")[0])
    assert (python, option) == ("python", "-m")
    assert find_spec(module)


def test_the_lock_for_cpus_is_the_rest_of_the_lock_with_its_hashes():
    lock = (ROOT / "requirements.lock").read_text()
    command = ["awk", "-f", ROOT / "scripts/cpu_lock.awk", ROOT / "requirements.lock"]
    rest = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE)) for text in (lock, rest)]
    assert names[1] < names[0]
    gone = names[0] - names[1]
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= gone
    assert all(re.match(r"(torch|torchvision|triton)$|nvidia-|cuda-", name) for name in gone)
    assert {"torchmetrics", "torchao", "lightning"} <= names[1]
    hashes = re.findall(r"^([\w.-]+)==(?:.*\\\n)((?:    --hash.*\n)+)", lock, re.MULTILINE)
    assert all(block in rest for name, block in hashes if name not in gone)
    pinned = "s/^(torch|torchvision)==([^ ]+).*/\\1==\\2/p"
    assert pinned in " ".join(of("RUN"))
    shown = subprocess.run(["sed", "-nE", pinned, ROOT / "requirements.lock"], capture_output=True, text=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\ntorchvision==[\d.]+\n", shown)
