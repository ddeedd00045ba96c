"""The keys of a config for --help: what each class takes, its present value, and its docstring's line."""

from collections.abc import Iterator
from typing import Any

from src.checks import SECTIONS, arguments_of, dotted, facts, sections, shown, specs
from src.signatures import Arguments


def keys_of(config: dict[str, Any]) -> Iterator[str]:
    trainer = {name: argument for name, argument in sections()["trainer"].items() if name in config["trainer"]}
    yield from keys(
        "trainer", "lightning.pytorch.Trainer, whose other arguments can be given too", config["trainer"], trainer
    )
    for section, class_path in SECTIONS.items():
        yield from keys(section, class_path, config.get(section, {}), sections()[section])
    for path, spec in specs(config, ()):
        known, given = arguments_of(spec["class_path"]), spec.get("init_args") or {}
        filled_in = {"model.network": facts(), "model.optimizer": ("params",), "model.schedule": ("optimizer",)}
        for name in filled_in.get(dotted(path), ()):
            (known := dict(known or {})).pop(name, None)
        yield from keys(dotted(path), spec["class_path"], given, known)


def keys(prefix: str, of: str, given: dict[str, Any], known: Arguments | None) -> Iterator[str]:
    """One group of keys: `--key value  description`."""
    yield f"\n{prefix}: {of}"
    for name in known or given:
        argument = (known or {}).get(name)
        value = given.get(name, argument.default if argument else None)
        if isinstance(value, dict) and "class_path" in value:
            value = value["class_path"]
        flag = f"--{prefix}.{name} {shown(value)}"
        yield f"  {flag:<48}  {argument.doc if argument else ''}".rstrip()
