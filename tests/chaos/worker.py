"""A process that does what Airflow's tasks do, in a loop: ``python -m chaos.worker cycles|sense|reconcile ...``.

Like Airflow's tasks it dies of nothing but a kill: a failure ends the try, and the next try goes on with the
same run. Kept alive by :mod:`chaos.bed`.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import psycopg
from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams, open_cycle
from asyncstageout.catalogue.sensing import staged_reports
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.clients.errors import FTSError
from asyncstageout.clients.fts3 import FTS3Client
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.steps.collect import collect
from asyncstageout.steps.group import group
from asyncstageout.steps.reconcile import repair
from asyncstageout.steps.recording import Summary, recorded
from asyncstageout.steps.sense import contact, sense_once
from asyncstageout.steps.submit import submit
from asyncstageout.steps.summarise import CycleIncomplete, summarise
from asyncstageout.steps.update_catalogue import update_catalogue

DAG_ID = "stageout_transfer"
FTS_SERVER = "fts3_default"
PAUSE_S = 0.25
PAUSES_S = {"cycles": PAUSE_S, "sense": PAUSE_S, "reconcile": 2.0}
IMPATIENT = Patience(tries=1, connect_s=2, read_s=3)

logger = logging.getLogger("chaos.worker")


class OneServer:
    """The clients of a house with one FTS server and one identity."""

    def __init__(self, client: FTS3Client) -> None:
        self._client = client

    def client(self, _server: str, _identity: str) -> FTS3Client:
        return self._client

    def storage_tokens(self, _identity: str) -> None:
        return None


def one_cycle(conn: Connection, client: FTS3Client, name: str) -> None:
    """Run a cycle, or go on with the one that this worker's last life left."""
    row = conn.execute(
        "SELECT run_id FROM cycle WHERE run_id LIKE %s AND summarised_at IS NULL ORDER BY id LIMIT 1",
        (f"{name}-%",),
    ).fetchone()
    run_id = row[0] if row else f"{name}-{datetime.now(UTC):%H%M%S.%f}"

    def step(task_id: str, body: Callable[[int], Summary]) -> Summary:
        return recorded(conn, Actor(task_id, name, DAG_ID, run_id), body)

    step(
        "collect",
        lambda number: collect(
            conn,
            dag_id=DAG_ID,
            run_id=run_id,
            params=CycleParams(),
            today=datetime.now(UTC).date(),
            step_run=number,
        ),
    )
    cycle = open_cycle(conn, DAG_ID, run_id, CycleParams())
    shards: list[object] = []

    def plan(number: int) -> Summary:
        summary, packed = group(conn, cycle, step_run=number)
        shards.extend(packed)
        return summary

    step("group", plan)
    for shard in range(len(shards)):
        step("submit", partial(_submit, conn, client, cycle.cycle_id, shard))
    step("summarise", lambda _: summarise(conn, cycle))


def _submit(conn: Connection, client: FTS3Client, cycle_id: int, shard: int, step_run: int) -> Summary:
    return submit(conn, OneServer(client), cycle_id=cycle_id, shard=shard, step_run=step_run)


def one_watch(conn: Connection, client: FTS3Client, name: str) -> None:
    """Ask once, and apply what is staged."""
    contact(conn, client, fts_server=FTS_SERVER, now=datetime.now(UTC))
    sense_once(conn, client, now=datetime.now(UTC))
    if staged_reports(conn):
        actor = Actor("update_catalogue", name, "stageout_sense", name)
        recorded(conn, actor, lambda number: update_catalogue(conn, now=datetime.now(UTC), step_run=number))


def one_reconcile(conn: Connection, client: FTS3Client, name: str) -> None:
    """Mend what there is to mend."""
    actor = Actor("repair", name, "stageout_reconcile", name)
    recorded(conn, actor, lambda number: repair(conn, OneServer(client), step_run=number))


WORK: dict[str, Callable[[Connection, FTS3Client, str], None]] = {
    "cycles": one_cycle,
    "sense": one_watch,
    "reconcile": one_reconcile,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORK)
    for name in ("name", "catalogue", "fts", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    access = Access(ca=args.ca, cert_file=args.cert, key_file=args.key)
    with FTS3Client(args.fts, new_session(access), vo="cms", patience=IMPATIENT) as client:
        while True:
            try:
                with connect(args.catalogue, args.name) as conn:
                    while True:
                        WORK[args.work](conn, client, args.name)
                        time.sleep(PAUSES_S[args.work])
            except (FTSError, CycleIncomplete, psycopg.OperationalError) as error:
                logger.warning("%s: %s", type(error).__name__, error)
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
