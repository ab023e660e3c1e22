"""A catalogue with a long past: ``python -m load.history --rows N --database URL``, from ``tests``.

Fills ``transfer_history`` of a migrated catalogue with files that ended in the months before this one, with their
tasks and FTS jobs: 800 bytes of disk and some 10 CPU-µs a file. Fill first what is to be the past: the numbers of
files go up with time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from time import perf_counter

from psycopg import Connection, sql

from asyncstageout.catalogue.connection import connect
from asyncstageout.catalogue.history import LIVE_COLUMNS
from asyncstageout.catalogue.partitions import ensure_partitions
from asyncstageout.catalogue.storages import put_sites, site_urls
from load.bodies import SITES
from load.server import say

MONTHS = 13
"""As many as are kept by default."""
FILES_PER_TASK, FILES_PER_JOB, USERS = 2_000, 200, 1_000
# 3 % of the files failed for good.
_FILES = """
INSERT INTO {partition} ({columns})
SELECT %(first)s + n, encode(sha224(('past' || %(first)s + n)::bytea), 'hex'), %(task)s + n / %(per_task)s,
    u.name, u.name, u.source, u.destination, '/store/temp/user/' || u.name || '.abc/' || l.tail,
    '/store/user/' || u.name || '/' || l.tail, 1000000 + n, '0a1b2c3d', 'output', 'default', 3,
    n::text, 0, o.state, e.at, 1, md5('job' || %(first)s + n / %(per_job)s)::uuid, n,
    o.category, o.code, NULL, NULL, o.reason, 'NOT_REQUIRED', e.at, e.at + interval '200 s',
    e.at + interval '195 s', e.at + interval '200 s', NULL, NULL, NULL, e.at + interval '260 s', false
FROM generate_series(0, %(rows)s - 1) n
CROSS JOIN LATERAL (SELECT 'mc/past/QCD_Pt-15to7000_13TeV/261122_101112/0000/out_' || n || '.root' AS tail) l
CROSS JOIN LATERAL (SELECT 'user' || (n / %(per_task)s) %% %(users)s AS name,
    (%(sites)s::text[])[1 + (n / %(per_job)s) %% 59] AS source,
    (%(sites)s::text[])[60 - (n / %(per_task)s) %% 17] AS destination) u
CROSS JOIN LATERAL (SELECT %(start)s::timestamptz + make_interval(secs => n * %(step_s)s::float8) AS at) e
CROSS JOIN LATERAL (SELECT (CASE WHEN n %% 33 = 0 THEN 'FAILED' ELSE 'DONE' END)::transfer_state AS state,
    CASE WHEN n %% 33 = 0 THEN 'quota' END AS category, CASE WHEN n %% 33 = 0 THEN 60323 END AS code,
    CASE WHEN n %% 33 = 0 THEN 'TRANSFER [5] TRANSFER ERROR: Copy failed (3rd pull). Last attempt: copy'
        ' HTTP 507 : Insufficient Storage' END AS reason) o
"""

_TASKS = """
INSERT INTO task (name, username, created_at)
SELECT 'past_' || %(first)s + n, 'user' || n %% %(users)s, %(start)s FROM generate_series(0, %(tasks)s - 1) n
RETURNING id
"""

_JOBS = """
INSERT INTO fts_job (sid, job_id, fts_server, cycle_id, source, destination, identity, activity, priority, params,
    transfer_ids, open_files, size_bytes, state, fts_state, planned_at, submitted_at, ended_at,
    source_storage, source_protocol, destination_storage, destination_protocol)
SELECT f.fts_job, gen_random_uuid(), 'fts3_default', %(cycle)s, min(f.source), min(f.destination), 'service',
    'default', 3, '{{}}', array_agg(f.id), 0, sum(f.size_bytes), 'ENDED', 'FINISHED', min(f.created_at),
    min(f.created_at), max(f.ended_at), min(s.storage_id), 'davs', min(d.storage_id), 'davs'
FROM {partition} f JOIN site s ON s.name = f.source JOIN site d ON d.name = f.destination GROUP BY f.fts_job
"""

_KNOWN = "INSERT INTO past_request SELECT hashtextextended(request_id, 0), id FROM {partition} ORDER BY 1, 2"


def fill(conn: Connection, rows: int, *, months: int = MONTHS, today: date | None = None) -> None:
    """Put ``rows`` files into the months before this one, evenly; those months must be empty."""
    if rows == 0:
        return
    today = today or datetime.now(UTC).date()
    put_sites(
        conn,
        {site: f"davs://{site.lower()}.sandbox.test:8443" for site in SITES if site not in site_urls(conn)},
        "load",
    )
    ensure_partitions(conn, today)
    conn.execute("SET maintenance_work_mem = '1GB'")
    (first,) = conn.execute("SELECT nextval(pg_get_serial_sequence('transfer', 'id'))").fetchone() or (1,)
    (cycle,) = conn.execute(
        "INSERT INTO cycle (dag_id, run_id, created_at) VALUES ('load', %s, %s) RETURNING id",
        (f"past_{first}", datetime(2000, 1, 1, tzinfo=UTC)),
    ).fetchone() or (0,)
    for place, month in enumerate(months_before(today, months)):
        share = rows * (place + 1) // months - rows * place // months
        _fill_month(conn, month, first=first, rows=share, cycle=cycle)
        first += share
    conn.execute("SELECT setval(pg_get_serial_sequence('transfer', 'id'), %s)", (first,))
    for table in ("transfer_history", "past_request", "task", "fts_job"):
        conn.execute(f"VACUUM ANALYZE {table}")


def months_before(today: date, months: int) -> Iterator[tuple[date, date]]:
    """Yield the first days of months and of those that follow them, the oldest first; not this month."""
    ends = [today.replace(day=1)]
    while len(ends) <= months:
        ends.append((ends[-1] - timedelta(days=1)).replace(day=1))
    yield from zip(reversed(ends[1:]), reversed(ends[:-1]), strict=True)


def _fill_month(conn: Connection, month: tuple[date, date], *, first: int, rows: int, cycle: int) -> None:
    """Fill a table by itself and attach it: its indexes are made once, of all rows."""
    start, end = month
    names = {"partition": sql.Identifier(f"transfer_history_{start:%Y%m}"), "columns": sql.SQL(LIVE_COLUMNS)}
    values = {
        "first": first, "rows": rows, "users": USERS, "sites": SITES, "per_task": FILES_PER_TASK,
        "per_job": FILES_PER_JOB, "tasks": -(-rows // FILES_PER_TASK), "start": start, "cycle": cycle,
        "step_s": (end - start).total_seconds() / max(rows, 1) * 0.999,
    }  # fmt: skip
    with conn.transaction():
        values["task"] = min(task for (task,) in conn.execute(_TASKS, values))
        for statement in ("CREATE TABLE {partition} (LIKE transfer_history)", _FILES, _JOBS):
            conn.execute(sql.SQL(statement).format(**names), values if "%" in statement else None)
        bounds = sql.SQL("FOR VALUES FROM ({}) TO ({})").format(f"{start}T00:00:00Z", f"{end}T00:00:00Z")
        conn.execute(sql.SQL(_KNOWN).format(**names))
        conn.execute(
            sql.SQL("ALTER TABLE transfer_history ATTACH PARTITION {partition} ").format(**names) + bounds
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m load.history", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--rows", type=lambda text: int(float(text)), required=True, help="files, such as 1e7"
    )
    parser.add_argument("--database", required=True, help="postgresql:// URL of a migrated catalogue")
    parser.add_argument("--months", type=int, default=MONTHS)
    wanted = parser.parse_args()
    started_s = perf_counter()
    with connect(wanted.database, "load") as conn:
        fill(conn, wanted.rows, months=wanted.months)
    say(f"{wanted.rows:,} files of the last {wanted.months} months in {perf_counter() - started_s:,.0f} s")


if __name__ == "__main__":
    main()
