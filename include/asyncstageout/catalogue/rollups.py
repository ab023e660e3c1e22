"""Counts what happened in an hour, from its events alone, and keeps the sums: the same again gives the same.

An hour is replaced in one transaction. While it is not over, what happened is counted every few minutes
(``statistic_slice``), so that nobody who looks has to count more than the last of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from math import log

from psycopg import Connection, IsolationLevel

from asyncstageout.catalogue.measures import ATTEMPTS, COLUMNS, COUNTED, DELAYS, MOVES, added_up
from asyncstageout.catalogue.partitions import ensure_month
from asyncstageout.core.delays import GROWTH, LEAST_S, Delay

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SLICE = timedelta(minutes=10)
"""Read at once: at a hundred times today's load a million events."""
OPEN_EVERY = timedelta(minutes=2)
LAG = timedelta(seconds=30)
"""Events are written some time before their transaction is over; what comes later waits for its hour."""
LATE, LOST = timedelta(hours=3), timedelta(days=7)
"""So far back it is looked for events that came after their hour was counted; for hours not counted."""
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_LOCK = 0x5A60
"""Who counts, counts alone."""

_TABLES = """
CREATE TEMP TABLE moved (transfer_id bigint, at timestamptz, from_state text, to_state text, around text,
    category text, attempt smallint, fts_job uuid) ON COMMIT DROP;
CREATE TEMP TABLE seen (id bigint, source text, destination text, task_id bigint, size_bytes bigint,
    state text, fts_job uuid, failure_category text, since_at timestamptz, is_plain boolean,
    fts_finished_at timestamptz) ON COMMIT DROP;
CREATE TEMP TABLE fact (minute timestamptz, source text, destination text, task_id bigint, from_state text,
    to_state text, around text, category text, size_bytes bigint, accepted_after integer, in_fts integer,
    settled_after integer, done_after integer) ON COMMIT DROP;
CREATE TEMP TABLE tally (minute timestamptz, source text, destination text, task_id bigint, from_state text,
    to_state text, around text, category text, delay text, bucket integer, files bigint, size_bytes bigint)
    ON COMMIT DROP;
"""

_MOVED = f"""
INSERT INTO moved
SELECT transfer_id, at, from_state::text, to_state::text, NULL, failure_category, attempt, fts_job
FROM transfer_event WHERE at >= %(start)s AND at < %(end)s AND {COUNTED}
UNION ALL
SELECT transfer_id, at, from_state, to_state, kind || ' ' || to_state, NULL, NULL, NULL
FROM file_event WHERE at >= %(start)s AND at < %(end)s
"""

_RECOUNT = f"""
SELECT (SELECT count(*) FROM transfer_event WHERE at >= %(start)s AND at < %(end)s AND {COUNTED})
    + (SELECT count(*) FROM file_event WHERE at >= %(start)s AND at < %(end)s)
"""

_FILE = """
    source, destination, task_id, size_bytes, state::text, fts_job, failure_category, created_at,
    due_at = created_at, fts_finished_at
"""

# One probe per file and place, in the order of their numbers; LIMIT keeps the planner from reading the table.
_SEEN_LIVE = f"""
INSERT INTO seen
SELECT f.id, t.* FROM (SELECT DISTINCT transfer_id AS id FROM moved ORDER BY 1) f
CROSS JOIN LATERAL (SELECT {_FILE} FROM transfer WHERE id = f.id LIMIT 1) t
"""
_SEEN_PAST = f"""
INSERT INTO seen
SELECT f.id, t.* FROM (
    SELECT transfer_id AS id FROM moved EXCEPT SELECT id FROM seen ORDER BY 1
) f CROSS JOIN LATERAL (SELECT {_FILE} FROM transfer_history WHERE id = f.id LIMIT 1) t
"""

# Of a file that was sent again, waits begin then. Only one that waited for something may have been.
_SINCE = """
UPDATE seen f SET since_at = again.at FROM (
    SELECT s.id, e.at FROM seen s CROSS JOIN LATERAL (
        SELECT at FROM transfer_event
        WHERE transfer_id = s.id AND at >= %(start)s - interval '1 day' AND at < %(end)s
            AND from_state IN ('DONE', 'FAILED', 'KILLED') AND to_state = 'NEW'
        ORDER BY id DESC LIMIT 1
    ) e WHERE NOT s.is_plain
) again WHERE f.id = again.id
"""

_MOVE = "from_state, to_state, around, category"
# greatest() passes over a NULL.
_BUCKET = (
    f"CASE WHEN {{took}} IS NOT NULL THEN ceil(ln(greatest(extract(epoch FROM {{took}})::float8, {LEAST_S}))"
    f" / {log(GROWTH)!r})::integer END"
)
_TOOK = {
    Delay.ACCEPTED_AFTER: "(CASE WHEN m.to_state = 'SUBMITTED' AND m.attempt = 1 THEN m.at - f.since_at END)",
    Delay.IN_FTS: "(CASE WHEN f.fts_job = m.fts_job THEN f.fts_finished_at - j.submitted_at END)",
    Delay.SETTLED_AFTER: "(CASE WHEN m.to_state = 'DONE' AND f.fts_job = m.fts_job"
    " THEN m.at - f.fts_finished_at END)",
    Delay.DONE_AFTER: "(CASE WHEN m.to_state = 'DONE' AND m.attempt > 0 THEN m.at - f.since_at END)",
}

_FACTS = f"""
INSERT INTO fact
SELECT date_trunc('minute', m.at), f.source, f.destination, f.task_id, m.from_state, m.to_state, m.around,
    CASE WHEN m.to_state IN ('RETRY', 'FAILED') AND m.around IS NULL
        THEN coalesce(m.category, CASE WHEN f.state = m.to_state THEN f.failure_category END, 'other') END,
    f.size_bytes, {", ".join(_BUCKET.format(took=took) for took in _TOOK.values())}
FROM moved m JOIN seen f ON f.id = m.transfer_id
    LEFT JOIN fts_job j ON j.sid = m.fts_job AND m.to_state = 'DONE'
"""

# Small sums in several statements: Postgres hashes these, and would sort the facts for all sums at once.
_TALLIES = (
    f"""
    INSERT INTO tally (minute, source, destination, task_id, {_MOVE}, files, size_bytes)
    SELECT minute, source, destination, task_id, {_MOVE}, count(*), sum(size_bytes) FROM fact
    GROUP BY GROUPING SETS ((minute, {_MOVE}), (source, destination, {_MOVE}), (task_id, {_MOVE}))
    """,
    *(
        f"""
        INSERT INTO tally (source, destination, task_id, delay, bucket, files)
        SELECT source, destination, task_id, '{delay}', {delay}, count(*) FROM fact WHERE {delay} IS NOT NULL
        GROUP BY GROUPING SETS ((source, destination, {delay}), (task_id, {delay}))
        """
        for delay in DELAYS
    ),
)

_SUMS = ", ".join(
    [
        f"coalesce(sum({what}) FILTER (WHERE around IS NULL AND ({moved})), 0) AS {name}{unit}"
        for name, moved in MOVES.items()
        for what, unit in (("files", ""), ("size_bytes", "_bytes"))
    ]
    + [
        f"coalesce(sum(files) FILTER (WHERE around IS NULL AND ({moved})), 0) AS {name}"
        for name, moved in ATTEMPTS.items()
    ]
)

_COUNTED = f"""
counted AS (SELECT {{keys}}, {_SUMS} FROM part GROUP BY {{keys}}),
failed_by AS (
    SELECT {{keys}}, jsonb_object_agg(category, files) AS failures FROM (
        SELECT {{keys}}, category, sum(files) AS files FROM part WHERE category IS NOT NULL
        GROUP BY {{keys}}, category
    ) c GROUP BY {{keys}}
), around_by AS (
    SELECT {{keys}}, jsonb_object_agg(around, files) AS around FROM (
        SELECT {{keys}}, around, sum(files) AS files FROM part WHERE around IS NOT NULL
        GROUP BY {{keys}}, around
    ) a GROUP BY {{keys}}
)
"""

_KEYS = "kind, subject, other"
_EMPTY = "'total'::statistic_kind, '', ''"
# What is known of links makes those of sites and the total, what is known of tasks makes those of users.
_SUBJECTS = """
    SELECT s.*, {columns}, sum(x.files) AS files, sum(x.size_bytes) AS size_bytes
    FROM tally x CROSS JOIN LATERAL (VALUES
        ('total'::statistic_kind, '', ''), ('link', x.source, x.destination), ('source', x.source, ''),
        ('destination', x.destination, '')
    ) s(kind, subject, other) WHERE x.source IS NOT NULL AND {condition} GROUP BY {keys}, {columns}
    UNION ALL
    SELECT s.*, {columns}, sum(x.files), sum(x.size_bytes)
    FROM tally x JOIN task k ON k.id = x.task_id CROSS JOIN LATERAL (VALUES
        ('user'::statistic_kind, k.username, ''), ('task', k.name, k.username)
    ) s(kind, subject, other) WHERE {condition} GROUP BY {keys}, {columns}
"""
_WAITS = ", ".join(
    f"array_agg(ARRAY[bucket, files::integer] ORDER BY bucket) FILTER (WHERE delay = '{delay}') AS {delay}"
    for delay in DELAYS
)

# There is always a total: an hour in which nothing happened can be told from one that was not counted.
_STORE = f"""
WITH part AS MATERIALIZED (
    {_SUBJECTS.format(keys=_KEYS, columns=_MOVE, condition="x.delay IS NULL")}
    UNION ALL SELECT {_EMPTY}, '', '', NULL, NULL, 0, 0
), {_COUNTED.format(keys=_KEYS)}, waits AS (
    SELECT {_KEYS}, {_WAITS}
    FROM ({_SUBJECTS.format(keys=_KEYS, columns="delay, bucket", condition="x.bucket IS NOT NULL")}) w
    GROUP BY {_KEYS}
)
INSERT INTO {{table}} (at, {_KEYS}, {", ".join(COLUMNS)})
SELECT %(at)s, {_KEYS}, {", ".join(COLUMNS)}
FROM counted LEFT JOIN failed_by USING ({_KEYS}) LEFT JOIN around_by USING ({_KEYS})
    LEFT JOIN waits USING ({_KEYS})
"""

_STORE_MINUTES = f"""
WITH part AS MATERIALIZED (SELECT * FROM tally WHERE minute IS NOT NULL), {_COUNTED.format(keys="minute")}
INSERT INTO statistic_minute (at, {_KEYS}, {", ".join(COLUMNS[: -len(DELAYS)])})
SELECT minute, {_EMPTY}, {", ".join(COLUMNS[: -len(DELAYS)])}
FROM counted LEFT JOIN failed_by USING (minute) LEFT JOIN around_by USING (minute)
"""

_FORGET = (
    "DELETE FROM statistic_hour WHERE kind = ANY(enum_range(NULL::statistic_kind)) AND at = %(hour)s",
    "DELETE FROM statistic_slice WHERE at >= %(hour)s AND at < %(end)s",
    "DELETE FROM statistic_minute WHERE kind = 'total' AND at >= %(hour)s AND at < %(end)s",
    # It is made again when all of its hours are there.
    "DELETE FROM statistic_day WHERE kind = ANY(enum_range(NULL::statistic_kind)) AND at = %(day)s",
)

_NOTE = """
INSERT INTO rolled_hour AS r (hour, until, events, step_run)
VALUES (%(hour)s, %(until)s, %(events)s, %(step_run)s)
ON CONFLICT (hour) DO UPDATE SET until = excluded.until, rolled_at = now(), step_run = excluded.step_run,
    events = excluded.events + CASE WHEN %(adds)s THEN r.events ELSE 0 END
"""

_DAYS_TO_MAKE = """
SELECT day FROM (
    SELECT date_trunc('day', hour, 'UTC') AS day FROM rolled_hour GROUP BY 1
    HAVING bool_and(until = hour + interval '1 hour') AND bool_or(extract(hour FROM hour) = 23)
) d WHERE NOT EXISTS (SELECT FROM statistic_day s WHERE s.kind = 'total' AND s.at = d.day)
    AND EXISTS (SELECT FROM statistic_hour s WHERE s.kind = 'total' AND s.at >= d.day
        AND s.at < d.day + interval '1 day')
ORDER BY day
"""

_MAKE_DAY = f"""
WITH {
    added_up(
        f"SELECT {_KEYS}, {', '.join(COLUMNS)} FROM statistic_hour WHERE at >= %(day)s AND at < %(end)s",
        ("kind", "subject", "other"),
    )
}
INSERT INTO statistic_day (at, {_KEYS}, {", ".join(COLUMNS)})
SELECT %(day)s, {_KEYS}, {", ".join(COLUMNS)} FROM added
"""

_UNSURE = """
SELECT h.hour, CASE WHEN r.until = h.hour + interval '1 hour' THEN r.events END
FROM (SELECT min(hour) AS hour FROM rolled_hour HAVING count(*) > 0) first
CROSS JOIN LATERAL generate_series(greatest(first.hour, %(lost)s::timestamptz),
    %(before)s::timestamptz - interval '1 hour', interval '1 hour') AS h(hour)
LEFT JOIN rolled_hour r ON r.hour = h.hour
WHERE h.hour >= %(late)s OR r.until IS DISTINCT FROM h.hour + interval '1 hour'
ORDER BY h.hour
"""

# New pages of an index of ranges count as a hit for any time until they are summarised.
_SUMMARISE = """
SELECT brin_summarize_new_values(i.indexrelid)
FROM unnest(%s::text[]) AS part(name) JOIN pg_index i ON i.indrelid = to_regclass(part.name)
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'brin'
"""


def roll_up_hour(conn: Connection, hour: datetime, *, step_run: int) -> int:
    """Count an hour anew, in place of what was there; return how many events it has.

    Args:
        hour: its beginning, aware; the hour must be over, and its events still be there.
    """
    ensure_month(conn, ("statistic_hour", "statistic_day"), hour.date())
    conn.execute(_SUMMARISE, (_event_partitions(hour),))
    with _alone(conn):
        _make_tables(conn)
        events = sum(_count(conn, start, start + SLICE) for start in _starts(hour, hour + HOUR))
        for statement in _FORGET:
            conn.execute(statement, {"hour": hour, "end": hour + HOUR, "day": _floor(hour, DAY)})
        conn.execute(_STORE.format(table="statistic_hour"), {"at": hour})
        conn.execute(_STORE_MINUTES)
        _note(conn, hour, hour + HOUR, events, step_run)
    return events


def roll_up_open(conn: Connection, now: datetime, *, step_run: int) -> int:
    """Count what happened since it was last counted, if that is some minutes ago; return how many events.

    It is only what an hour that is not over shows: :func:`roll_up_hour` counts everything again.
    """
    window = _open_window(conn, now)
    if window is None:
        return 0
    start, end = window
    conn.execute(_SUMMARISE, (_event_partitions(start),))
    with _alone(conn, waits=False) as is_alone:
        # Somebody else may count them at this moment, or have done so.
        if not is_alone or _open_window(conn, now) != window:
            return 0
        _make_tables(conn)
        events = _count(conn, start, end)
        conn.execute(_STORE.format(table="statistic_slice"), {"at": start})
        conn.execute(_STORE_MINUTES)
        _note(conn, _floor(start, HOUR), end, events, step_run, adds=True)
    return events


def _open_window(conn: Connection, now: datetime) -> tuple[datetime, datetime] | None:
    row = conn.execute("SELECT max(until) FROM rolled_hour").fetchone()
    start = (row and row[0]) or _floor(now, HOUR)
    hour_end = _floor(start, HOUR) + HOUR
    end = min(_floor(now - LAG, MINUTE), start + SLICE, hour_end)
    return (start, end) if end - start >= min(OPEN_EVERY, hour_end - start) else None


def make_days(conn: Connection) -> list[datetime]:
    """Add up the hours of each day that is over and counted to its end; return the days that were made."""
    days = [day for (day,) in conn.execute(_DAYS_TO_MAKE)]
    for day in days:
        ensure_month(conn, ("statistic_day",), day.date())
        with _alone(conn):
            conn.execute("DELETE FROM statistic_day WHERE at = %s", (day,))
            conn.execute(_MAKE_DAY, {"day": day, "end": day + DAY})
    return days


def hours_to_count(conn: Connection, before: datetime) -> list[datetime]:
    """Return the hours before one that nobody counted to their end, or that have other events by now."""
    rows = conn.execute(_UNSURE, {"before": before, "late": before - LATE, "lost": before - LOST}).fetchall()
    return [hour for hour, events in rows if events is None or events != _recount(conn, hour)]


def uncounted_hours(conn: Connection, start: datetime, end: datetime) -> list[datetime]:
    """Return the hours from ``start`` to ``end`` that were not counted to their end."""
    rows = conn.execute(
        "SELECT h.hour FROM generate_series(%s, %s - interval '1 hour', interval '1 hour') AS h(hour)"
        " LEFT JOIN rolled_hour r USING (hour)"
        " WHERE r.until IS DISTINCT FROM h.hour + interval '1 hour' ORDER BY h.hour",
        (start, end),
    )
    return [hour for (hour,) in rows]


def _recount(conn: Connection, hour: datetime) -> int:
    row = conn.execute(_RECOUNT, {"start": hour, "end": hour + HOUR}).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _alone(conn: Connection, *, waits: bool = True) -> Iterator[bool]:
    """Open a transaction in which nobody else counts and all that is read is of one moment; yield whether so.

    The lock is the session's: a transaction that waited for it would still see what was before.
    """
    if not _lock(conn, waits=waits):
        yield False
        return
    before = conn.isolation_level
    conn.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with conn.transaction():
            conn.execute("SET LOCAL work_mem = '64MB'")
            yield True
    finally:
        conn.isolation_level = before
        conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _lock(conn: Connection, *, waits: bool) -> bool:
    if waits:
        conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        return True
    return conn.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() == (True,)


def _make_tables(conn: Connection) -> None:
    for statement in _TABLES.split(";")[:-1]:
        conn.execute(statement)


def _count(conn: Connection, start: datetime, end: datetime) -> int:
    """Add what happened in [start, end) to the tables of this transaction; return how many events."""
    times = {"start": start, "end": end}
    conn.execute("TRUNCATE moved, seen, fact")
    events = conn.execute(_MOVED, times).rowcount
    conn.execute("ANALYZE moved (transfer_id)")
    conn.execute(_SEEN_LIVE)
    conn.execute("ANALYZE seen (id)")
    conn.execute(_SEEN_PAST)
    conn.execute(_SINCE, times)
    conn.execute(_FACTS)
    for statement in _TALLIES:
        conn.execute(statement)
    return events


def _note(
    conn: Connection, hour: datetime, until: datetime, events: int, step_run: int, *, adds: bool = False
) -> None:
    conn.execute(_NOTE, {"hour": hour, "until": until, "events": events, "step_run": step_run, "adds": adds})


def _event_partitions(at: datetime) -> Collection[str]:
    return [f"{table}_{at:%Y%m%d}" for table in ("transfer_event", "file_event")]


def _starts(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += SLICE


def _floor(at: datetime, step: timedelta) -> datetime:
    """Return the last whole minute, hour or day of UTC."""
    return EPOCH + (at - EPOCH) // step * step
