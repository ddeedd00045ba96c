"""Why a model does badly, why its training is slow, or does not fit: with numbers, and a change that helps.

    python -m src.diagnose --config configs/experiment/digits_cnn.yaml
    python -m src.diagnose --run_dir logs/digits_cnn/first

The config is trained in short trials in processes of their own, and watched; its data are examined; changes of the
config that may help are tried in the same way, and told where they help beyond noise. At most three findings, the
heaviest first, or `healthy`, or `unknown`. Nothing is written but logs/<experiment>/diagnose/, or a run's
own folder: diagnose.json, and a file for --config of each change. The exit code is 0 whatever is found.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from src.config.request import CommandParser, command_parser, positive, read_request
from src.run.command import command, loading
from src.run.files import write_json
from src.run.folder import LOGS
from src.run.terminal import rank_zero_print

if TYPE_CHECKING:
    from src.diagnosis.examine import Diagnosis


def diagnose(model: Any, minutes: float = 2.0, **loaders: Any) -> "Diagnosis":
    """The same for any LightningModule, with `train_dataloaders` and `val_dataloaders`, or `datamodule`, as Trainer.fit
    takes them. Copies are trained, in forks of this process, which must not have used a GPU."""
    from src.diagnosis.examine import Examination
    from src.diagnosis.subject import OfModule

    with TemporaryDirectory() as folder:
        return Examination(OfModule(model, **loaders), Path(folder), 60 * minutes).run()


def diagnose_parser() -> CommandParser:
    parser = command_parser("diagnose", __doc__)
    parser.add_argument("--minutes", type=positive, default=2.0, metavar="M", help="about as long as it may take: 2")
    parser.add_argument("--json", metavar="FILE", help="write what was found here, too")
    return parser


@command
def main(args: Sequence[str]) -> int:
    request = read_request(diagnose_parser(), args)
    options = request.options
    with loading():
        from src.diagnosis.examine import Examination
        from src.diagnosis.subject import OfConfig

    folder = Path(options.run_dir or LOGS / request.experiment / "diagnose")
    folder.mkdir(parents=True, exist_ok=True)
    found: Any = Examination(OfConfig(request), folder, 60 * options.minutes, rank_zero_print).run()
    for file in (folder / "diagnose.json", *([Path(options.json)] if options.json else [])):
        write_json(file, found.plain())
    for one in found.findings:
        rank_zero_print(f"{one.question}: {one.text}  {one.evidence}  {one.change or one.todo}")
    rank_zero_print(found.verdict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
