"""What is diagnosed: a base, which is a shipped experiment made short, with some flags; and what is right to answer.

An answer is a line: `QUESTION KEY`, if any change of that key is right; `QUESTION KEY < VALUE`, `>` or `=`, where the
new value must be so, or `in LOW HIGH`; `QUESTION check NAME|NAME...`, by the finding's own name. QUESTION is BADLY,
SLOW or SPACE. Of a change with several keys one must be right. `QUESTION KEY` also stands for what is below that key,
but for `class_path`, which `QUESTION KEY = CLASS` asks for. A case's `truth` is strict: the key that was changed, at
least half the way back, or the check of that name; `wide` is what else may help.
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
    def is_module(self) -> bool:
        """Whether it is a LightningModule of modules.py, not a config."""
        return not self.experiment

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
    wide: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.truth


HERE = "benchmarks.diagnose.faulty"
SHORT = {"lr": "model.optimizer.lr", "opt": "model.optimizer", "net": "model.network", "seed": "seed_everything"}
KNOWN = {  # answers that several faults have in common, by NAME
    "OPTIMIZERS": "opt = AdamW; opt = Adam; opt = NAdam; opt = RMSprop",
    "NO_HEAD": "model.outputs = probabilities; model.swap",
    "HEAD": "model.swap; check head_activation",
    "RESET": "model.reset = true",
    "NOISE": "check label_noise|conflicting_labels; data.without",
    "NOTHING": "check labels_independent",
    "RARE": "model.class_weights; check imbalance",
    "SCALE": "data.std; data.mean; data.normalize; check input_scale",
    "UNTRAINED": "check untrained_parameters",
    "FREEZE": "model.freeze; check untrained_parameters",
    "DISK": "SLOW data.num_workers > 0; SLOW check data_bound",
    "VALIDATES": "SLOW trainer.val_check_interval; SLOW trainer.check_val_every_n_epoch",
    "CLIP": "trainer.gradient_clip_val",
    "REGULARIZE": "net.dropout; net.widths; data.augment; opt.weight_decay; model.label_smoothing; "
    "check overfits|overfitting",
    "MEMORY": "SPACE data.micro_batch_size; SPACE data.batch_size; SPACE model.activation_checkpointing; SPACE net; "
    "SPACE model.loss_chunks; SPACE trainer.precision; SPACE opt",
    "TOO_SLOW": "SLOW check data_bound",
}


def key(short: str) -> str:
    first, dot, rest = short.partition(".")
    return SHORT.get(first, first) + dot + rest


def value_of(name: str, text: str) -> Any:
    """A class without a package is one of ours, or an optimizer."""
    if text[0].isupper() and "." not in text:
        return f"torch.optim.{text}" if name == "opt" else f"{HERE}.{text}"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def answers(text: str) -> tuple[str, ...]:
    """Of `ANSWER; ANSWER`, where a NAME stands for several; BADLY need not be said."""
    parts = [part.split() for part in "; ".join(KNOWN.get(t.strip(), t.strip()) for t in text.split(";")).split(";")]
    with_question = [part if part[0] in QUESTIONS.values() else ["BADLY", *part] for part in parts if part]
    return tuple(" ".join([q, key(k), *(w if k == "check" else map(full, w))]) for q, k, *w in with_question)


def full(word: str) -> str:
    """A class of torch.optim by its name."""
    return f"torch.optim.{word}" if word[:1].isupper() and "." not in word else word


def rows(text: str) -> list[Case]:
    """One a line: name | base | family | KEY=VALUE ... | truth | what else may help."""
    return [row(*(part.strip() for part in line.split(" | "))) for line in text.strip().splitlines()]


def row(name: str, base: str, family: str, flags: str, truth: str, wide: str = "") -> Case:
    given = {k: value_of(k, v) for k, _, v in (flag.partition("=") for flag in flags.split())}
    right = answers(truth)
    costs = given.pop("costs", {"SLOW": "speed", "SPACE": "memory"}.get(right[0].split()[0], "metric"))
    return Case(name, base, {key(k): v for k, v in given.items()}, family, right, costs, answers(wide))


def rate_truth(name: str, healthy: float, factor: float) -> tuple[str, str]:
    """Answers to a rate that is `factor` times what it should be; of a module the change is itself a factor. Strict:
    nearer to it than before; wide: to a third of the way."""
    faulty = healthy * factor if name != "lr_times" else 1.0
    near, far = faulty * factor**-0.5, faulty * factor**-2
    third = faulty / min(3.0, factor**0.5) if factor > 1 else faulty * min(3.0, factor**-0.5)
    low, high = sorted((near, far))
    return f"{name} in {low:.3g} {high:.3g}", f"{name} {'<' if factor > 1 else '>'} {third:.3g}"


def rate(base: str, lr: float, factor: float) -> Case:
    family, name = ("rate too high", f"x{factor}") if factor > 1 else ("rate too low", f"{round(1 / factor)}th")
    strict, wide = map(answers, rate_truth("lr", lr, factor))
    return Case(f"{base}_lr_{name}", base, {key("lr"): lr * factor}, family, strict, wide=wide)


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
        elif name == key and sign == "in" and isinstance(value, (int, float)):
            low, high = map(float, text.split())
            yield low <= value <= high
        elif name == key and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value < float(text) if sign == "<" else value > float(text)
