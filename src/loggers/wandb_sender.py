"""Sends a run to Weights & Biases while it is being recorded: python -m src.loggers.wandb_sender FOLDER...

The last folder is the record that grows; those before it, which may be unfinished, are of the same run, cut short.
"""

import signal
import sys
from collections.abc import Sequence

from wandb.cli.cli import cli

from src.run.command import end_with_parent


def main(folders: Sequence[str]) -> None:
    end_with_parent(signal.SIGTERM)  # of a run that was killed, this would wait for more for ever
    *earlier, growing = folders
    if earlier:
        try:
            cli(["sync", *earlier], standalone_mode=False)
        except (Exception, SystemExit) as e:
            print(f"{earlier}: {e}")
    cli(["beta", "sync", "--live", growing])


if __name__ == "__main__":
    main(sys.argv[1:])
