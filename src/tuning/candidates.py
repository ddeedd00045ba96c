"""What is tried to train a config faster, in the order in which it is tried."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.config.request import Request
from src.config.signatures import Signature, signature

Overlay = dict[str, Any]
SPEED = ("threads", "precision", "fused", "micro_batch", "workers", "compile")
EXACT = ("threads", "workers")  # which compute the same, but for last bits
LITTLE_WAIT = 0.02  # share of the time below which no worker can help


@dataclass
class Candidate:
    group: str  # of SPEED
    name: str  # as users read it
    key: str  # of the config
    overlay: Overlay
    refused: str = ""  # why it need not be tried


def candidates(request: Request, facts: dict[str, Any]) -> Iterator[Candidate]:
    """Those that config and device have; none of a key that a flag gives, which would go before an overlay."""
    for one in [*threads(facts), *precisions(facts), *fused(request), *sizes(request, facts), *workers(request, facts),
                *compiled(request)]:  # fmt: skip
        if not is_given(request, one.key):
            yield one


def is_given(request: Request, key: str) -> bool:
    return request.lines.get(key, "").startswith("--")


def threads(facts: dict[str, Any]) -> Iterator[Candidate]:
    cores = facts["cores"]
    for n in sorted({1, cores // 2, cores} - {0, facts["threads"]}) if facts["device"] == "cpu" else ():
        yield Candidate("threads", f"threads {n}", "threads", {"threads": n})


def precisions(facts: dict[str, Any]) -> Iterator[Candidate]:
    """bf16-true is left out: its weights lose small updates late in training, which a short trial cannot show."""
    names = ["bf16-mixed"] if facts["bfloat16"] else []
    names += ["16-mixed"] if facts["device"] == "cuda" else []
    for name in (name for name in (*names, "32-true") if name != facts["precision"]):
        yield Candidate("precision", name, "trainer.precision", {"trainer": {"precision": name}})


def fused(request: Request) -> Iterator[Candidate]:
    optimizer = request.config["model"]["init_args"]["optimizer"]
    takes = (signature(optimizer["class_path"]) or Signature()).arguments
    if "fused" in takes and not optimizer["init_args"].get("fused"):
        overlay = {"fused": True} | ({"foreach": False} if optimizer["init_args"].get("foreach") else {})
        yield Candidate("fused", "fused optimizer", "model.optimizer.fused", of_model(optimizer={"init_args": overlay}))


def sizes(request: Request, facts: dict[str, Any]) -> Iterator[Candidate]:
    """Of micro-batches: the whole batch, a half, a quarter."""
    whole, now = facts["batch_size"], facts["micro_batch_size"]
    for size in (whole // part for part in (1, 2, 4) if whole % part == 0 and whole // part not in (0, now)):
        overlay = {"data": {"init_args": {"micro_batch_size": size}}}
        alone = "batch norm cannot train on single samples" if size == 1 and facts["batch_norm"] else ""
        yield Candidate("micro_batch", f"micro-batch {size}", "data.micro_batch_size", overlay, alone)


def workers(request: Request, facts: dict[str, Any]) -> Iterator[Candidate]:
    now, share = request.config["data"]["init_args"].get("num_workers", 0), facts["wait_frac"]
    no_need = f"training waits for data {share:.1%} of its time" if share < LITTLE_WAIT and not now else ""
    for n in (n for n in (0, 1, 2, 4, 8, 16) if n <= facts["cores"] and n != now):
        overlay = {"data": {"init_args": {"num_workers": n}}}
        yield Candidate("workers", f"workers {n}", "data.num_workers", overlay, no_need)


def compiled(request: Request) -> Iterator[Candidate]:
    model = request.config["model"]
    takes = (signature(model["class_path"]) or Signature()).arguments
    if "compile" in takes and not model["init_args"].get("compile"):
        yield Candidate("compile", "compile", "model.compile", of_model(compile=True))


def rates(request: Request) -> dict[str, float]:
    """The learning rates of the optimizer that the config sets, by their names; none where the schedule does."""
    model = request.config["model"]["init_args"]
    if "max_lr" in ((model.get("schedule") or {}).get("init_args") or {}):
        return {}
    takes = (signature(model["optimizer"]["class_path"]) or Signature()).arguments
    names = [name for name in takes if name == "lr" or name.endswith("_lr")]
    found = {name: model["optimizer"]["init_args"].get(name, takes[name].default) for name in names}
    is_plain = all(isinstance(rate, (int, float)) and rate > 0 for rate in found.values())
    return found if is_plain and not any(is_given(request, f"model.optimizer.{name}") for name in names) else {}


def of_model(**arguments: Any) -> Overlay:
    return {"model": {"init_args": arguments}}
