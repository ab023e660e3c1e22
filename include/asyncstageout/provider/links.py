"""Buttons on task instances that lead to where the work is."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.sdk import BaseOperatorLink

from asyncstageout.ui import places

MONITOR_KEY = "fts_monitor_url"
"""Attribute in which an operator leaves the page of its (largest) FTS job in the FTS monitor."""
JOB_KEY = "fts_job_id"
"""Attribute in which an operator leaves the id of that job at FTS."""
ROOM = "/plugin/stageout/stageout/ui"
"""Where Airflow 3.3 shows a page of the plugin's room: behind the view's own route stands the page's path."""
OURS = "stageout_"


def in_room(place: str) -> str:
    """Return the address, on Airflow's own host, of a place in the room (:mod:`asyncstageout.ui.places`)."""
    root = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{root}{ROOM}{place}"


def run_in_room(dag_id: str, run_id: str) -> str:
    """Return where the room shows what a run did; nothing for other people's DAGs."""
    return in_room(places.run(dag_id, run_id)) if dag_id.startswith(OURS) else ""


class FTSJobLink(BaseOperatorLink):
    """The job that a task submitted, in the Stage-out room; of several, the largest."""

    name = "FTS job"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        job_id = getattr(operator, JOB_KEY, None)
        return in_room(places.job(job_id)) if job_id else ""


class FTSMonitorLink(BaseOperatorLink):
    """The FTS monitor's page of the job that a task submitted; of several, the largest."""

    name = "FTS monitor"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        return getattr(operator, MONITOR_KEY, None) or ""
