"""Write a trained model as files that are used without this project: raw input goes in, named answers come out.

    python -m src.export --run_dir logs/digits_cnn/first                         # model.onnx, in any batch size
    python -m src.export --run_dir logs/digits_cnn/first --int8                  # and model_int8.onnx, with what it loses
    python -m src.export --run_dir logs/digits_cnn/first --format torch_export   # model.pt2, for torch alone
    python -m src.export --run_dir logs/digits_cnn/first --format safetensors    # the weights, for model.init_from

Normalization, codes of words and the targets' own units are in the graph; model.json beside it says what goes in, what
comes out and what has to be done before. The file is read back and compared with the model, on samples of --split or,
where the run's data cannot be read, on random ones. What cannot be exported ends with a line that says why.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.trained import load_model, run_parser, run_request
from src.run.command import command
from src.run.errors import ConfigError, EnvironmentFault, KnownError, need
from src.run.files import sync, write_synced
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from src.exporting.graph import Served

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}
TOLERANCE = 1e-5  # of probabilities, and of numbers in standard deviations of their target
COMPARED, MEASURED = 64, 1024  # samples
USE = {
    "onnx": 'session = onnxruntime.InferenceSession("{file}")\nanswers = session.run(None, {{{inputs}}})',
    "torch_export": 'model = torch.export.load("{file}").module()\nanswers = model({{{inputs}}})',
    "safetensors": "python -m src.train --config ... --model.init_from {file}",
}


@command
def main(args: Sequence[str]) -> int:
    parser = run_parser("export", __doc__)
    parser.add_argument("--format", choices=[*FILES], default="onnx", help="of the model")
    parser.add_argument("--output", metavar="FOLDER", help="by default export/FORMAT in the run folder")
    parser.add_argument("--int8", action="store_true", help="also in int8, measured before and after (onnx)")
    request = run_request(parser, args)
    options = request.options
    output = Path(options.output or Path(options.run_dir) / "export" / options.format)
    if options.int8 and options.format != "onnx":
        raise ConfigError(f"--int8: not in {options.format} -> take --format onnx")
    if output.exists() and not (output / "model.json").is_file():
        raise ConfigError(f"--output {output}: is there, and is no export -> name another folder")
    for module in ("onnx", "onnxscript", "onnxruntime") if options.format == "onnx" else ():
        need(module, "export")
    experiment, model = load_model(request)
    from src.exporting.graph import Served

    served = Served(model)
    files = made(served, options)
    ...
    return 0
