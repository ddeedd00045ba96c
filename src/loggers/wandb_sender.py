"""Sends a run to Weights & Biases while it is being recorded: python -m src.loggers.wandb_sender FOLDER...

The last folder is the record that grows; those before it, which may be unfinished, are of the same run, cut short.
"""

import ctypes
import signal
import sys
from collections.abc import Sequence

from wandb.cli.cli import cli

PR_SET_PDEATHSIG = 1


def main(folders: Sequence[str]) -> None:
    if sys.platform == "linux":  # end with the training: of a run that was killed, this would wait for more for ever
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    *earlier, growing = folders
    if earlier:
        try:
            cli(["sync", *earlier], standalone_mode=False)
        except (Exception, SystemExit) as e:
            print(f"{earlier}: {e}")
    cli(["beta", "sync", "--live", growing])


if __name__ == "__main__":
    main(sys.argv[1:])
