"""Write a trained model as files that are used without this project: raw input goes in, named answers come out.

    python -m src.export --run_dir logs/digits_cnn/first                         # model.onnx, for batches of any size
    python -m src.export --run_dir logs/digits_cnn/first --int8                  # and model_int8.onnx, with its figures
    python -m src.export --run_dir logs/digits_cnn/first --format torch_export   # model.pt2, for torch alone
    python -m src.export --run_dir logs/digits_cnn/first --format safetensors    # the weights, for model.init_from

What the data module does to raw input, and the targets' own units, are in the graph; model.json says what goes in and
comes out. The file is read back and compared with the run's model in float32 on samples of --split, or where the run's
data cannot be read on random ones.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src.config.trained import load_model, run_parser, run_request
from src.run.command import command
from src.run.errors import ConfigError, EnvironmentFault, KnownError, need
from src.run.files import sync, write_synced
from src.run.terminal import mib, rank_zero_print

NAMES = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}
USE = {
    "onnx": 'session = onnxruntime.InferenceSession("{file}")\nanswers = session.run(None, {{{inputs}}})',
    "torch_export": 'model = torch.export.load("{file}").module()\nanswers = model({{{inputs}}})',
    "safetensors": "python -m src.train ... --model.init_from {file}",
}
COMPARED, MEASURED = 64, 1024  # samples
TOLERANCE, LOSS = 1e-5, 0.01  # of each answer; of accuracy or error by int8


@command
def main(args: Sequence[str]) -> int:
    parser = run_parser("export", __doc__)
    parser.add_argument("--format", choices=[*NAMES], default="onnx", help="of the model")
    parser.add_argument("--output", metavar="FOLDER", help="by default export/FORMAT in the run folder")
    parser.add_argument("--int8", action="store_true", help="also in int8, measured before and after (onnx)")
    request = run_request(parser, args)
    options, kind = request.options, request.options.format
    output = Path(options.output or Path(options.run_dir) / "export" / kind)
    if options.int8 and kind != "onnx":
        raise ConfigError(f"--int8: not in {kind} -> take --format onnx")
    if output.exists() and not (output / "model.json").is_file():
        raise ConfigError(f"--output {output}: is there, and is no export -> name another folder")
    for module in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        need(module, "export")
    experiment, model = load_model(request)
    data, about = model.data, {"format": kind, "checkpoint": options.checkpoint, "config": experiment.plain_config}
    about |= {"versions": {name: version(name) for name in ("torch", "onnx") if name in ("torch", kind)}}
    about |= {"facts": data.facts, "classes": data.statistics.get("class_names"), "fitted": data.statistics}
    files = weights(model, about) if kind == "safetensors" else graph(model, about, options)
    write(output, files | {"model.json": json.dumps(about, indent=1).encode()})
    inputs = ", ".join(f'"{name}": ...' for name in about.get("inputs", ()))
    rank_zero_print(f"{output}: {', '.join(f'{name} {mib(len(content))}' for name, content in files.items())}")
    rank_zero_print(USE[kind].format(file=output / NAMES[kind], inputs=inputs))
    return 0


def weights(model: Any, about: dict[str, Any]) -> dict[str, bytes]:
    from safetensors.torch import save

    state = {name: one.contiguous().clone() for name, one in model.network.state_dict().items()}
    return {NAMES["safetensors"]: save(state, {"format": "pt", "model.json": json.dumps(about)})}


def graph(model: Any, about: dict[str, Any], options: Any) -> dict[str, bytes]:
    """The files of a graph; what was found of them goes into `about`."""
    from src.exporting.graph import Served, int8, measured, onnx_run

    served = Served(model)
    about |= {"inputs": served.inputs, "outputs": served.outputs}
    content, run = served.file(options.format)
    raw, batch, expected, of = samples(served, options)
    first = {name: values[:COMPARED] for name, values in raw.items()}
    about["parity"] = {"difference": (apart := served.difference(run, first, expected)), "of": of}
    if not apart <= TOLERANCE:
        what = f"{type(model.network).__name__}: the export differs by {apart:.2g} from the model, over {TOLERANCE:g}"
        raise ConfigError(f"{what} -> take another --format")
    rank_zero_print(f"The export differs by {apart:.2g} at most from the model, on {of}.")
    if not options.int8:
        return {NAMES[options.format]: content}
    small = int8(content, samples(served, options, "train")[0])
    if len(small) >= len(content):
        raise ConfigError(f"--int8: {type(model.network).__name__} gets no smaller by it -> leave it out")
    runs = {"float32": run, "int8": onnx_run(small)}
    before, after = (measured(one, served, raw, batch["targets"]) for one in runs.values())
    about["int8"] = {"before": before, "after": after, "samples": len(batch["targets"])}
    for name in before:
        rank_zero_print(f"int8: {name} {before[name]:.5g} -> {after[name]:.5g}")
    name = next(iter(before))
    if (lost := abs(after[name] - before[name])) > LOSS:
        rank_zero_print(f"Warning: int8 changes the {name} by {lost:.3g}, more than {LOSS}.")
    return {NAMES["onnx"]: content, "model_int8.onnx": small}


def samples(served: Any, options: Any, split: str = "") -> tuple[dict[str, Any], Any, Any, str]:
    """Raw input, the batch that it is of, what the model says of the first ones, and what they are."""
    import torch

    data, split = served.model.data, split or options.split
    with torch.no_grad():
        try:
            data.prepare_data()
            data.setup("predict")
            data.adopt(data.fitted)
            count = len(data.splits[split])
            index = torch.linspace(0, count - 1, min(count, MEASURED if options.int8 else COMPARED)).long()
            batch = data.on_after_batch_transfer(data.splits[split][index[:COMPARED]], 0)
            expected, of = served.model.named_outputs(batch), f"{len(batch['x'])} samples of {split}"
            return data.raw(split, index), data.splits[split][index], expected, of
        except (KnownError, OSError) as e:
            if options.int8:
                raise
            raw = served.made_up()
            return raw, {}, served(served.coded(raw)), f"random input, because the data cannot be read ({e})"


def write(output: Path, files: dict[str, bytes]) -> None:
    """All of them, or none."""
    tmp = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        tmp.mkdir(parents=True)
        for name, content in files.items():
            write_synced(tmp / name, content)
        shutil.rmtree(output, ignore_errors=True)
        tmp.rename(output)
        sync(output.parent)
    except OSError as e:
        raise EnvironmentFault(f"{output}: cannot be written: {e.strerror} -> name another --output") from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
