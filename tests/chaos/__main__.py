"""``make chaos``: every part of the real platform dies, and at every named point; ends with a table.

With ``ASO_ENGINE=celery`` (``make cluster``) it is the cluster, and what only a cluster has dies.

    python -m chaos [--seed 1] [--files 200] [--home FOLDER] [--only TEXT]

Exit code 1 if a file was lost, done twice, or without a next step for two minutes.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from asyncstageout.sandbox.airflow_env import Engine
from chaos import MOVING_POINTS
from chaos.ledger import Entry, Ledger
from chaos.platform import NotSeen, Platform

BOUND_S = 29 * 60
FIRE_TIMEOUT_S = 150.0
LATEST_MOMENT_S = 4.0
"""A fault strikes at a random moment between the arrival of its files and then: most of their way."""

NO_FAULT = "none, to compare"

logger = logging.getLogger("chaos")


class Fault(NamedTuple):
    """What is done to the platform while the files of a day move."""

    name: str
    prepare: Callable[[Platform], object]
    """Before the files arrive."""
    strike: Callable[[Platform], object]
    """At a random moment, or when a named point is reached."""


def nothing(_: Platform) -> None:
    """Leave the platform alone."""


CLUSTER_FAULTS = (
    Fault(NO_FAULT, nothing, nothing),
    Fault("kill -9 of a Celery worker with its tasks", nothing, Platform.kill_celery_worker),
    Fault("kill -9 of all Celery workers", nothing, Platform.kill_celery_workers),
    Fault("kill -9 of one of two schedulers", nothing, partial(Platform.kill, name="scheduler")),
    Fault("kill -9 of one of two triggerers", nothing, partial(Platform.kill, name="triggerer")),
    Fault("kill -9 of redis, which forgets", nothing, partial(Platform.kill, name="redis")),
    Fault("kill -9 of PgBouncer", nothing, partial(Platform.kill, name="pgbouncer")),
    Fault("kill -9 of Postgres", nothing, Platform.kill_postgres),
    Fault("kill -9 of the FTS", nothing, Platform.kill_fts),
)


def faults() -> Iterator[Fault]:
    """Yield all faults: first the parts, then the points between two effects, then with two of a kind."""
    yield Fault(NO_FAULT, nothing, nothing)
    for name in ("scheduler", "triggerer", "api-server", "dag-processor", "sites"):
        yield Fault(f"kill -9 of the {name}", nothing, partial(Platform.kill, name=name))
    yield Fault("kill -9 of a LocalExecutor worker", nothing, Platform.kill_worker)
    yield Fault("kill -9 of Postgres", nothing, Platform.kill_postgres)
    yield Fault("kill -9 of the FTS", nothing, Platform.kill_fts)
    yield Fault("kill -9 of the FTS, which forgets", nothing, partial(Platform.kill_fts, forget=True))
    for point in MOVING_POINTS:
        yield Fault(f"kill -9 at {point}", partial(Platform.arm, point=point), partial(await_point, point))
    yield Fault("two schedulers, two triggerers", Platform.start_seconds, nothing)
    for name in ("scheduler", "triggerer"):
        yield Fault(f"kill -9 of one of two {name}s", nothing, partial(Platform.kill, name=name))


def await_point(point: str, platform: Platform) -> None:
    """Wait until somebody came by the point, and died."""
    if point.startswith("reconcile."):
        give_reconcile_work(platform)
    platform.until(point, platform.has_fired, FIRE_TIMEOUT_S)


def give_reconcile_work(platform: Platform) -> None:
    """Leave something to mend: a step that never reported back."""
    with platform.connect() as conn:
        conn.execute(
            "INSERT INTO step_run (dag_id, run_id, task_id, actor, started_at)"
            " VALUES ('stageout_transfer', 'chaos', 'collect', 'chaos', now() - interval '2 hours')"
        )
    platform.trigger("stageout_reconcile")


def suffer(platform: Platform, fault: Fault) -> Entry:
    """Let a fault strike while files move, and look at what became of them."""
    fault.prepare(platform)
    load = platform.load()
    if "FTS" in fault.name:
        platform.until("FTS has files", lambda: platform.at_fts(load), FIRE_TIMEOUT_S)
    elif not fault.name.startswith("kill -9 at"):
        time.sleep(platform.random.uniform(0, LATEST_MOMENT_S))
    in_flight = platform.in_flight(load)
    missed: tuple[str, ...] = ()
    try:
        fault.strike(platform)
    except NotSeen as late:
        missed = (str(late),)
    findings = platform.until_final(load)
    platform.until_healthy()
    injected = int(not missed and fault.name != NO_FAULT)
    findings = replace(findings, problems=missed + findings.problems)
    return Entry(fault.name, injected, in_flight, findings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=200, help="on their way during each fault")
    parser.add_argument("--home", type=Path, help="of the platform; kept. Default: a new folder")
    parser.add_argument("--only", default="", help="faults with this in their name")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    home = args.home or Path(tempfile.mkdtemp(prefix="aso-chaos-"))
    home.mkdir(exist_ok=True)
    home.chmod(0o711)
    platform = Platform(home.absolute(), random.Random(args.seed), args.files)
    ledger = Ledger()
    begun_s = time.monotonic()
    try:
        platform.up()
        is_cluster = Engine.chosen(os.environ) is Engine.CELERY
        for fault in CLUSTER_FAULTS if is_cluster else faults():
            if args.only in fault.name:
                ledger.entries.append(suffer(platform, fault))
                logger.info("%s", "  ".join(ledger.entries[-1].cells))
            if time.monotonic() - begun_s > BOUND_S:
                logger.error("no time left after %s", fault.name)
                ledger.is_whole = False
                break
    finally:
        ledger.save(platform.layout.logs / "chaos.json")
        platform.down()
    sys.stdout.write(f"\n{ledger.table()}\n")
    sys.stdout.write(
        f"In {time.monotonic() - begun_s:.0f} s, seed {args.seed}. Logs: {platform.layout.logs}\n"
    )
    return 0 if ledger.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
