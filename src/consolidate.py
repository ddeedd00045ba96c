"""Make one file of a sharded checkpoint.

    python -m src.consolidate --run_dir logs/digits_vit/first
    python -m src.consolidate --run_dir logs/digits_vit/first --checkpoint last

The file gets the checkpoint's name and lies in the run folder. It is an ordinary checkpoint: for --resume, for
model.init_from, and to be taken elsewhere. Other commands read sharded checkpoints as they are. The host's memory must
hold it.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from src.config.trained import checkpoint_path, run_parser, run_request
from src.run import checkpoint
from src.run.command import command
from src.run.terminal import rank_zero_print, relative_path


@command
def main(args: Sequence[str]) -> int:
    request = run_request(run_parser("consolidate", __doc__), args)
    path = checkpoint_path(request).resolve()
    if "shards" not in checkpoint.read_manifest(path):
        rank_zero_print(f"It is one file already: {relative_path(path)}")
        return 0
    saved, file = checkpoint.load(path), io.BytesIO()
    torch.save(saved, file)
    whole = Path(request.options.run_dir) / path.name
    checkpoint.store(whole, file.getbuffer(), checkpoint.position_of(saved))
    rank_zero_print(f"One file: {relative_path(whole)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
