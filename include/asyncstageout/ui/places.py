"""Where things are shown: paths below the room, the same for links in pages and for links from elsewhere.

Each returns a path with its parameters quoted; ``Page.url`` puts the room before it.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, urlencode

OVERVIEW, LINKS, SITES = "/", "/links", "/sites"
USERS, TASKS, FAILURES, SEARCH = "/users", "/tasks", "/failures", "/search"
JOBS, CYCLES, STEPS, AUDIT = "/jobs", "/cycles", "/steps", "/audit"
ALERTS = "/alerts"


def path(*parts: object, **query: object) -> str:
    """Return a path of these parts; None leaves a parameter out.

    >>> path("sites", "T2 X/Y", range="1h", unit=None)
    '/sites/T2%20X%2FY?range=1h'
    """
    found = "".join("/" + quote(str(part), safe="") for part in parts) or "/"
    given = [(name, value) for name, value in query.items() if value is not None]
    return f"{found}?{urlencode(given, doseq=True)}" if given else found


@lru_cache(20_000)  # a page may name thousands, and again when it is looked at again
def link(source: str, destination: str) -> str:
    return path("links", source, destination)


def site(name: str) -> str:
    return path("sites", name)


def user(name: str) -> str:
    return path("users", name)


def task(name: str) -> str:
    return path("tasks", name)


def file(number: int) -> str:
    return path("files", number)


def failures(**where: str | None) -> str:
    """Return where failures are shown; by ``category``, ``user``, ``site``, ``source``, ``destination``."""
    return path("failures", **where)


def job(sid: object) -> str:
    return path("jobs", sid)


def cycle(cycle_id: int) -> str:
    return path("cycles", cycle_id)


def run(dag_id: str, run_id: str) -> str:
    return path("runs", dag_id, run_id)


def log(
    dag_id: str, run_id: str, task_id: str, map_index: int | str = -1, try_number: int | None = None
) -> str:
    """Return where Airflow shows the log of a task: a path below Airflow's own root."""
    mapped = ("mapped", map_index) if int(map_index) >= 0 else ()
    return path("dags", dag_id, "runs", run_id, "tasks", task_id, *mapped, try_number=try_number)


def airflow_run(dag_id: str, run_id: str) -> str:
    """Return where Airflow shows a run: a path below Airflow's own root."""
    return path("dags", dag_id, "runs", run_id)


def alert(number: int) -> str:
    return path("alerts", number)


def runbook(name: str) -> str:
    return path("runbooks", name)
