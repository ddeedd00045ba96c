"""What training would take, before anyone pays: memory, time, money, and what to change where it does not fit.

    python -m src.plan --config configs/experiment/text_gpt.yaml
    python -m src.plan --config configs/experiment/text_gpt.yaml --device h200 --devices 8 --price 3
    python -m src.plan --config configs/experiment/text_gpt.yaml --device t4 --overlay fits.yaml

Nothing is allocated: a training step of the very model and optimizer run on tensors without numbers. Devices are
those of the config, or --device NAME (h100, a100_80, l4, tpu_v5e, ...; see docs/plan.md) and --devices N, of which
none need be here. Where this machine is the device, a short run of real steps measures the speed. The exit code is 0
where there is a plan, also of what does not fit: `fits` in the --json says which. --overlay writes the first levers
that make it fit, for --config of a run.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.config.request import CommandParser, command_parser, positive, read_request
from src.config.strict_yaml import read_text
from src.run.command import command
from src.run.errors import ConfigError
from src.run.files import write_json, write_text
from src.run.terminal import by_part, console, count, duration, rows

Plan = dict[str, Any]
STRATEGIES = ("ddp", "fsdp", "fsdp_offload")


def plan_parser() -> CommandParser:
    parser = command_parser("plan", __doc__)
    parser.add_argument("--device", metavar="NAME", help="of the table in docs/plan.md; by default this machine's")
    parser.add_argument("--devices", type=whole, metavar="N", help="how many; by default the config's")
    parser.add_argument("--strategy", choices=STRATEGIES, help="how they share the model; by default the config's")
    parser.add_argument("--tokens", type=positive, help="to train on, of a language model")
    parser.add_argument("--samples", type=positive, help="to train on; by default what the config says")
    parser.add_argument("--price", type=positive, help="of one device for an hour")
    parser.add_argument("--facts", metavar="YAML", default="{}", help="of data that is not here: {vocab_size: 50257}")
    parser.add_argument("--probe", type=int, default=20, metavar="STEPS", help="to measure here; 0: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument("--overlay", type=Path, metavar="FILE", help="a config of the levers that make it fit")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of memory by part")
    return parser


def whole(text: str) -> int:
    return int(positive(str(int(text))))


whole.__name__ = "whole number above 0"  # in argparse's message


@command
def main(args: Sequence[str]) -> int:
    request = read_request(plan_parser(), args)
    options = request.options
    options.facts = read_text(options.facts, "--facts")[0]
    if not isinstance(options.facts, dict):
        raise ConfigError("--facts: give names and values -> --facts '{vocab_size: 50257}'")
    for path in (options.json, options.overlay, options.picture):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: {path.parent} is no folder -> make it first")
    # These load torch, which takes seconds; what is wrong in a file was found before.
    from src.config.planned import Menu, planned, probed

    seen: Plan = {}
    plan = planned(request, seen)
    if not options.device and not options.facts and options.probe > 0 and plan["fits"] is not False:
        plan |= probed(request, plan)
    menu: list[Plan] = []
    taken: Plan = {"overlay": {}}
    if plan["fits"] is False:
        found = Menu(request, seen, plan)
        menu, taken = found.alone, found.together()
    console().print(rows(table(plan, menu, taken)))
    written(plan, menu, taken, options)
    return 0


def table(plan: Plan, menu: list[Plan], taken: Plan) -> dict[str, str]:
    layout, device = plan["layout"], plan["device"]
    frozen, kind = plan["parameters"] - plan["trained"], f", {layout['name']}" if layout["devices"] > 1 else ""
    times = f", {plan['micro_batches']} times" if plan["micro_batches"] > 1 else ""
    found = {
        "network": f"{plan['network']}, {plan['parameters']:,} parameters{f', {frozen:,} frozen' if frozen else ''}",
        "devices": f"{layout['devices']} x {device['name']}{kind}, precision {plan['precision']}",
        "step": f"{plan['batch_size']} samples, {plan['micro_batch_size']} at once on a device{times}",
    }
    if plan["unknown"]:
        found["memory"] = f"unknown: the model does not run without numbers ({plan['unknown']})"
    else:
        found |= space(plan)
    found |= time_and_money(plan)
    for one in (one for one in menu if one["saves_gib"] is None or one["saves_gib"] > 0.001 * plan["memory_gib"]):
        found[one["lever"]] = f"{with_lever(one)}; costs: {one['costs']}"
    if taken.get("lever"):
        found["together"] = f"{taken['lever']}: {with_lever(taken)}"
    return found


def with_lever(one: Plan) -> str:
    saved = f"{gib(one['memory_gib'])}, saves {gib(one['saves_gib'])}" if one["memory_gib"] else "unknown"
    return f"{saved}{', fits' if one['fits'] else ''}"


def gib(value: float) -> str:
    return f"{value:,.0f} GiB" if value >= 1000 else f"{value:.2f} GiB"


def space(plan: Plan) -> dict[str, str]:
    again, has = plan["recomputed_flops_per_step"], plan["device"]["memory_gib"]
    verdict = "yes" if plan["fits"] else "NO"
    return {
        "compute": f"{count(plan['flops_per_step'], 'FLOP')} a step"
        + (f", {count(again, 'FLOP')} of them for a second time" if again else ""),
        "memory": f"{by_part(plan['parts'])} on a device; {gib(plan['memory_gib'])} with what no tensor is",
        "fits": f"{verdict}: {plan['memory_gib'] / has:.0%} of {has:.1f} GiB" if has else "unknown",
    }


def time_and_money(plan: Plan) -> dict[str, str]:
    mfu = f", {span(plan['mfu'], '{:.0%}'.format)} of the peak (MFU)" if plan["mfu"] else ""
    source = f", median of {plan['probe']['steps']} steps here" if "probe" in plan else ", not measured"
    found = {"speed": f"{span(plan['step_sec'], seconds)} a step{mfu}{source if plan['step_sec'] else ''}"}
    if plan["sent_bytes_per_step"]:
        hidden = max(plan["exposed_sec"], default=0.0)
        text = f"{count(plan['sent_bytes_per_step'], 'B')} a step and device in {seconds(plan['sending_sec'])}"
        found["sending"] = f"{text}, {f'of which up to {seconds(hidden)} is not hidden' if hidden else 'hidden'}"
    if plan["hours"]:
        found["time"] = f"{plan['steps']:,} steps, {span(plan['hours'], lambda h: duration(3600 * h))}"
        if plan["cost"]:
            found["cost"] = span(plan["cost"], "{:,.2f}".format)
        every = duration(plan["checkpoint_interval_sec"])
        found["failures"] = f"{span(plan['failures'], '{:.2g}'.format)} to expect; best a checkpoint every {every}"
    else:
        found["time"] = "unknown: --samples or --tokens, and a speed" if not math.isfinite(plan["steps"]) else "unknown"
    tokens = plan["tokens_per_sample"] * plan["batch_size"] * plan["steps"]
    if tokens and math.isfinite(tokens):
        each = f"{tokens / plan['parameters']:.3g} for each parameter"
        found["tokens"] = f"{count(tokens)}, {each}; for its compute about 20 are best (Hoffmann et al., 2022)"
    return found


def span(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = map(show, values) if values else ("unknown", "unknown")
    return low if low == high else f"{low} to {high}"


def seconds(value: float) -> str:
    return duration(value) if value >= 10 else f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def written(plan: Plan, menu: list[Plan], taken: Plan, options: Any) -> None:
    overlay = taken["overlay"] if taken.get("fits") else {}
    if options.json:
        steps = plan["steps"] if math.isfinite(plan["steps"]) else None
        write_json(options.json, {**plan, "steps": steps, "menu": menu, "together": taken, "overlay": overlay})
    if options.picture:
        draw(plan, [*menu, taken] if menu else menu, options.picture)
    if options.overlay:
        if plan["fits"] is False and not overlay:
            print(f"No lever makes it fit, so {options.overlay} is not written.")
            return
        text = yaml.safe_dump(overlay or {"trainer": {}}, sort_keys=False)
        write_text(options.overlay, f"# Written by python -m src.plan: what makes {plan['network']} fit.\n{text}")
        print(f"Written: {options.overlay}; give it to a run with --config after the others.")


def draw(plan: Plan, menu: list[Plan], path: Path) -> None:
    """Memory by part, of the config and with each lever, beside what the device has."""
    from src.run.figures import figure, save

    bars = {"as it is": plan["parts"]} | {one["lever"]: one["parts"] for one in menu}
    fig = figure(9, 1.6 + 0.4 * len(bars))
    axes, left = fig.subplots(), [0.0] * len(bars)
    names = dict.fromkeys(part for parts in bars.values() for part in sorted(parts, key=lambda p: -parts[p]))
    for k, name in enumerate(names):
        sizes = [parts.get(name, 0) / 2**30 for parts in bars.values()]
        axes.barh(list(bars), sizes, left=left, label=name, color=f"C{k % 10}", hatch="//" if k >= 10 else None)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    if has := plan["device"]["memory_gib"]:
        axes.axvline(has, color="black", linestyle="--", label=plan["device"]["name"])
        axes.set_xlim(0, 1.1 * (max(left) if max(left) < has / 4 else max(has, *left)))
    axes.invert_yaxis()
    axes.set(xlabel="GiB of one device", title=f"{plan['network']}, {plan['micro_batch_size']} samples at once")
    fig.legend(loc="outside right center", fontsize=8)
    save(fig, path)


if __name__ == "__main__":
    sys.exit(main())
