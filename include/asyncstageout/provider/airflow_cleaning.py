"""Cleans Airflow's own tables with Airflow's own command, which tasks cannot run as they are.

Tasks are kept away from Airflow's database. The command runs beside the task, on the database that the
connection ``airflow_db`` names; who does not want that on his workers leaves it out, and runs the command
elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy.engine import URL

from asyncstageout.steps.recording import Summary

CONN_ID = "airflow_db"
TIMEOUT_S = 900
DRIVERS = {"postgres": "postgresql+psycopg2", "mysql": "mysql+mysqldb"}
_DATABASE = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SQL_ALCHEMY_CONN")
LAST_LINES = 5


class CleaningFailed(Exception):
    """``airflow db clean`` did not do it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"airflow db clean {what}")


def clean_before(before: datetime) -> Summary:
    """Delete from Airflow's database what is older; the last run of each DAG stays.

    :raises CleaningFailed: it ended with an error, or not within a quarter of an hour.
    """
    command = [*_COMMAND, "--clean-before-timestamp", before.isoformat()]
    try:
        connection = BaseHook.get_connection(CONN_ID)
    except AirflowNotFoundException:
        return Summary(
            f"Airflow's tables were not cleaned: there is no connection {CONN_ID} (docs/how-to/history.md);"
            f" run it yourself: airflow {' '.join(command[3:])}"
        )
    _run(command, environment_for(connection, os.environ), connection.password or "")
    return Summary(f"Cleaned Airflow's tables of what was before {before:%Y-%m-%d %H:%M} UTC", {"cleaned": 1})


_COMMAND = (
    sys.executable,
    "-m",
    "airflow",
    "db",
    "clean",
    "--yes",
    "--skip-archive",
    "--batch-size",
    "10000",
)


def environment_for(connection: Connection, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the command: that of this process, with the database.

    :raises CleaningFailed: the connection is of no database that Airflow can have.
    """
    if connection.conn_type not in DRIVERS:
        raise CleaningFailed(
            f"cannot be run: {CONN_ID} is of type {connection.conn_type}, not {' or '.join(DRIVERS)}"
        )
    url = URL.create(
        DRIVERS[connection.conn_type], connection.login, connection.password, connection.host,
        connection.port, connection.schema, connection.extra_dejson,
    )  # fmt: skip
    kept = {name: value for name, value in environment.items() if not name.startswith("_AIRFLOW")}
    return kept | dict.fromkeys(_DATABASE, url.render_as_string(hide_password=False))


def _run(command: list[str], environment: Mapping[str, str], password: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CleaningFailed(f"took longer than {TIMEOUT_S} s") from error
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise CleaningFailed(f"ended with {done.returncode}: {said.replace(password or chr(0), '***')}")
