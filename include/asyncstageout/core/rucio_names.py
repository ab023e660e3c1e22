"""Names of files, datasets and scopes in Rucio, as CMS makes them (CRABServer, ``ASO/Rucio``)."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated
from uuid import UUID, uuid5

from pydantic import AfterValidator

GROUP_AREA = re.compile(r"/store/group/rucio/(?P<group>[A-Za-z0-9_\-]+)/")
_TASKS = UUID("0f0f4a0f-52d2-5d53-9a3c-3f6f1c2f3a51")
_UNFIT = re.compile(r"[^A-Za-z0-9_.\-]+")
LONGEST_TASK_CHARS = 150
"""CMS's processed dataset names have 199 at most; what was cut off is still in the uuid."""


def _check(template: str, known: frozenset[str]) -> str:
    try:
        names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"no template: {error}") from error
    if unknown := names - known:
        said = ", ".join(f"{{{name}}}" for name in sorted(known))
        raise ValueError(f"unknown {{{sorted(unknown)[0]}}}; there is {said}")
    return template


def check_rse(template: str) -> str:
    """Return the template of an RSE's name; raises ValueError if it is none."""
    return _check(template, frozenset({"site"}))


def check_dataset(template: str) -> str:
    """Return the template of a dataset's name; raises ValueError if it is none."""
    return _check(template, frozenset({"username", "task", "uuid"}))


Template = Annotated[str, AfterValidator(lambda template: _check(template, frozenset({"username", "group"})))]


def scope_of(lfn: str, username: str, *, user_scope: str, group_scope: str) -> str:
    """Return the scope of a file: its group's, where the LFN is in a group's area, else its user's.

    >>> scope_of("/store/group/rucio/higgs/a.root", "alice",
    ...     user_scope="user.{username}", group_scope="group.{group}")
    'group.higgs'
    """
    found = GROUP_AREA.match(lfn)
    if found:
        return group_scope.format(group=found["group"], username=username)
    return user_scope.format(username=username, group="")


def dataset_of(template: str, username: str, task: str) -> str:
    """Return the name of the dataset for a task's files that are in no block.

    >>> dataset_of("/AsyncStageOut/{username}-{task}/USER#{uuid}", "alice", "261122_040000:alice_crab_a")
    '/AsyncStageOut/alice-261122_040000-alice_crab_a/USER#5b47ff7c-0ac5-503a-acaf-39fd505413a6'
    """
    fit = _UNFIT.sub("-", task)[:LONGEST_TASK_CHARS]
    return template.format(username=username, task=fit, uuid=uuid5(_TASKS, task))
