"""What is tried to train a config faster."""

from typing import Any

from src.config.request import Request
from src.config.signatures import Signature, signature

Change = tuple[str, Any]  # key of the config, value
EXACT = ("threads", "data.num_workers")  # which compute the same, but for last bits
LITTLE_WAIT = 0.02  # of the time: where training waits less for data, no worker can help


def candidates(request: Request, facts: dict[str, Any]) -> list[Change]:
    """Those that config and device have, in the order in which they are tried; none that a flag sets, which would go
    before an overlay.

    bf16-true is none: its weights lose small updates late in training, which no short trial can show.
    """
    model, workers = request.config["model"], request.config["data"]["init_args"].get("num_workers", 0)
    optimizer = model["init_args"]["optimizer"]
    cores, whole, has = facts["cores"], facts["batch_size"], {"bf16-mixed": facts["bfloat16"], "32-true": True}
    has["16-mixed"] = facts["device"] == "cuda"
    numbers = sorted({1, cores // 2, cores} - {0, facts["threads"]}) if facts["device"] == "cpu" else []
    found: list[Change] = [("threads", n) for n in numbers]
    found += [("trainer.precision", name) for name, there in has.items() if there and name != facts["precision"]]
    if "fused" in takes(optimizer) and not optimizer["init_args"].get("fused"):
        found.append(("model.optimizer.fused", True))
    sizes = [whole // parts for parts in (1, 2, 4) if whole % parts == 0]
    found += [("data.micro_batch_size", n) for n in sizes if n not in (1, facts["micro_batch_size"])]
    if workers or facts["wait_frac"] > LITTLE_WAIT:
        found += [("data.num_workers", n) for n in (0, 1, 2, 4, 8, 16) if n <= cores and n != workers]
    if "compile" in takes(model) and not model["init_args"].get("compile"):
        found.append(("model.compile", True))
    return [(key, value) for key, value in found if not request.lines.get(key, "").startswith("--")]


def takes(spec: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a class, and their defaults."""
    return {name: known.default for name, known in (signature(spec["class_path"]) or Signature()).arguments.items()}


def rates(request: Request) -> dict[str, float]:
    """The learning rates of the optimizer, by key; none where the schedule sets them."""
    model = request.config["model"]["init_args"]
    given, has = model["optimizer"]["init_args"], takes(model["optimizer"])
    found = {f"model.optimizer.{n}": given.get(n, has[n]) for n in has if n == "lr" or n.endswith("_lr")}
    by_schedule = "max_lr" in ((model.get("schedule") or {}).get("init_args") or {})
    plain = all(isinstance(rate, (int, float)) and rate > 0 for rate in found.values())
    return found if plain and not by_schedule else {}
