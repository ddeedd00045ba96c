"""Write a trained model as files that are used without this project: raw input goes in, named answers come out.

    python -m src.export --run_dir logs/digits_cnn/first                         # model.onnx, for any batch
    python -m src.export --run_dir logs/digits_cnn/first --int8                  # and model_int8.onnx
    python -m src.export --run_dir logs/digits_cnn/first --format torch_export   # model.pt2, for torch alone
    python -m src.export --run_dir logs/digits_cnn/first --format safetensors    # the weights, for init_from

What the data module does to raw input is in the graph; model.json says what goes in and comes out. The file is read
back and compared with the run's model in float32 on samples of --split.
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
from src.run.errors import ConfigError, EnvironmentFault, need
from src.run.files import sync, write_synced
from src.run.terminal import mib, rank_zero_print

NAMES = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "weights.safetensors"}
COMPARED, MEASURED = 64, 1024  # samples
TOLERANCE = 1e-5  # of each answer


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
    about = {"format": kind, "checkpoint": options.checkpoint, "config": experiment.plain_config}
    about |= {"torch": version("torch"), "facts": model.data.facts, "fitted": model.data.statistics}
    about["classes"] = model.data.statistics.get("class_names")
    files = weights(model, about) if kind == "safetensors" else graph(model, about, options)
    write(output, files | {"model.json": json.dumps(about, indent=1).encode()})
    rank_zero_print(f"{output}: {', '.join(f'{name} {mib(len(content))}' for name, content in files.items())}")
    return 0


def weights(model: Any, about: dict[str, Any]) -> dict[str, bytes]:
    from safetensors.torch import save

    state = {name: one.contiguous().clone() for name, one in model.network.state_dict().items()}
    return {NAMES["safetensors"]: save(state, {"format": "pt", "model.json": json.dumps(about)})}


def graph(model: Any, about: dict[str, Any], options: Any) -> dict[str, bytes]:
    """The files of a graph; what was found of them goes into `about`."""
    from src.exporting.graph import Served, int8, onnx_run

    model.data.setup("predict")
    model.data.adopt(model.data.fitted)
    served = Served(model)
    raw, targets, expected = served.samples(options.split, MEASURED if options.int8 else COMPARED)
    outputs = {name: {"dtype": str(v.dtype)[6:], "shape": ["N", *v.shape[1:]]} for name, v in expected.items()}
    content, run = served.file(options.format, raw, [*outputs])
    apart, of = served.difference(run, raw, expected), f"{len(targets)} samples of {options.split}"
    about |= {"inputs": served.inputs, "outputs": outputs, "parity": {"difference": apart, "of": of}}
    if not apart <= TOLERANCE:
        raise ConfigError(f"the export differs by {apart:.2g} from the model, over {TOLERANCE:g} -> another --format")
    rank_zero_print(f"The export differs by {apart:.2g} at most from the model, on {of}.")
    files = {NAMES[options.format]: content}
    if options.int8:
        files["model_int8.onnx"] = small = int8(content, served.samples("train", COMPARED)[0])
        before, after = about["int8"] = [served.measured(one, raw, targets) for one in (run, onnx_run(small))]
        worse = "slower" * (after["batch_sec"] > before["batch_sec"]) or "no smaller" * (len(small) >= len(content))
        figures = ", ".join(f"{name} {value:.5g} -> {after[name]:.5g}" for name, value in before.items())
        rank_zero_print(f"int8: {figures}{worse and f'; {worse} than float32'}")
    return files


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
