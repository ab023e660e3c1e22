"""FTS jobs as people look at them: what is open, what ended, and everything about one. Reads only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from asyncstageout.core.planning import Link
from asyncstageout.core.slow_jobs import LEAST, SAMPLE

OPEN_SHOWN = 1_000
OF_CYCLE_SHOWN = 2_000
SETTLED = timedelta(hours=1)
"""What FTS said of a job is on record so long after its end at the latest."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; None leaves a field open."""

    fts_server: str | None = None
    source: str | None = None
    destination: str | None = None


class EndedAt(NamedTuple):
    """Place of a job among those that ended."""

    ended_at: datetime
    sid: UUID


# Taking a planned job over makes it young again; its files tell how long they have really been waiting.
_COLUMNS = """
j.sid, j.job_id, j.fts_server, j.source, j.destination, j.identity, j.activity, j.priority,
j.state::text AS state, j.fts_state, j.reason, cardinality(j.transfer_ids) AS files, j.open_files,
j.size_bytes, j.cycle_id, j.planned_at, j.submitted_at, j.polled_at, j.next_poll_at, j.final_at, j.missing_at,
j.cancelled_at, j.ended_at,
CASE j.state WHEN 'PLANNED' THEN (
    SELECT t.updated_at FROM transfer t WHERE t.fts_job = j.sid AND t.state = 'ACQUIRED' LIMIT 1
) END AS waits_since,
extract(epoch FROM coalesce(j.ended_at, now()) - coalesce(j.submitted_at, j.planned_at))::float8 AS took_s
"""

_MEANT = """
(%(fts_server)s::text IS NULL OR j.fts_server = %(fts_server)s)
    AND (%(source)s::text IS NULL OR j.source = %(source)s)
    AND (%(destination)s::text IS NULL OR j.destination = %(destination)s)
"""

# By the index fts_job_in_flight.
_OPEN = f"""
SELECT {_COLUMNS} FROM fts_job j WHERE j.state IN ('PLANNED', 'SUBMITTED') AND {_MEANT}
ORDER BY j.planned_at LIMIT %(at_most)s
"""

# By the index fts_job_ended.
_ENDED = f"""
SELECT {_COLUMNS} FROM fts_job j
WHERE j.ended_at >= %(since)s AND j.ended_at <= %(ended_at)s AND (j.ended_at, j.sid) < (%(ended_at)s, %(sid)s)
    AND {_MEANT}
ORDER BY j.ended_at DESC, j.sid DESC LIMIT %(at_most)s
"""

# By the index fts_job_of_cycle.
_OF_CYCLE = f"""
SELECT {_COLUMNS} FROM fts_job j WHERE j.cycle_id = %(cycle_id)s
ORDER BY j.planned_at, j.sid LIMIT %(at_most)s
"""

# By the index fts_job_of_link.
_MEDIANS = f"""
SELECT l.source, l.destination, percentile_cont(0.5) WITHIN GROUP (ORDER BY j.took_s)
FROM unnest(%(sources)s::text[], %(destinations)s::text[]) AS l(source, destination) CROSS JOIN LATERAL (
    SELECT extract(epoch FROM ended_at - submitted_at)::float8 AS took_s FROM fts_job
    WHERE source = l.source AND destination = l.destination AND state = 'ENDED' AND submitted_at IS NOT NULL
    ORDER BY planned_at DESC LIMIT {SAMPLE}
) j
GROUP BY 1, 2 HAVING count(*) >= {LEAST}
"""

_ONE = f"""
SELECT {_COLUMNS}, j.params, j.transfer_ids, j.poster, j.canceller, j.source_protocol, j.destination_protocol,
    c.dag_id, c.run_id
FROM fts_job j JOIN cycle c ON c.id = j.cycle_id WHERE j.sid = %(id)s OR j.job_id = %(id)s
"""

# Each file by its key, live or past: it ended after its job was planned, so older partitions are left out.
_FILES = """
SELECT u.id, f.state, f.username, f.source_lfn, f.size_bytes, f.attempt, f.fts_job, e.to_state::text AS here,
    coalesce(e.reason, '') AS reason, e.failure_category, e.at
FROM unnest(%(transfer_ids)s::bigint[]) WITH ORDINALITY AS u(id, place)
LEFT JOIN LATERAL (
    SELECT state::text, username, source_lfn, size_bytes, attempt, fts_job FROM transfer WHERE id = u.id
    UNION ALL
    SELECT state::text, username, source_lfn, size_bytes, attempt, fts_job FROM transfer_history
    WHERE id = u.id AND ended_at >= %(planned_at)s
    LIMIT 1
) f ON true
LEFT JOIN LATERAL (
    SELECT to_state, reason, failure_category, at FROM transfer_event
    WHERE transfer_id = u.id AND fts_job = %(sid)s AND at >= %(planned_at)s AND at < %(until)s
    ORDER BY id DESC LIMIT 1
) e ON true
ORDER BY u.place
"""

_STEPS = """
WITH did AS (
    SELECT step_run AS id, CASE to_state WHEN 'ACQUIRED' THEN 'planned it'
        WHEN 'SUBMITTED' THEN 'recorded that FTS took it'
        ELSE 'recorded that its first file became ' || to_state END AS what
    FROM transfer_event
    WHERE transfer_id = (%(transfer_ids)s::bigint[])[1] AND fts_job = %(sid)s
        AND at >= %(planned_at)s AND at < %(until)s
    UNION ALL SELECT %(poster)s::bigint, 'told FTS of it first'
    UNION ALL SELECT %(canceller)s::bigint, 'told FTS to stop files of it'
)
SELECT s.id, string_agg(d.what, ', ') AS what, s.dag_id, s.run_id, s.task_id, s.map_index, s.try_number,
    s.actor, s.started_at, s.outcome, s.sentence
FROM did d JOIN step_run s ON s.id = d.id GROUP BY s.id ORDER BY s.started_at, s.id
"""


def open_jobs(conn: Connection, where: JobFilter, *, limit: int = OPEN_SHOWN) -> list[dict[str, Any]]:
    """Return the oldest jobs that FTS has, or should have soon."""
    return _rows(conn, _OPEN, **asdict(where), at_most=limit)


def ended_jobs(
    conn: Connection, where: JobFilter, *, since: datetime, until: EndedAt, limit: int
) -> list[dict[str, Any]]:
    """Return the jobs that ended since a moment and before a place, the last one first."""
    return _rows(conn, _ENDED, **asdict(where), **until._asdict(), since=since, at_most=limit)


def jobs_of_cycle(conn: Connection, cycle_id: int, *, limit: int = OF_CYCLE_SHOWN) -> list[dict[str, Any]]:
    return _rows(conn, _OF_CYCLE, cycle_id=cycle_id, at_most=limit)


def usual_s(conn: Connection, links: Collection[Link]) -> dict[Link, float]:
    """Return how long half of the last jobs of each link took at FTS; nothing of those with too few."""
    sources, destinations = [link.source for link in links], [link.destination for link in links]
    rows = conn.execute(_MEDIANS, {"sources": sources, "destinations": destinations})
    return {Link(source, destination): median_s for source, destination, median_s in rows}


def find_job(conn: Connection, either_id: UUID) -> dict[str, Any] | None:
    """Return one job by our id of it or by FTS's, with the run of its cycle; None if there is none."""
    found = _rows(conn, _ONE, id=either_id)
    return found[0] if found else None


def files_of_job(conn: Connection, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a job in their order.

    Args:
        job: as :func:`find_job` returns it.

    Each is as it is now, with what became of it in this job (``here``, ``reason``). Of a file that is gone
    from the history only the number is known.
    """
    return _rows(conn, _FILES, **_its_time(job))


def steps_of_job(conn: Connection, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps that made a job, told FTS of it and applied the first answer, in their order."""
    return _rows(conn, _STEPS, **_its_time(job))


def _its_time(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job with the time in which its events were written."""
    # Taking a job over makes it young again.
    first = min(at for at in (job["planned_at"], job["waits_since"]) if at is not None)
    ended_at: datetime | None = job["ended_at"]
    until = datetime.max.replace(tzinfo=first.tzinfo) if ended_at is None else ended_at + SETTLED
    return job | {"planned_at": first, "until": until}


def _rows(conn: Connection, query: str, **values: Any) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()
