"""Which tasks of CRAB have ended, so that their blocks need not wait for more files: CRAB's REST is asked.

Only with an Airflow connection ``stageout_crab``; without it blocks are closed by their other rules.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg import Connection

from asyncstageout.catalogue.publication import crab_tasks_to_ask, end_tasks
from asyncstageout.clients.crab import PATIENCE, CRABError, CRABJudge
from asyncstageout.clients.http import Caller
from asyncstageout.provider.connections import ConnectionUnusable, crab_at

logger = logging.getLogger(__name__)

CONN_ID = "stageout_crab"
EVERY_S = 600.0
TASKS_AT_ONCE = 30
ENDED = frozenset({"COMPLETED", "FAILED", "KILLED", "REMOVED", "FAILED (KILLED)", "SUBMITFAILED"})
"""Of ``tm_task_status``, and of CRAB's own publisher (``PublisherMaster.py``)."""


def end_crab_tasks(conn: Connection) -> int:
    """Ask CRAB for tasks with open blocks, and note which have ended; return how many.

    A silent CRAB makes nothing red: its blocks wait for their other rules.
    """
    try:
        instance = BaseHook.get_connection(CONN_ID).extra_dejson.get("instance") or "prod"
        base, session = crab_at(CONN_ID, str(instance))
    except AirflowNotFoundException:
        return 0
    except ConnectionUnusable as error:
        logger.warning("%s", error)
        return 0
    caller = Caller(session, CRABJudge(), PATIENCE)
    ended: list[str] = []
    try:
        for task in crab_tasks_to_ask(conn, every_s=EVERY_S, at_most=TASKS_AT_ONCE):
            if _status(caller, base, task) in ENDED:
                ended.append(task)
    except CRABError as error:
        logger.warning("%s", error)
    finally:
        session.close()
    if ended:
        end_tasks(conn, ended)
    return len(ended)


def _status(caller: Caller, base: str, task: str) -> str | None:
    asked = {"subresource": "search", "workflow": task}
    answer = caller.ask("GET", f"{base}/task", may_repeat=True, params=asked)
    try:
        return status_in(answer.json())
    except (ValueError, KeyError, TypeError):
        logger.warning("task %s: not an answer of CRAB's REST", task)
        return None


def status_in(answer: Any) -> str | None:
    """Return ``tm_task_status`` of an answer, which has one row, as a list or as the only item of one."""
    columns, row = answer["desc"]["columns"], answer["result"]
    if row and isinstance(row[0], Sequence) and not isinstance(row[0], str):
        row = row[0]
    return dict(zip(columns, row, strict=True)).get("tm_task_status") if row else None
