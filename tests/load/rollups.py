"""How long it takes to count an hour, and to read a month: ``python -m load.rollups [files]``, from ``tests``.

Makes a Postgres of its own in a temporary folder (about 1.2 kB of disk per file) and deletes it afterwards.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from psycopg import Connection

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.rollups import HOUR, roll_up_hour, roll_up_open
from load.bodies import SITES
from load.queue import MEMORY, Stopwatch
from load.server import loaded_catalogue, say

FILES = 1_667_000
"""463 files a second, a hundred times the load of CHEP 2015."""
FILES_PER_TASK, FILES_PER_JOB, USERS = 500, 200, 1_000

_TASKS = """
INSERT INTO task (name, username)
SELECT '261122_101112:user' || n %% %(users)s || '_crab_analysis_' || n, 'user' || n %% %(users)s
FROM generate_series(0, %(tasks)s - 1) n
"""

# Tasks run at many sites at once; a user's files go to his own.
_FILES = """
INSERT INTO transfer (request_id, task_id, username, source, destination, source_lfn, destination_lfn, size_bytes,
    state, created_at, due_at, attempt, fts_job, failure_category, fts_finished_at, ended_at)
SELECT 'hour' || n, n %% %(tasks)s + 1, 'user' || n %% %(tasks)s %% %(users)s,
    (%(sites)s::text[])[1 + (hashint8(n / 50) & 31)], (%(sites)s::text[])[33 + (n %% %(tasks)s %% %(users)s) %% 20],
    '/store/temp/user/user.abc/some/dataset/261122_101112/0000/out_' || n || '.root',
    '/store/user/user/some/dataset/261122_101112/0000/out_' || n || '.root', 1000000 + n,
    (CASE WHEN n %% 33 = 0 THEN 'FAILED' ELSE 'DONE' END)::transfer_state, c.at, c.at, 1,
    md5('hour' || n / %(per_job)s)::uuid, CASE WHEN n %% 33 = 0 THEN 'quota' END,
    c.at + make_interval(secs => 20 + n %% 300), c.at + make_interval(secs => 25 + n %% 300)
FROM generate_series(0, %(files)s - 1) n
CROSS JOIN LATERAL (SELECT %(start)s::timestamptz + make_interval(secs => 3270.0 * n / %(files)s) AS at) c
"""

_JOBS = """
INSERT INTO fts_job (sid, job_id, fts_server, cycle_id, source, destination, identity, activity, priority, params,
    transfer_ids, open_files, size_bytes, state, planned_at, submitted_at, ended_at, source_storage,
    source_protocol, destination_storage, destination_protocol)
SELECT fts_job, gen_random_uuid(), 'fts3_default', 1, min(source), min(destination), 'service', 'default', 3, '{}',
    array_agg(id), 0, sum(size_bytes), 'ENDED', min(created_at), min(created_at) + interval '3 s', max(ended_at),
    (SELECT min(id) FROM storage), 'davs', (SELECT min(id) FROM storage), 'davs'
FROM transfer GROUP BY fts_job
"""

_EVENTS = """
INSERT INTO transfer_event (transfer_id, at, from_state, to_state, attempt, fts_job, step_run, reason,
    failure_category)
SELECT t.id, e.at, e.from_state::transfer_state, e.to_state::transfer_state, e.attempt, t.fts_job, 1,
    CASE e.to_state WHEN 'FAILED' THEN 'HTTP 507' END, CASE e.to_state WHEN 'FAILED' THEN 'quota' END
FROM transfer t CROSS JOIN LATERAL (VALUES
    (t.created_at, NULL, 'NEW', 0::smallint), (t.created_at + interval '2 s', 'NEW', 'ACQUIRED', 0::smallint),
    (t.created_at + interval '3 s', 'ACQUIRED', 'SUBMITTED', 1::smallint),
    (t.ended_at, 'SUBMITTED', t.state::text, 1::smallint)
) e(at, from_state, to_state, attempt) ORDER BY e.at
"""


def main(files: int = FILES) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 2 * HOUR
    with loaded_catalogue(durable=False, settings=MEMORY) as loaded, connect(loaded.url) as conn:
        seconds = Stopwatch(loaded)
        ensure_partitions(conn, hour.date())
        seconds(f"seeded {files:,} files, {4 * files:,} events", lambda: seed_hour(conn, hour, files))
        seconds("the hour", lambda: roll_up_hour(conn, hour, step_run=1))
        say(f"  rows: {rows_by_kind(conn)}")
        conn.execute("DELETE FROM rolled_hour; DELETE FROM statistic_minute; DELETE FROM statistic_hour")
        conn.execute(
            "INSERT INTO rolled_hour (hour, until, events, step_run) VALUES (%s, %s, 0, 1)",
            (hour - HOUR, hour),
        )
        half_past = hour + timedelta(minutes=31)
        seconds("ten minutes of an open hour", lambda: roll_up_open(conn, half_past, step_run=1))


def seed_hour(conn: Connection, hour: datetime, files: int) -> None:
    """Let files arrive, travel and end within an hour."""
    values = {
        "files": files, "start": hour, "tasks": max(files // FILES_PER_TASK, 1), "users": USERS, "sites": SITES,
        "per_job": FILES_PER_JOB,
    }  # fmt: skip
    conn.execute("INSERT INTO cycle (dag_id, run_id) VALUES ('load', 'hour')")
    for statement in (_TASKS, _FILES):
        conn.execute(statement, values)
    for statement in (_JOBS, _EVENTS, "VACUUM ANALYZE transfer", "ANALYZE fts_job", "ANALYZE transfer_event"):
        conn.execute(statement)


def rows_by_kind(conn: Connection) -> dict[str, int]:
    return dict(conn.execute("SELECT kind::text, count(*) FROM statistic_hour GROUP BY 1").fetchall())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
