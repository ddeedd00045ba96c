"""Why a model does badly, why its training is slow, or does not fit: with numbers, and a change that helps.

    python -m src.diagnose --config configs/experiment/digits_cnn.yaml
    python -m src.diagnose --config configs/experiment/digits_cnn.yaml --fix
    python -m src.diagnose --run_dir logs/digits_cnn/first

The config is trained in short trials in processes of their own, and watched; its data are examined; changes of the
config that may help are tried in the same way, and told where they help beyond noise. At most three findings, the
heaviest first, or `healthy`, or `unknown`. Nothing is written but logs/<experiment>/diagnose/, or --run_dir, or
`diagnose` in a run's own folder: diagnose.json, a page diagnose.html, a file for --config of each change. --fix tries
the first change once more, for longer; what helps is fixed.yaml. The exit code is 0 whatever is found.
"""

import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from src.config.request import CommandParser, Request, command_parser, positive, read_request
from src.run.command import command, command_line, loading
from src.run.errors import ConfigError, EnvironmentFault
from src.run.files import write_json
from src.run.folder import LOGS, RunFolder
from src.run.terminal import rank_zero_print, relative_path

if TYPE_CHECKING:
    from src.diagnosis.examine import Diagnosis


def diagnose(model: Any, minutes: float = 2.0, trainer: dict[str, Any] | None = None, **loaders: Any) -> "Diagnosis":
    """The same for any LightningModule, with `train_dataloaders` and `val_dataloaders`, or `datamodule`, as Trainer.fit
    takes them, and its Trainer's arguments. It is trained in forks: this process must not have used a GPU.

    Raises:
        ConfigError: if the model is none, or an argument is not known.
    """
    from lightning.pytorch import LightningModule, Trainer

    from src.diagnosis.examine import Examination
    from src.diagnosis.subject import ModuleSubject

    if not isinstance(model, LightningModule):
        raise ConfigError(f"model: {type(model).__name__} is no LightningModule -> wrap it in one")
    for of, given in ((Trainer.__init__, trainer or {}), (Trainer.fit, loaders)):
        known = [*signature(of).parameters]
        for key in (key for key in given if key not in known):
            near = get_close_matches(key, known, 1, 0.0)[0]
            raise ConfigError(f"{key}: {of.__qualname__} has no such argument -> {near}?")
    with TemporaryDirectory() as folder:
        return Examination(ModuleSubject(model, trainer, **loaders), Path(folder), 60 * minutes).run()


def diagnose_parser() -> CommandParser:
    parser = command_parser("diagnose", __doc__)
    parser.add_argument("--minutes", type=positive, default=2.0, metavar="M", help="about as long as it may take: 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here, too")
    parser.add_argument("--run", dest="run_dir", metavar="DIR", help="another name of --run_dir")
    parser.add_argument("--fix", action="store_true", help="try the first change once more, keep it if it helps")
    return parser


def asked(args: Sequence[str]) -> tuple[Request, Path, RunFolder | None]:
    """What is to be examined, a config or that of a run; the folder of the results; the run."""
    options = diagnose_parser().parse_known_args(args)[0]
    if options.run_dir and not options.config:
        (past := RunFolder(Path(options.run_dir))).config()
        request = read_request(diagnose_parser(), ["--config", f"{past.path}/config.yaml", *args])
        return request, past.path / "diagnose", past
    request = read_request(diagnose_parser(), args)
    folder = Path(options.run_dir or LOGS / request.experiment / "diagnose")
    there = [path for path in (folder / "config.yaml", *map(Path, options.config or ())) if path.is_file()]
    if own := [path for path in there if path.resolve().parent == folder.resolve()]:
        raise ConfigError(f"{own[0]}: where results would go -> another --run_dir; for a run, that without --config")
    return request, folder, None


@command
def main(args: Sequence[str]) -> int:
    began, (request, folder, past) = time.monotonic(), asked(args)
    options = request.options
    with loading():
        from src.config.build import Experiment
        from src.diagnosis import report
        from src.diagnosis.examine import Examination
        from src.diagnosis.fix import fix
        from src.diagnosis.subject import ConfigSubject

    config = Experiment(request).plain_config  # without secrets; it ends here where that is to be printed
    if options.json and options.json.is_dir():
        raise ConfigError(f"--json {options.json}: is a folder -> name a file in it")
    for option, path in (("--run_dir", folder), *([("--json", options.json.parent)] if options.json else ())):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EnvironmentFault(f"{path}: cannot be written: {e.strerror} -> name another {option}") from e
    examination = Examination(ConfigSubject(request), folder, 60 * options.minutes, rank_zero_print, past)
    files = [part for path in options.config or () for part in ("--config", relative_path(Path(path)))]
    trains = [*files, *diagnose_parser().parse_known_args(args)[1]]
    found = report.told(examination.run(), command_line("src.diagnose", args), trains, time.monotonic() - began)
    figures = report.tell(found, folder, request.experiment, examination)
    if options.json:
        write_json(options.json, found)
    report.record(found, figures, folder, config)
    if options.fix:
        rank_zero_print(f"\nfix       {fix(examination, request, folder, found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
