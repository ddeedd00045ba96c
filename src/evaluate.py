"""Measure a trained model again.

    python -m src.evaluate --run_dir logs/digits_cnn/2026-01-31_12-00-00
    python -m src.evaluate --run_dir logs/digits_cnn/2026-01-31_12-00-00 --split val --checkpoint last

Prints the metrics and writes them to evaluate_<split>.json in the run folder. The run's own config is used; any key
can be overridden with a flag, such as --data.num_workers or --trainer.accelerator. Other data is normalized by what was
measured on the training data of the run, and its name stands in that of the file.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.trained import other_data, report_other_data, run_parser, run_request, trained, unlimited
from src.run.command import command, command_line
from src.run.files import write_json
from src.run.terminal import rank, rank_zero_print


@command
def main(args: Sequence[str]) -> int:
    request = run_request(run_parser("evaluate", __doc__), args)
    experiment, path = trained(request, **unlimited(request))
    options = request.options
    measure = experiment.trainer.validate if options.split == "val" else experiment.trainer.test
    metrics = measure(experiment.model, datamodule=experiment.datamodule, ckpt_path=path, verbose=False)[0]
    report_other_data(request, experiment.datamodule.report)
    found = {"checkpoint": path.resolve().name, "command": command_line("src.evaluate", args), **metrics}
    if f"limit_{options.split}_batches" in unlimited(request):
        found["samples"] = experiment.datamodule.num_samples[options.split]
    if rank() == 0:
        write_json(Path(options.run_dir) / f"evaluate_{options.split}{other_data(request)}.json", found)
    for name, value in metrics.items():
        rank_zero_print(f"{name} {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
