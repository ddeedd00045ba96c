"""Take a kind of data out of this project, with all that only it needs.

    python -m src.remove text --dry_run    # print what would go
    python -m src.remove text

A kind is a folder of src/data. With it go its tests and its page in docs/; the configs, commands and benchmarks that
name any of its modules; the networks and models that only these name; and the tests named like what goes. In what
stays, parts between the markers `kind: text` and `end` go (`<!-- ... -->` in Markdown, `# ...` elsewhere, or
`# kind: text` at the end of one line), and lines of tables, trees and commands that name what is gone; other commands
take an experiment that is left. It asks for a checkout without changes, from which git brings all back.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from src.config.request import CommandParser
from src.run.command import command
from src.run.errors import ConfigError, EnvironmentFault
from src.run.files import ROOT
from src.run.terminal import rank_zero_print

EDITED = (".py", ".md", ".yaml", ".toml", "Makefile")
MARKED = r"(?ms)^<!-- kind: {0} -->\n.*?^<!-- end -->\n+|^[ \t]*# kind: {0}\n.*?^[ \t]*# end\n|^[^\n]+  # kind: {0}\n"
LINE = re.compile(r"\||python -m |make |\w+/")  # of a table, a command or a tree
HISTORY = ("docs/log.md", "src/remove.py")  # may name what is not there any more
Files = dict[str, str]  # path -> text


def plan(kind: str, files: Files) -> tuple[set[str], Files]:
    """What goes with a kind, and what stays, as it is then."""
    cut = {path: re.sub(MARKED.format(kind), "", text) for path, text in files.items()}
    folders = (f"src/data/{kind}/", f"tests/data/{kind}/", f"docs/{kind}.md")
    first = {path for path, text in files.items() if path.startswith(folders) or (text and not cut[path])}
    gone = with_needless(first, cut)
    return gone, edited({path: text for path, text in cut.items() if path not in gone}, gone)


def with_needless(more: set[str], files: Files) -> set[str]:
    """These paths, those that name or test them, and the networks and models that nothing else needs."""
    gone = set[str]()
    while more:
        gone |= more
        left, names_gone = {path: text for path, text in files.items() if path not in gone}, modules(gone)
        users = [p for p in left if re.fullmatch(r"configs/.*\.yaml|(src|benchmarks)/\w+\.py|tests/.*\.yaml", p)]
        more = {path for path in users if names_gone.search(left[path])}
        # Overlays and tests go with what they name; modules and whole runs need it.
        needing = [p for p in left if p not in more and (p.startswith("src/") or re.search("(?m)^data:", left[p]))]
        was_needed, needed = ("\n".join(files[path] for path in paths) for paths in (gone | more, needing))
        parts = {path: modules([path]) for path in left if path.startswith(("src/networks/", "src/models/"))}
        more |= {path for path, name in parts.items() if name.search(was_needed) and not name.search(needed)}
    tests = {re.sub(r"src/(.*?)(\w+\.py)", r"tests/\1test_\2", path) for path in gone}
    tests |= {f"tests/golden/{name}.json" for name in experiments(gone)}
    return gone | (tests & files.keys())


def modules(paths: Iterable[str]) -> re.Pattern[str]:
    """What names one of these modules: `package.module` and `from package import module`."""
    dotted = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths if ".py" in path]
    names = [name.rpartition(".") for name in dotted]
    return re.compile("|".join(rf"\b{package}(?:\.| import .*\b){name}\b" for package, _, name in names) or "(?!)")


def naming(gone: set[str], left: Iterable[str]) -> re.Pattern[str]:
    """What names a file, folder, page or module that is gone."""
    folders = {path.rpartition("/")[0] for path in gone} - {path.rpartition("/")[0] for path in left}
    paths = [path.removeprefix("docs/") for path in (*gone, *(f"{folder}/" for folder in folders))]
    names = "|".join(map(re.escape, paths))
    return re.compile(rf"(?<![\w/.])(?:docs/)?(?:{names})|{modules(gone).pattern}")


def experiments(paths: Iterable[str]) -> list[str]:
    return sorted(PurePosixPath(path).stem for path in paths if path.startswith("configs/experiment/"))


def edited(left: Files, gone: set[str]) -> Files:
    """The files that stay, without lines about what is gone; other commands take an experiment that is left."""
    names, names_gone = rf"\b(?:{'|'.join(experiments(gone)) or '(?!)'})\b", naming(gone, left)
    of_kind = re.compile(rf"\|.*{names}|.*{names}.* --(model|data)\b")
    # Better one that needs no data to be fetched.
    other = min(experiments(left), key=lambda name: "--data." in left[f"configs/experiment/{name}.yaml"], default="")
    new = dict(left)
    for path in left:
        if path.endswith(EDITED) and not path.startswith(("tests/", "configs/", *HISTORY)):
            lines = [line for line in left[path].splitlines(keepends=True) if not of_kind.match(line)]
            lines = [re.sub(f"(?<!`){names}", other, line) for line in lines]  # in prose, names are between `
            lines = [line for line in lines if not (LINE.match(line) and names_gone.search(line))]
            new[path] = re.sub(r"```bash\n```\n\n?", "", "".join(lines))
    return new


def carry_out(kind: str, gone: Iterable[str], new: Files) -> None:
    for path in gone:
        (ROOT / path).unlink()
    for folder in (f"src/data/{kind}", f"tests/data/{kind}"):
        shutil.rmtree(ROOT / folder, ignore_errors=True)  # caches of Python are in it
    for path, text in new.items():
        (ROOT / path).write_text(text)
    python = [path for path in new if path.endswith(".py")]
    tidy = ["ruff", "check", "--quiet", "--fix", "--select", "I,F401"], ["ruff", "format", "--quiet"]
    for step in (*([*step, *python] for step in tidy if python), ["src.schema"]):
        subprocess.run([sys.executable, "-m", *step], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)


def git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault(f"{ROOT}: git says {done.stderr.strip()} -> removing needs a git checkout")
    return done.stdout


def read() -> Files:
    """The files of the project; those that are no text have an empty one."""
    paths = [p for p in git("ls-files", "-co", "--exclude-standard").splitlines() if (ROOT / p).is_file()]
    return {path: (ROOT / path).read_text() if path.endswith(EDITED) else "" for path in paths}


@command
def main(args: Sequence[str]) -> int:
    manual = argparse.RawDescriptionHelpFormatter
    parser = CommandParser("python -m src.remove", description=__doc__, formatter_class=manual)
    kinds = sorted(path.parent.name for path in ROOT.glob("src/data/*/__init__.py"))
    parser.add_argument("kind", choices=kinds, help="a folder of src/data")
    parser.add_argument("--dry_run", action="store_true", help="print what would go, and stop")
    options = parser.parse_args(list(args))
    if len(kinds) == 1:
        raise ConfigError(f"{options.kind} is the last kind of data -> add another before you remove it")
    if git("status", "--porcelain") and not options.dry_run:
        raise ConfigError("this checkout has changes that are not committed -> commit them, or put them away")
    files = read()
    gone, left = plan(options.kind, files)
    names_gone = naming(gone, left)
    found = [(path, names_gone.search(text)) for path, text in left.items() if path not in HISTORY]
    if named := [f"{path}: {match[0]}" for path, match in found if match]:
        raise ConfigError(f"what stays names what would go -> put it between markers: {'; '.join(named)}")
    changed = {path: text for path, text in left.items() if text != files[path]}
    for verb, paths in (("removed", gone), ("changed", changed)):
        rank_zero_print("\n".join(f"{verb}  {path}" for path in sorted(paths)))
    if not options.dry_run:
        carry_out(options.kind, gone, changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
