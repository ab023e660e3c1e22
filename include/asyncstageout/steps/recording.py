"""Puts every step on record: who, when, what came out, in one sentence and in numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.step_runs import Actor, end_step, start_step
from asyncstageout.steps import collector

logger = logging.getLogger(__name__)

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a step did: for people, and for programs."""

    sentence: str
    counts: dict[str, int] = field(default_factory=dict)

    def as_xcom(self) -> dict[str, Any]:
        return {"sentence": self.sentence, **self.counts}


def recorded(conn: Connection, actor: Actor, step: Callable[[int], Summary]) -> Summary:
    """Run a step under a record of its own; the record says so if the step fails.

    Args:
        step: takes the id of the record, which its events carry.
    """
    step_run = start_step(conn, actor)
    try:
        with collector.waits():
            summary = step(step_run)
    except BaseException as error:
        # A kill too: whoever reads the record must not take the step for one that still runs.
        if not conn.closed:
            end_step(conn, step_run, outcome="failed", sentence=f"{type(error).__name__}: {error}", counts={})
        raise
    end_step(conn, step_run, outcome="success", sentence=summary.sentence, counts=summary.counts)
    logger.info("%s", summary.sentence)
    return summary


def files(count: int) -> str:
    """Say a number of files.

    >>> files(1), files(2310)
    ('1 file', '2,310 files')
    """
    return f"{count:,} file{'' if count == 1 else 's'}"


def size(size_bytes: int) -> str:
    """Say a size in decimal units, as storage people do.

    >>> size(4_100_000_000_000)
    '4.1 TB'
    """
    power = min(len(UNITS) - 1, int(math.log(max(size_bytes, 1), 1000)))
    return f"{size_bytes / 1000**power:.{min(power, 1)}f} {UNITS[power]}"
