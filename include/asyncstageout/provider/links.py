"""Buttons on task instances that lead to where the work is."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

MONITOR_KEY = "fts_monitor_url"
"""XCom key under which an operator leaves the page of its (largest) FTS job."""


class FTSMonitorLink(BaseOperatorLink):
    """The FTS monitor's page of the job that a task submitted; of several, the largest."""

    name = "FTS monitor"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        return getattr(operator, MONITOR_KEY, None) or ""
