"""``aso up``, ``aso down``, ``aso status``: the embedded platform as one thing that is on or off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Annotated

import psutil
import typer
from rich.table import Table

from asyncstageout.cli import Advice, app, console
from asyncstageout.sandbox import children
from asyncstageout.sandbox.airflow_env import (
    ADMIN,
    ENGINE_VARIABLE,
    LOGINS_FILE,
    Engine,
    inherited_environment,
)
from asyncstageout.sandbox.layout import LOOPBACK, Layout
from asyncstageout.sandbox.postgres import EmbeddedPostgres
from asyncstageout.sandbox.state import (
    HEALTHY,
    Phase,
    PlatformStatus,
    ServiceState,
    has_supervisor,
    read_status,
    tail,
)

PAUSE_S = 0.2
LEAST_FREE_BYTES = 1_000_000_000
DOWN_TIMEOUT_S = 90
COLOURS = {ServiceState.READY: "green", ServiceState.DONE: "green", ServiceState.FAILED: "red"}


@app.command()
def up(
    wait: bool = typer.Option(True, help="Return when everything answers, or at once."),
    engine: Annotated[
        Engine,
        typer.Option(
            envvar=ENGINE_VARIABLE,
            help="Who runs tasks. celery: workers, redis, PgBouncer, and two schedulers and triggerers.",
        ),
    ] = Engine.LOCAL,
) -> None:
    """Start the embedded platform: Postgres, sandbox sites and FTS, Airflow. Does nothing if it runs."""
    layout = Layout.load()
    os.environ[ENGINE_VARIABLE] = engine
    if has_supervisor(layout.lock_file):
        console.print(f"The platform in {layout.home} runs already.")
    else:
        start(layout)
    if wait:
        follow(layout)
        show_entrance(Layout.load(layout.home))


@app.command()
def down(
    wipe: bool = typer.Option(False, "--wipe", help="Delete its data, files and passwords too."),
) -> None:
    """Stop the embedded platform and everything it started."""
    layout = Layout.load()
    stop(layout)
    if wipe:
        delete(layout)


@app.command()
def status(as_json: bool = typer.Option(False, "--json", help="Print one JSON object.")) -> None:
    """Show each service of the embedded platform. The exit code is 0 only when all are healthy."""
    layout = Layout.load()
    seen = current_status(layout)
    if seen is None:
        raise Advice(f"Nothing runs in {layout.home}.", "Start it with `aso up`.")
    if as_json:
        sys.stdout.write(json.dumps(_as_dict(seen), indent=1) + "\n")
    else:
        console.print(_table(seen))
        if seen.is_healthy:
            show_entrance(layout)
    raise typer.Exit(0 if seen.is_healthy else 1)


def start(layout: Layout) -> None:
    """Start the supervisor, detached from this terminal.

    Raises:
        Advice: there is no room, or it ended before it could say anything.
    """
    layout.prepare()
    free_bytes = shutil.disk_usage(layout.home).free
    if free_bytes < LEAST_FREE_BYTES:
        raise Advice(
            f"Only {free_bytes / 1e6:.0f} MB are free in {layout.home}; the platform needs 1,000 MB.",
            "Make room, or put it elsewhere with ASO_HOME.",
        )
    log = layout.logs / "supervisor.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncstageout.sandbox.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=inherited_environment(os.environ) | {"ASO_HOME": str(layout.home)},
        )
    while (seen := read_status(layout.state_file)) is None or seen.pid != process.pid:
        if process.poll() is not None:
            raise Advice(
                f"The supervisor did not start. The end of {log}:\n{tail(log)}",
                "Mend what it complains about, then run `aso up` again.",
            )
        time.sleep(PAUSE_S / 4)


def follow(layout: Layout) -> None:
    """Show the services one by one as they get ready; return when the platform runs.

    Raises:
        Advice: a service did not get up.
    """
    told: set[str] = set()
    with console.status("starting") as spinner:
        for seen in _statuses(layout):
            for service in seen.services:
                if service.name not in told and service.state in HEALTHY and service.ready_at:
                    told.add(service.name)
                    took_s = (service.ready_at - seen.started_at).total_seconds()
                    where = f"port {service.port}" if service.port else ""
                    console.print(f"  [green]✓[/green] {service.name:<18} {where:<12} {took_s:6.1f} s")
            busy = [service.name for service in seen.services if service.state not in HEALTHY]
            spinner.update("starting " + ", ".join(busy))


def stop(layout: Layout) -> None:
    """Stop the platform and wait until it is gone.

    Raises:
        Advice: it does not stop.
    """
    seen = current_status(layout)
    if seen is None or not has_supervisor(layout.lock_file):
        console.print("Nothing runs.")
        return
    supervisor = psutil.Process(seen.pid)
    with console.status("stopping"):
        children.send(supervisor, signal.SIGTERM)
        try:
            supervisor.wait(DOWN_TIMEOUT_S)
        except psutil.TimeoutExpired as error:
            raise Advice(
                f"The supervisor (pid {seen.pid}) did not stop within {DOWN_TIMEOUT_S} s.",
                f"See {layout.logs / 'supervisor.log'}; `kill -9 {seen.pid}` ends it and its children.",
            ) from error
    console.print("Stopped.")


def delete(layout: Layout) -> None:
    """Delete everything the platform keeps. Only folders of its own making: ``ASO_HOME`` may hold others."""
    EmbeddedPostgres(layout.postgres, layout.ports.postgres, secrets_dir=layout.secrets).delete()
    for folder in layout.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if layout.home.is_dir() and not any(layout.home.iterdir()):
        layout.home.rmdir()
    console.print(f"Deleted what was in {layout.home}.")


def current_status(layout: Layout) -> PlatformStatus | None:
    """Return what the living supervisor reports, or None when none lives."""
    return read_status(layout.state_file) if has_supervisor(layout.lock_file) else None


def show_entrance(layout: Layout) -> None:
    """Print where to log in, and how to stop. The password itself only goes to a terminal."""
    logins = layout.secrets / LOGINS_FILE
    secret = json.loads(logins.read_text())[ADMIN] if console.is_terminal else f"in {logins}"
    console.print(f"\nAirflow  http://{LOOPBACK}:{layout.ports.api_server}")
    console.print(f"Login    {ADMIN}, password {secret}", soft_wrap=True)
    console.print(f"Logs     {layout.logs}", soft_wrap=True)
    console.print("Stop     aso down")


def _statuses(layout: Layout) -> Iterator[PlatformStatus]:
    """Yield what the supervisor reports until the platform runs."""
    while True:
        alive = has_supervisor(layout.lock_file)
        seen = read_status(layout.state_file)
        if seen is None or not alive or seen.phase in (Phase.STOPPING, Phase.FAILED):
            problem = (seen and seen.problem) or "The supervisor ended while the platform was starting."
            raise Advice(problem, f"All logs are in {layout.logs}. `aso up` tries again.")
        yield seen
        if seen.phase is Phase.RUNNING:
            return
        time.sleep(PAUSE_S)


def _table(seen: PlatformStatus) -> Table:
    table = Table("service", "state", "pid", "port", "restarts", "memory", "log", box=None, pad_edge=False)
    for service in seen.services:
        table.add_row(
            service.name,
            f"[{COLOURS.get(service.state, 'yellow')}]{service.state}[/]",
            str(service.pid or ""),
            str(service.port or ""),
            str(service.restarts or ""),
            f"{children.memory_bytes(service.pid) / 1e6:.0f} MB" if service.pid else "",
            f"{service.log.parent.name}/{service.log.name}",
        )
    return table


def _as_dict(seen: PlatformStatus) -> dict[str, object]:
    facts = seen.model_dump(mode="json")
    for service in facts["services"]:
        service["memory_bytes"] = children.memory_bytes(service["pid"])
    return facts | {"healthy": seen.is_healthy}
