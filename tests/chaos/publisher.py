"""A process that publishes in children of its own, which may die: ``python -m chaos.publisher --dbs URL ...``.

Each line on its input names a control file of :mod:`asyncstageout.steps.crashpoints`, or nothing. A child that
knows nothing of what others did before then does what the DAG's tasks do, and how it ended is the line that
comes back. Children are forked before there is any thread or connection, so one start of Python serves all.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.step_runs import Actor
from asyncstageout.clients.dbs import DBSClient, DBSReader
from asyncstageout.clients.http import Access, Patience, new_session
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.steps.assemble import assemble
from asyncstageout.steps.crashpoints import CONTROL_FILE
from asyncstageout.steps.publish import publish
from asyncstageout.steps.recording import Summary, recorded

IMPATIENT = Patience(tries=1, connect_s=5, read_s=10)
SETTINGS = PublicationSettings(first_after_s=0, close_after_s=0, block_files=2)


class OneInstance:
    """A house with one DBS."""

    def __init__(self, client: DBSClient, reader: DBSReader) -> None:
        self._client, self._reader = client, reader

    def settings(self, _dbs: str) -> PublicationSettings:
        return SETTINGS

    def client(self, _dbs: str) -> DBSClient:
        return self._client

    def global_reader(self, _dbs: str) -> DBSReader:
        return self._reader


def one_run(conn: Connection, dbs: OneInstance) -> None:
    """Do what one run of the DAG does."""
    shards: list[list[int]] = []

    def first(step_run: int) -> Summary:
        now = datetime.now(UTC) + timedelta(seconds=1)
        summary, found = assemble(conn, dbs.settings, now=now, step_run=step_run)
        shards.extend(list(shard.block_ids) for shard in found)
        return summary

    recorded(conn, Actor("assemble", "publisher", "stageout_publish", "r"), first)
    for ids in shards:
        recorded(
            conn,
            Actor("publish", "publisher", "stageout_publish", "r"),
            lambda step_run, ids=ids: publish(conn, dbs, ids, step_run=step_run),  # type: ignore[misc]
        )


def child(args: argparse.Namespace, control_file: str) -> None:
    if control_file:
        os.environ[CONTROL_FILE] = control_file
    access = Access(ca=args.ca, cert_file=args.cert, key_file=args.key)
    with (
        connect(args.catalogue, "publisher") as conn,
        DBSClient(f"{args.dbs}/phys03/DBSWriter", new_session(access), patience=IMPATIENT) as client,
        DBSReader(f"{args.dbs}/global/DBSReader", new_session(access), patience=IMPATIENT) as reader,
    ):
        one_run(conn, OneInstance(client, reader))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("catalogue", "dbs", "ca", "cert", "key"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    for line in sys.stdin:
        if pid := os.fork():
            _, status = os.waitpid(pid, 0)
            sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()
            continue
        child(args, line.strip())
        os._exit(0)


if __name__ == "__main__":
    main()
