"""``aso airflow``: Airflow's own commands, on the embedded platform."""

from __future__ import annotations

import subprocess
import sys

import typer

from asyncstageout.cli import Advice, app
from asyncstageout.cli.up import current_status
from asyncstageout.sandbox.layout import Layout
from asyncstageout.sandbox.services import airflow_environment_of


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def airflow(context: typer.Context) -> None:
    """Run a command of Airflow on the embedded platform, such as `aso airflow backfill create --help`."""
    layout = Layout.load()
    if current_status(layout) is None:
        raise Advice("The platform does not run.", "`aso up` starts it. Elsewhere use your own `airflow`.")
    done = subprocess.run(  # noqa: S603 - what its user types
        [sys.executable, "-m", "airflow", *context.args], env=airflow_environment_of(layout), check=False
    )
    raise typer.Exit(done.returncode)
