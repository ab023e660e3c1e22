"""What names may look like (dbs2go's ``static/lexicon_writer.json``, ``lexicon_reader.json``), and who looks.

A server looks at the parameters of a GET (``dbs/validator.go``), and at few names of what is inserted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from asyncstageout.sandbox.dbs.problems import INVALID_PARAMETER, PATTERN, VALIDATE, Problem

_WORD, _NAME = r"[a-zA-Z0-9\-_]+", r"[a-zA-Z][a-zA-Z0-9\-_]*"
_USER = r"(([a-zA-Z0-9\.]+)|([a-zA-Z0-9\-_]+))"
WRITER: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "logical_file_name": (
        (
            rf"^/([a-z]+)/([a-z0-9]+)/({_WORD})/({_WORD})/([A-Z\-_]+)/({_WORD})((/[0-9]+){{3}}){{0,1}}/([0-9]+)/({_WORD}).root$",
            rf"^/([a-z]+)/([a-z0-9]+)/([a-z0-9]+)/({_WORD})/({_WORD})/([A-Z\-_]+)/({_WORD})((/[0-9]+){{3}}){{0,1}}/([0-9]+)/({_WORD}).root$",
            rf"^/store/(temp/)*(user|group)/{_USER}/({_NAME})/({_WORD})/({_WORD})/([0-9]+)/({_WORD}).root$",
            rf"^/store/(temp/)*(user|group)/{_USER}/({_NAME})/(({_WORD})/)+({_WORD}).root$",
            rf"^/store/data/({_WORD})/({_NAME})/([A-Z\-_]+)/({_WORD})/([0-9]+)/([0-9]+)/([0-9]+)/({_WORD}).root$",
            rf"^/store/mc/({_WORD})/({_WORD})/({_WORD})/({_WORD})(/({_WORD}))*/({_WORD}).root$",
            rf"^/store/results/({_WORD})/({_NAME})/({_WORD})/({_NAME})/([A-Z\-_]+)/({_WORD})/([0-9]+)/({_WORD}).root$",
        ),
        500,
    ),
    "block_name": ((r"^/[a-zA-Z][a-zA-Z0-9\-_]+/[a-zA-Z0-9\.\-_]+/[A-Z\-_]+#[a-zA-Z0-9\.\-_]+",), 402),
    "dataset": (
        (r"^/[a-zA-Z0-9\-_]{1,99}/[a-zA-Z0-9\.\-_]{1,199}/[A-Z\-]{1,50}$", r".*unittest.*"),
        301,
    ),
    "processed_ds_name": (
        (r"^[a-zA-Z][a-zA-Z0-9_]*(\-[a-zA-Z0-9_]+){0,2}-v[0-9]*$", r"^[a-zA-Z0-9\.\-_]+"),
        -1,
    ),
    "data_tier_name": ((r"^([A-Z\-]{3,100})+$",), 99),
}
_BLOCK_WILD = (
    r"^/(\*|[a-zA-Z\*][a-zA-Z0-9_\*]{0,100})(/(\*|[a-zA-Z0-9_\.\-\*]{1,199})){0,1}"
    r"(/(\*|[A-Z\-\*]{1,99})(#(\*|[a-zA-Z0-9\.\-_\*]){0,100}){0,1}){0,1}$"
)
_DATASET_WILD = (
    r"^/(\*|[a-zA-Z\*][a-zA-Z0-9_\*\-]{0,100})(/(\*|[a-zA-Z0-9_\.\-\*]{1,199})){0,1}"
    r"(/(\*|[A-Z\-\*]{1,50})){0,1}$"
)
_ANY_NAME = r"^[a-zA-Z0-9/%*][a-zA-Z0-9/\.\-_%*/#]*$"
READER: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "logical_file_name": (
        (r"^/store/([A-Za-z0-9._\-/])+/([A-Za-z0-9._\-])+(.root|.lhe(.xz){0,1})$",),
        500,
    ),
    "block_name": (
        (
            r"\[.*,\s*.*\]",
            r"^/([a-zA-Z0-9]+[a-zA-Z0-9\-\._]*)/([a-zA-Z]+[a-zA-Z0-9_\-\.]*)/([A-Z_\-\.]+)#([a-fA-F0-9\-\.]+)$",
            _BLOCK_WILD,
        ),
        402,
    ),
    "dataset": (
        (
            r"^/([a-zA-Z0-9]+[a-zA-Z0-9\-\._]*)/([a-zA-Z]+[a-zA-Z0-9_\-\.]*)/([A-Z_\-\.]+)$",
            _DATASET_WILD,
            r".*unittest.*",
        ),
        301,
    ),
    "data_tier_name": ((r"^([A-Z]{3,100})+$",), 99),
    "primary_ds_name": ((rf"^{_NAME}$", _ANY_NAME), 99),
}


def check_pattern(key: str, value: str) -> None:
    """Look at a name of a record that is inserted (``dbs.CheckPattern``).

    Raises:
        Problem: no pattern fits it. What the lexicon does not know fits.
    """
    patterns, _ = WRITER.get(key, ((), -1))
    if patterns and not any(_matches(pattern, value) for pattern in patterns):
        raise Problem(INVALID_PARAMETER, PATTERN, f"invalid pattern for key={key}", "dbs.CheckPattern")


def check_parameter(lexicon: Mapping[str, tuple[tuple[str, ...], int]], key: str, value: str) -> None:
    """Look at a parameter of a GET (``dbs.Validate``).

    Raises:
        Problem: it is too long, or no pattern fits it.
    """
    patterns, length = lexicon.get(key, ((), -1))
    if not patterns:
        return
    if 0 < length < len(value):
        message = f"length of {value} exceed {length} characters"
    elif not any(_matches(pattern, value) for pattern in patterns):
        message = f"unable to match '{key}' value '{value}'"
    else:
        return
    inner = Problem(INVALID_PARAMETER, PATTERN, message, "dbs.validator.Check")
    raise inner.within(VALIDATE, "not str type", "dbs.Validate")


def _matches(pattern: str, value: str) -> bool:
    # The $ of Go is the very end of the text.
    return re.search(re.sub(r"\$$", r"\\Z", pattern), value) is not None
