"""Secrets stay out of all that a run prints and writes: those of the environment, and those under telling names."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # a shorter value of the environment would be found in innocent texts
WORDS = (
    r"(?:[\w.-]*[._-])?(?:(?<!cls_)(?<!class_)(?<!pad_)(?<!bos_)(?<!eos_)(?<!unk_)(?<!mask_)token|"  # words of models
    r"secret|password|passwd|(?:api|access|secret|private|auth)[_-]?key)|(?:[\w.-]*\.)?key"
)
NAME = re.compile(WORDS, re.IGNORECASE)
SETTING = re.compile(rf"(?<![\w.-])(?:{WORDS})['\"]?\s*[:=]\s*['\"]?([^\s'\",}}\]]+)", re.IGNORECASE)
VARIABLE = re.compile(r".*(TOKEN|KEY|SECRET|PASSWORD|PASSWD)", re.IGNORECASE)


def redact(data: Any, name: str = "") -> Any:
    """Plain data with its secrets hidden."""
    if isinstance(data, dict):
        named = name != "types"  # whose keys are columns, which may be called `key`
        return {key: redact(value, str(key) if named else "") for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [redact(value, name) for value in data]
    if isinstance(data, (int, float)) and not isinstance(data, bool) and not name.lower().endswith("token"):
        return HIDDEN if NAME.fullmatch(name) else data  # but pad_token: 0 is none
    if not isinstance(data, str):
        return data
    return HIDDEN if data and NAME.fullmatch(name) else hide(data)


def hide(text: str, more: Iterable[str] = ()) -> str:
    """A text without the values of the environment's secrets, and without these."""
    known = [value for name, value in os.environ.items() if VARIABLE.fullmatch(name) and len(value) >= SHORTEST]
    known += [json.dumps(value)[1:-1] for value in known]  # as a flag may hold it
    for value in sorted({*known, *more}, key=len, reverse=True):  # one may begin with another
        text = text.replace(value, HIDDEN)
    return text


def secrets_in(args: Sequence[str]) -> list[str]:
    """The values of flags that look secret: `--x.token=V`, `--x.token V`, `--x {api_key: V}`."""
    after = [value for flag, value in pairwise(args) if flag.startswith("--") and NAME.fullmatch(flag[2:])]
    return [*after, *(value for arg in args for value in SETTING.findall(arg.removeprefix("--")))]
