"""Take a kind of data out of this project, with all that only it needs.

    python -m src.remove text --dry_run    # print what would go
    python -m src.remove text

A kind is a folder of src/data. With it go its tests and its page in docs/, the experiments on it, the networks and
models that no other experiment, test or module names, and the commands and benchmarks that import any of these. In
what stays, parts between the markers `kind: text` and `end` go (`<!-- ... -->` in Markdown, `# ...` elsewhere, or
`# kind: text` at the end of one line), and lines of tables, trees and commands that name what is gone; other commands
take an experiment that is left. It asks for a checkout without changes, from which git brings all back.
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from src.run.command import command
from src.run.errors import ConfigError, EnvironmentFault, nearest
from src.run.files import ROOT
from src.run.terminal import rank_zero_print

EDITED = (".py", ".md", ".yaml", ".toml", "Makefile")
MARKERS = (
    r"(?ms)^<!-- kind: {kind} -->\n.*?^<!-- end -->\n+",
    r"(?ms)^[ \t]*# kind: {kind}\n.*?^[ \t]*# end\n",
    r"(?m)^[^\n]+  # kind: {kind}\n",
)
HISTORY = ("docs/log.md", "src/remove.py")  # may name what is not there any more


@dataclass
class Removal:
    """What goes with a kind, and what the files that stay look like afterwards."""

    kind: str
    files: dict[str, str]  # path -> text
    gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        folders = (f"src/data/{self.kind}/", f"tests/data/{self.kind}/", f"docs/{self.kind}.md")
        more = {path for path, text in self.files.items() if path.startswith(folders) or (text and not self.cut(text))}
        while more:
            self.gone |= more
            more = self.next_to_go()

    @cached_property
    def modules(self) -> dict[str, str]:
        """Dotted name -> path."""
        return {dotted(path): path for path in self.files if re.fullmatch(r"src/.*\.py", path)}

    @cached_property
    def named(self) -> dict[str, set[str]]:
        """Path -> paths of the modules of src that the file names."""
        return {path: set(self.found_in(path, text)) for path, text in self.files.items() if path.endswith(EDITED)}

    def found_in(self, path: str, text: str) -> Iterable[str]:
        names = imports(text) if path.endswith(".py") else re.findall(r"\bsrc(?:\.\w+)+", text)
        for name in names:
            while name and name not in self.modules:
                name = name.rpartition(".")[0]
            if name:
                yield self.modules[name]

    def next_to_go(self) -> set[str]:
        """What names, tests or records what is gone, and the parts that nothing names any more."""
        stays = {path: names for path, names in self.named.items() if path not in self.gone}
        users = r"configs/.*\.yaml|(src|benchmarks)/\w+\.py|tests/.*\.yaml"
        more = {path for path, names in stays.items() if re.fullmatch(users, path) and names & self.gone}
        needed = {name for path, names in stays.items() if path not in more and self.needs(path) for name in names}
        was_needed = {name for path in (self.gone | more) & set(self.named) for name in self.named[path]}
        more |= {path for path in was_needed - needed if re.match(r"src/(networks|models)/", path)}
        tests = {re.sub(r"src/(.*?)(\w+\.py)", r"tests/\1test_\2", path) for path in self.gone}
        golden = {f"tests/golden/{PurePosixPath(path).stem}.json" for path in self.gone if "/experiment/" in path}
        return ((more | tests | golden) & set(self.files)) - self.gone

    def needs(self, path: str) -> bool:
        """Whether what a file names must stay with it: modules, and whole runs. (Overlays and tests go with theirs.)"""
        return path.startswith("src/") or (path.endswith(".yaml") and "\ndata:" in f"\n{self.files[path]}")

    @cached_property
    def experiments(self) -> set[str]:
        return {PurePosixPath(path).stem for path in self.gone if path.startswith("configs/experiment/")}

    @cached_property
    def other_kind(self) -> str:
        return min(kind for kind in kinds(self.files) if kind != self.kind)

    @cached_property
    def other_experiment(self) -> str:
        """One that is left, if possible one that needs no data to be fetched."""
        left = sorted(p for p in self.files if re.fullmatch(r"configs/experiment/.*\.yaml", p) and p not in self.gone)
        ready = [path for path in left if "--data." not in self.files[path]]
        return PurePosixPath([*ready, *left][0]).stem

    @cached_property
    def names_gone(self) -> re.Pattern[str]:
        folders, left = (
            {f"{PurePosixPath(p).parent}/" for p in paths} for paths in (self.gone, set(self.files) - self.gone)
        )
        paths = [rf"(?<![\w/.]){re.escape(path)}" for path in (*self.gone, *(folders - left))]
        paths += [rf"\b{re.escape(dotted(path))}\b" for path in self.gone if path.startswith(("src/", "benchmarks/"))]
        paths += [rf"\]\({re.escape(PurePosixPath(path).name)}" for path in self.gone if path.startswith("docs/")]
        return re.compile("|".join(paths))

    @cached_property
    def edits(self) -> dict[str, str]:
        """Path -> new text, of the files that stay and change."""
        stay = {path: text for path, text in self.files.items() if path not in self.gone and path.endswith(EDITED)}
        new = {path: self.edited(path, text) for path, text in stay.items() if path not in HISTORY}
        return {path: text for path, text in new.items() if text != stay[path]}

    def cut(self, text: str) -> str:
        """A text without the parts that are marked as the kind's."""
        for marker in MARKERS:
            text = re.sub(marker.format(kind=self.kind), "", text)
        return text

    def edited(self, path: str, text: str) -> str:
        text = self.cut(text)
        if path.startswith(("tests/", "configs/")):
            return text
        lines, in_code, page = [], False, path.endswith(".md")
        for line in text.splitlines(keepends=True):
            in_code ^= line.startswith("```")
            if not page or in_code or line.startswith("|"):
                line = self.edited_line(line, page)
            lines.append(line.replace(f"KIND={self.kind}", f"KIND={self.other_kind}"))
        return re.sub(r"```bash\n```\n\n?", "", "".join(lines))

    def edited_line(self, line: str, on_page: bool) -> str:
        """A line of a source file, or of a page's code or tables: nothing where it is about what is gone alone."""
        experiments = rf"\b({'|'.join(self.experiments) or '(?!)'})\b"
        new = re.sub(experiments, self.other_experiment, line)
        of_kind = new != line and (re.search(r"--(model|data)\b", line) or line.startswith("|"))
        return "" if of_kind or (on_page and self.names_gone.search(new)) else new

    def left_over(self) -> list[str]:
        """Places in what stays that still name what is gone, which only a marker can mend."""
        found = []
        for path in sorted(set(self.files) - self.gone - set(HISTORY)):
            if path.endswith(EDITED):
                lines = self.edits.get(path, self.files[path]).splitlines()
                found += [f"{path}: {line.strip()[:80]}" for line in lines if self.names_gone.search(line)]
        return found

    def carry_out(self, root: Path) -> None:
        for path in self.gone:
            (root / path).unlink()
        for folder in (f"src/data/{self.kind}", f"tests/data/{self.kind}"):
            shutil.rmtree(root / folder, ignore_errors=True)  # caches of Python are in it
        for path, text in self.edits.items():
            (root / path).write_text(text)
        python = [path for path in self.edits if path.endswith(".py")]
        tidy = ["ruff", "check", "--quiet", "--fix", "--select", "I,F401"], ["ruff", "format", "--quiet"]
        steps = [*([*step, *python] for step in tidy if python), ["src.schema"]]
        for step in steps:
            subprocess.run([sys.executable, "-m", *step], cwd=root, check=False, stdout=subprocess.DEVNULL)


def kinds(paths: Iterable[str]) -> list[str]:
    return sorted(match[1] for path in paths if (match := re.fullmatch(r"src/data/(\w+)/__init__\.py", path)))


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(text: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentFault(f"{root}: git says {done.stderr.strip()} -> removing needs a git checkout")
    return done.stdout


def read(root: Path) -> dict[str, str]:
    """The files of the project; those that are no text have an empty one."""
    paths = [p for p in git(root, "ls-files", "-co", "--exclude-standard").splitlines() if (root / p).is_file()]
    return {path: (root / path).read_text() if path.endswith(EDITED) else "" for path in paths}


@command
def main(args: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m src.remove", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", help="a folder of src/data")
    parser.add_argument("--dry_run", action="store_true", help="print what would go, and stop")
    parser.add_argument("--force", action="store_true", help="also where changes are not committed")
    options = parser.parse_args(list(args))
    files = read(ROOT)
    there = kinds(files)
    if options.kind not in there:
        raise ConfigError(f"{options.kind} is none of the kinds {', '.join(there)}{nearest(options.kind, there)}")
    if len(there) == 1:
        raise ConfigError(f"{options.kind} is the last kind of data -> add another before you remove it")
    if git(ROOT, "status", "--porcelain") and not (options.force or options.dry_run):
        raise ConfigError("this checkout has changes that are not committed -> commit them, or give --force")
    removal = Removal(options.kind, files)
    if left := removal.left_over():
        raise ConfigError(f"{len(left)} lines name what would go -> put them between markers: {'; '.join(left)}")
    rank_zero_print("\n".join(f"removed  {path}" for path in sorted(removal.gone)))
    rank_zero_print("\n".join(f"changed  {path}" for path in sorted(removal.edits)))
    if not options.dry_run:
        removal.carry_out(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
