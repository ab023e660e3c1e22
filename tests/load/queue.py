"""How long the catalogue takes when ten million files wait: ``python -m load.queue [files]``, from ``tests``.

Makes a Postgres of its own in a temporary folder (about 1.3 kB of disk per file) and deletes it afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from psycopg import Connection

from asyncstageout.catalogue.claims import Entitled, links_with_work, lock_grouping, take
from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.cycles import CycleParams
from asyncstageout.catalogue.intake import add_transfers
from asyncstageout.catalogue.lookup import FileFilter, list_files
from asyncstageout.catalogue.step_runs import Actor, start_step
from asyncstageout.core.requests import read_requests
from load.bodies import SITES, record
from load.server import LoadedCatalogue, loaded_catalogue, say

FILES = 10_000_000
BATCH = 10_000
CYCLE = 20_000
ROOMS = (2_000, 200)
FILES_PER_TASK = 5_000
USERS = 1_000
MEMORY = {"shared_buffers": "2GB"}
"""What a server for such a queue has at least; the embedded one is for less."""

# Each user's files come from many sites and go to his own, so that a queue has some 30,000 pairs of link and user.
_SEED = """
INSERT INTO transfer (request_id, task_id, username, identity, source, destination, source_lfn,
    destination_lfn, size_bytes, priority, due_at, created_at)
SELECT encode(sha224(('seed' || n)::bytea), 'hex'), %(task)s + n / %(per_task)s, user_name, user_name,
    (%(sites)s::text[])[1 + (hashint8(n / 50) & 31)],
    (%(sites)s::text[])[33 + (hashtext(user_name) & 15)],
    '/store/temp/user/' || user_name || '.abc/some/dataset/261122_101112/0000/out_' || n || '.root',
    '/store/user/' || user_name || '/some/dataset/261122_101112/0000/out_' || n || '.root',
    1000000 + n, 3, now() - make_interval(secs => (%(files)s - n) / 100.0),
    now() - make_interval(secs => (%(files)s - n) / 100.0)
FROM generate_series(0, %(files)s - 1) n,
    LATERAL (SELECT 'user' || (n / %(per_task)s) %% %(users)s AS user_name) u
"""


def main(files: int = FILES) -> None:
    with (
        loaded_catalogue(durable=False, settings=MEMORY) as loaded,
        connect(loaded.url) as conn,
    ):
        seconds = Stopwatch(loaded)
        step = start_step(conn, Actor(task_id="load", name="load"))
        seconds("seeded", lambda: seed(conn, files))
        params = CycleParams()
        views = seconds("links_with_work", lambda: links_with_work(conn, params))
        pairs = sum(len(view.usernames) for view in views)
        say(f"  {len(views)} links, {pairs} pairs of link and user")
        cycle = params.model_copy(update={"limit": CYCLE})
        for room in ROOMS:
            entitled = [Entitled(*view.link, user, room) for view in views for user in view.usernames]
            with conn.transaction(force_rollback=True):
                lock_grouping(conn)
                seconds(
                    f"take {CYCLE:,}, room {room:,} on each link", lambda e=entitled: take(conn, cycle, e)
                )
        for batch in range(5):
            numbers = range(batch * BATCH, (batch + 1) * BATCH)
            good, _ = read_requests(record(number) for number in numbers)
            seconds(f"add_transfers {BATCH:,}", lambda good=good: add_transfers(conn, good, step))
        seconds(
            "a page of 1,000 files of a user",
            lambda: list_files(conn, FileFilter(username="user7"), limit=1000),
        )
        task = FileFilter(task="seed_7")
        seconds("a page of 1,000 files of a task", lambda: list_files(conn, task, limit=1000))
        for label, question in COUNTS.items():
            seconds(label, lambda question=question: conn.execute(question).fetchall())


COUNTS = {
    "states of one task": "SELECT state, count(*) FROM transfer WHERE task_id = 7 GROUP BY 1",
    "states of everything": "SELECT state, count(*) FROM transfer GROUP BY 1",
}


def seed(conn: Connection, files: int, statement: str = _SEED) -> None:
    """Fill the queue, with this statement; indexes are made afterwards, which is many times quicker."""
    tasks = conn.execute(
        "INSERT INTO task (name, username) SELECT 'seed_' || n, 'user' || (n - 1) %% %s"
        " FROM generate_series(1, %s) n RETURNING id",
        (USERS, files // FILES_PER_TASK + 1),
    )
    first = min(task for (task,) in tasks)
    indexes = conn.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'transfer'"
        " AND indexname NOT IN (SELECT conname FROM pg_constraint)"
    ).fetchall()
    for name, _ in indexes:
        conn.execute(f"DROP INDEX {name}")
    wanted = {"files": files, "sites": SITES, "per_task": FILES_PER_TASK, "users": USERS, "task": first}
    conn.execute(statement, wanted)
    conn.execute("SET maintenance_work_mem = '1GB'")
    for _, definition in indexes:
        conn.execute(definition)
    # Counted before the vacuum and not after it, or autovacuum would soon do it all again, during what is measured.
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("VACUUM ANALYZE transfer")
    conn.execute("ANALYZE task")


class Stopwatch:
    """Says how long work took, and how much of that Postgres computed; the rest is disk, neighbours and us."""

    def __init__(self, catalogue: LoadedCatalogue) -> None:
        self._catalogue = catalogue

    def __call__(self, what: str, work: Callable[[], Any]) -> Any:
        started_s, computed_s = perf_counter(), self._catalogue.cpu_s()
        result = work()
        took_s = perf_counter() - started_s
        say(f"{took_s:8.3f} s, {self._catalogue.cpu_s() - computed_s:8.2f} s of CPU: {what}")
        return result


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
