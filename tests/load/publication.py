"""What publication costs: ``python -m load.publication [files] [waiting] [open blocks]``, from ``tests``.

Publishes files of one task into a sandbox DBS in a process of its own, then looks how long ``assemble`` takes
while others wait for their metadata and thousands of blocks are open.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time

from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.file_metadata import Metadata, put_metadata
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.catalogue.storages import put_sites
from asyncstageout.clients.dbs import DBSClient
from asyncstageout.clients.dbs_errors import DBSError
from asyncstageout.clients.http import Access, new_session
from asyncstageout.core.blocks import PublicationSettings
from asyncstageout.core.publication import facts_or_problem
from asyncstageout.core.requests import read_requests
from asyncstageout.sandbox.layout import free_port
from asyncstageout.sandbox.tls import SandboxTLS, client_certificate, sandbox_tls
from asyncstageout.steps.assemble import assemble
from asyncstageout.steps.publish import publish
from fixtures.catalogue import SITES, record
from fixtures.publication import Instances, body, land, lfn
from load.server import LoadedCatalogue, loaded_catalogue, say

FILES, WAITING, OPEN_BLOCKS = 10_000, 100_000, 10_000
LUMIS = 20
"""Of a file; each with its events."""
BATCH = 1_000
ADMIN = "/DC=test/DC=fts/CN=localhost"


def main(files: int = FILES, waiting: int = WAITING, open_blocks: int = OPEN_BLOCKS) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        loaded_catalogue(durable=False) as loaded,
        connect(loaded.url) as conn,
        served_dbs(Path(folder)) as client,
    ):
        put_sites(conn, SITES, "load")
        ensure_partitions(conn, datetime.now(UTC).date())
        meter = Meter(loaded)
        step = start_step(conn, Actor(task_id="load", name="load"))
        arrive(conn, step, files)
        land(conn, step)
        with meter(f"metadata of {files:,} files, read and kept", files):
            describe(conn, step, files)
        conn.execute("VACUUM ANALYZE")
        dbs = Instances({"dbs_default": client}, None, PublicationSettings())
        with meter(f"assemble {files:,} files", files):
            _, shards = look(conn, dbs, step)
        with meter(f"publish {sum(len(one.block_ids) for one in shards)} blocks", files):
            for shard in shards:
                say("    " + publish(conn, dbs, shard.block_ids, step_run=step).sentence)
        done = conn.execute("SELECT count(*) FROM transfer WHERE publication = 'DONE'").fetchone()
        say(f"  {done and done[0]:,} files are DONE")
        crowd(conn, waiting, open_blocks)
        for what in ("once, all of them due", "with nothing due", "with 100 files due"):
            if what.startswith("with 100"):
                arrive(conn, step, 100, first=files)
                land(conn, step)
                describe(conn, step, 100, first=files)
            with meter(f"assemble beside {waiting:,} waiting files and {open_blocks:,} open blocks, {what}"):
                say("    " + look(conn, dbs, step)[0].sentence)


def look(conn: Connection, dbs: Instances, step: int):  # type: ignore[no-untyped-def]
    return assemble(conn, dbs.settings, now=datetime.now(UTC), step_run=step)


def arrive(conn: Connection, step: int, files: int, first: int = 0) -> None:
    for start in range(first, first + files, BATCH):
        numbers = range(start, min(start + BATCH, first + files))
        records = [record(n, publish=True, destination_lfn=lfn(n)) for n in numbers]
        add_transfers(conn, read_requests(records)[0], step)


def describe(conn: Connection, step: int, files: int, first: int = 0) -> None:
    """Say what is in the files, as the API does: read, judged, kept."""
    for start in range(first, first + files, BATCH):
        said = []
        for number in range(start, min(start + BATCH, first + files)):
            request = read_requests([record(number)])[0][0][1]
            lumis = {str(LUMIS * number + lumi + 1): "100" for lumi in range(LUMIS)}
            text = body(number, runlumi={"1": lumis})
            said.append(
                Metadata(request.request_id, request.task, "alice", json.dumps(text), facts_or_problem(text))
            )
        put_metadata(conn, said, by="alice", step_run=step)


def crowd(conn: Connection, waiting: int, open_blocks: int) -> None:
    """Let files wait for their metadata, and blocks of other tasks for more files."""
    conn.execute(
        "INSERT INTO task (name, username) SELECT 'crowd_' || n, 'user' || n %% 1000 FROM generate_series(1, %s) n",
        (open_blocks,),
    )
    conn.execute(
        "INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn, destination_lfn,"
        " size_bytes, state, publication, ended_at)"
        " SELECT encode(sha224(('wait' || n)::bytea), 'hex'), (SELECT max(id) FROM task) - n %% %s, 'user1',"
        " 'T2_IT_Bari', 'T2_CH_CERN', '/store/temp/user/user1.a/mc/w_' || n, '/store/user/user1/mc/w_' || n, 1,"
        " 'DONE', 'NEW', now() FROM generate_series(1, %s) n",
        (open_blocks, waiting),
    )
    conn.execute(
        "INSERT INTO block (name, task_id, dataset, destination, dbs, transfer_ids, lumis, payload_bytes,"
        " size_bytes, oldest_at) SELECT '/Mc/user-' || id || '/USER#1', id, '/Mc/user-' || id || '/USER',"
        " 'T2_CH_CERN', 'dbs_default', (SELECT array_agg(n) FROM generate_series(1, 50) n), 50, 50000, 50, now()"
        " FROM task WHERE name LIKE 'crowd_%'"
    )
    conn.execute("VACUUM ANALYZE")


class Meter:
    """Says how long something took, and how much we and Postgres computed for it."""

    def __init__(self, catalogue: LoadedCatalogue) -> None:
        self._catalogue = catalogue

    @contextmanager
    def __call__(self, what: str, files: int | None = None) -> Iterator[None]:
        began_s, ours_s, theirs_s = perf_counter(), process_time(), self._catalogue.cpu_s()
        yield
        took_s = perf_counter() - began_s
        ours_s, theirs_s = process_time() - ours_s, self._catalogue.cpu_s() - theirs_s
        each = f" ({ours_s * 1000 / files:.2f} + {theirs_s * 1000 / files:.2f} per 1,000)" if files else ""
        say(f"{took_s:8.2f} s; CPU ours {ours_s:.2f} s, Postgres {theirs_s:.2f} s{each}: {what}")


def wait_for(client: DBSClient) -> None:
    """Wait until a server that was just started answers; its client is patient already."""
    for _ in range(10):
        with suppress(DBSError):
            client.server_info()
            return
    client.server_info()


@contextmanager
def served_dbs(folder: Path) -> Iterator[DBSClient]:
    """Serve a DBS in a process of its own, as the platform does."""
    tls: SandboxTLS = sandbox_tls(folder)
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "asyncstageout.sandbox.dbs", "--port", str(port), "--ca", str(tls.ca),
            "--cert", str(tls.server.cert), "--key", str(tls.server.key), "--state", str(folder),
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pair = client_certificate(folder, "host", ADMIN)
    access = Access(ca=str(tls.ca), cert_file=str(pair.cert), key_file=str(pair.key))
    try:
        with DBSClient(f"https://127.0.0.1:{port}/dbs/prod/phys03/DBSWriter", new_session(access)) as client:
            wait_for(client)
            yield client
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
