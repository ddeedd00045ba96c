"""Sends a run to Weights & Biases while it is being recorded: python -m src.loggers.wandb_sender FOLDER...

The last folder is the record that grows; those before it, which may be unfinished, are of the same run, cut short.
"""

import signal
import sys
from contextlib import suppress

from wandb.cli.cli import cli

from src.run.command import end_with_parent

if __name__ == "__main__":
    end_with_parent(signal.SIGTERM)  # of a run that was killed, this would wait for more for ever
    *earlier, growing = sys.argv[1:]
    with suppress(Exception, SystemExit):
        if earlier:
            cli(["sync", *earlier])
    cli(["beta", "sync", "--live", growing])
