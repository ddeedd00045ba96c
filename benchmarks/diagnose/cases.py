"""What is diagnosed: a base, which is a shipped experiment made short, with some flags; and what is right to answer.

An acceptable answer is a line: `QUESTION KEY`, if any change of that key is right; `QUESTION KEY < VALUE`, `>` or `=`,
where the new value must be so; `QUESTION check NAME|NAME...`, where no key mends it, by the finding's own name.
QUESTION is BADLY, SLOW or SPACE. Of a change with several keys one must be acceptable. `QUESTION KEY` also stands for
what is below that key, but for `class_path`, which `QUESTION KEY = CLASS` asks for.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

from src.config.request import command_parser, read_request
from src.config.signatures import signature

QUESTIONS = {"does badly": "BADLY", "is slow": "SLOW", "does not fit": "SPACE"}
DATA = os.environ.get("LEYDEN_DATA_DIR", "data")
Flags = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """A healthy run of some seconds, the metric that a fault costs, and what that is of one answer for all samples."""

    experiment: str
    flags: Flags = field(default_factory=dict)
    metric: str = "test/loss"
    trivial: float = 2.303

    @property
    def reads_files(self) -> bool:
        return not {"data.file", "data.data_dir"}.isdisjoint(self.flags)


@dataclass(frozen=True)
class Case:
    name: str
    base: str
    flags: Flags = field(default_factory=dict)
    family: str = ""  # empty of a healthy one
    truth: tuple[str, ...] = ()
    costs: str = "metric"  # or `speed`, `memory` (not trained), `trust` (val says otherwise than test, or misleads)

    @property
    def healthy(self) -> bool:
        return not self.truth


QUIET: Flags = {"pictures.enabled": False, "wandb.mode": "disabled"}
BASES: dict[str, Base] = {"waves": Base("tests/small.yaml", {"trainer.max_epochs": 12})}
# kind: images
BASES |= {
    "cnn": Base("digits_cnn", {"trainer.max_epochs": 15, "trainer.log_every_n_steps": 10}),
    "mlp": Base("digits_mlp", {"trainer.max_epochs": 30, "trainer.log_every_n_steps": 10}),
    "lstm": Base("digits_lstm", {"trainer.max_epochs": 25}),
    "vit": Base("digits_vit", {"trainer.max_epochs": 30}),
    "mnist": Base(
        "mnist_cnn",
        {"data.data_dir": DATA, "trainer.max_epochs": 1, "trainer.limit_train_batches": 200, "data.batch_size": 128},
    ),
}
# end
# kind: tables
BASES |= {
    "wine": Base("wine_mlp", trivial=1.09),
    "cancer": Base("breast_cancer_mlp", trivial=0.66),
    "diabetes": Base("diabetes_mlp", trivial=1.0),
    "housing": Base(
        "housing_mlp", {"data.file": f"{DATA}/california_housing.csv", "trainer.max_epochs": 4}, trivial=1.0
    ),
}
# end
# kind: text
SMALL_GPT = {"dim": 64, "depth": 2, "num_heads": 4}
BASES |= {
    "gpt": Base(
        "text_gpt",
        {f"model.network.{name}": value for name, value in SMALL_GPT.items()}
        | {"data.seq_len": 64, "trainer.max_steps": 400, "trainer.val_check_interval": 100},
        trivial=3.2,
    )
}
# end
# kind: series
BASES |= {
    "seasons": Base("seasons_linear", trivial=1.0),
    "etth1": Base("etth1_linear", {"data.file": f"{DATA}/ETTh1.csv", "trainer.max_epochs": 4}, "test/mse", 1.0),
}
# end


def config_of(case: Case) -> dict[str, Any]:
    """The whole config of a case, in full form. Another class keeps those arguments of the base's that it takes."""
    base = BASES[case.base]
    file = base.experiment if base.experiment.endswith(".yaml") else f"configs/experiment/{base.experiment}.yaml"
    config = read(file, QUIET | base.flags)
    swapped = {name: value for name, value in case.flags.items() if str(value).startswith("benchmarks.")}
    for name, class_path in swapped.items():
        node = config
        for part in name.split("."):
            node = node.get("init_args", node)[part]
        known = signature(class_path)
        node["class_path"] = class_path
        node["init_args"] = {n: value for n, value in node["init_args"].items() if known and n in known.arguments}
    with NamedTemporaryFile("w", suffix=".yaml") as f:
        yaml.safe_dump(config, f)
        f.flush()
        return read(f.name, {name: value for name, value in case.flags.items() if name not in swapped})


def read(file: str, flags: Flags) -> dict[str, Any]:
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in flags.items()}
    given = [f"--{name}={value}" for name, value in text.items()]
    return read_request(command_parser("benchmark", None), ["--config", file, *given]).config


def written(case: Case, folder: Path) -> Path:
    """The config of a case as a file, which `--config` takes."""
    file = folder / f"{case.name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config_of(case), sort_keys=False))
    return file


def flat(change: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """An overlay in full form as (key, new value): `init_args` is no part of a key, and a class is its value."""
    if not isinstance(change, dict):
        yield at, change
        return
    for name, value in change.items():
        if name == "class_path":
            yield at, value
        else:
            yield from flat(value, at if name == "init_args" else f"{at}.{name}".lstrip("."))


def is_right(finding: dict[str, Any], truth: Iterable[str]) -> bool:
    """Whether a finding of diagnose.json is among the acceptable answers."""
    asked, changed = QUESTIONS.get(finding["question"], finding["question"]), dict(flat(finding.get("change") or {}))
    for answer in truth:
        question, key, *rest = answer.split(" ", 2)
        if question == asked and (
            finding["check"] in rest[0].split("|") if key == "check" else any(fits(changed, key, *rest))
        ):
            return True
    return False


def fits(changed: dict[str, Any], key: str, wanted: str = "") -> Iterator[bool]:
    """Of each changed key that is this one, or below it, whether its new value is as `wanted` says."""
    sign, _, text = wanted.partition(" ")
    for name, value in changed.items():
        if not sign:
            yield name == key or name.startswith(f"{key}.")
        elif name == key and sign == "=":
            yield value == yaml.safe_load(text)
        elif name == key and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value < float(text) if sign == "<" else value > float(text)
