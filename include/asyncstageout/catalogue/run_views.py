"""What ran and what it did: cycles, runs of every DAG, acts of people; for people to look at. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection
from psycopg.rows import dict_row

Which = Literal["all", "work", "trouble"]
LINKS_SHOWN = 5_000
LAST_STEPS = 200_000
"""Among so many of the last steps the last run of each DAG is looked for."""
# As the index step_run_by_people says it: without those steps that hand something in, or only look.
_BY_PEOPLE = """
s.actor <> 'airflow' AND s.task_id <> ALL (ARRAY[
    'api: submit', 'api: metadata', 'api: publication', 'api: crab filetransfers',
    'api: crab fileusertransfers', 'api: crab filemetadata', 'load', 'demo', 'select'])
"""

# Of each part of a step the last try.
_LAST_TRIES = """
SELECT DISTINCT ON (task_id, map_index) * FROM step_run
WHERE dag_id = {dag_id} AND run_id = {run_id} ORDER BY task_id, map_index, id DESC
"""

# By the index cycle_created.
_PAGE = """
SELECT c.* FROM cycle c
WHERE c.created_at >= %(since)s
    AND (%(before)s::bigint IS NULL
        OR (c.created_at, c.id) < (SELECT b.created_at, b.id FROM cycle b WHERE b.id = %(before)s))
    AND CASE %(which)s::text
        WHEN 'work' THEN EXISTS (SELECT FROM cycle_link l WHERE l.cycle_id = c.id)
            OR EXISTS (SELECT FROM fts_job j WHERE j.cycle_id = c.id)
        WHEN 'trouble' THEN EXISTS (
            SELECT FROM step_run s WHERE s.dag_id = c.dag_id AND s.run_id = c.run_id AND s.outcome = 'failed')
        ELSE true END
ORDER BY c.created_at DESC, c.id DESC LIMIT %(at_most)s
"""

# What belongs to a cycle by the key of that.
_CYCLES = f"""
WITH page AS MATERIALIZED ({{page}})
SELECT p.id, p.dag_id, p.run_id, p.round, p.params, p.created_at,
    p.collected_at, p.grouped_at, p.summarised_at,
    l.links, l.held_links, j.jobs, j.accepted_jobs, j.planned_jobs, j.files, j.size_bytes,
    s.took_s, s.is_red, s.is_running, s.sentence
FROM page p
CROSS JOIN LATERAL (
    SELECT count(*) AS links, count(held) AS held_links FROM cycle_link WHERE cycle_id = p.id
) l
CROSS JOIN LATERAL (
    SELECT count(*) AS jobs, count(submitted_at) AS accepted_jobs,
        count(*) FILTER (WHERE state = 'PLANNED') AS planned_jobs,
        coalesce(sum(cardinality(transfer_ids)), 0)::bigint AS files,
        coalesce(sum(size_bytes), 0)::bigint AS size_bytes
    FROM fts_job WHERE cycle_id = p.id
) j
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(task_id, took_s), '{{{{}}}}') AS took_s,
        coalesce(bool_or(is_red), false) AS is_red, coalesce(bool_or(is_running), false) AS is_running,
        (array_agg(sentence ORDER BY is_red DESC, last_id DESC)
            FILTER (WHERE sentence IS NOT NULL))[1] AS sentence
    FROM (
        SELECT task_id, max(id) AS last_id,
            extract(epoch FROM max(coalesce(ended_at, now())) - min(started_at))::float8 AS took_s,
            bool_or(outcome = 'failed') IS TRUE AS is_red, bool_or(ended_at IS NULL) AS is_running,
            (array_agg(sentence ORDER BY outcome = 'failed' DESC NULLS LAST, id DESC))[1] AS sentence
        FROM ({_LAST_TRIES.format(dag_id="p.dag_id", run_id="p.run_id")}) t GROUP BY task_id
    ) t
) s
ORDER BY p.created_at DESC, p.id DESC
"""

_LINKS = """
SELECT source, destination, users, in_flight, room, held FROM cycle_link WHERE cycle_id = %(cycle_id)s
ORDER BY held IS NULL, source, destination LIMIT %(at_most)s
"""

_STEP = """
s.id, s.dag_id, s.run_id, s.task_id, s.map_index, s.try_number, s.actor, s.started_at, s.ended_at, s.outcome,
s.sentence, s.counts, extract(epoch FROM coalesce(s.ended_at, now()) - s.started_at)::float8 AS took_s
"""

# By the index step_run_of_run.
_OF_RUN = f"""
SELECT {_STEP} FROM step_run s WHERE s.dag_id = %(dag_id)s AND s.run_id = %(run_id)s ORDER BY s.id
"""

_CYCLES_OF_RUN = "SELECT id FROM cycle WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s ORDER BY round"

# The names of the DAGs one by one along the index step_run_of_run; then backwards along the key.
_LAST_RUNS = f"""
WITH RECURSIVE dag AS (
    SELECT min(dag_id) AS dag_id FROM step_run
    UNION ALL
    SELECT (SELECT min(dag_id) FROM step_run s WHERE s.dag_id > d.dag_id)
    FROM dag d WHERE d.dag_id IS NOT NULL
), run AS (
    SELECT d.dag_id, r.run_id FROM dag d CROSS JOIN LATERAL (
        SELECT run_id FROM step_run s
        WHERE s.dag_id = d.dag_id AND s.id > (SELECT max(id) - {LAST_STEPS} FROM step_run)
        ORDER BY s.id DESC LIMIT 1
    ) r WHERE d.dag_id IS NOT NULL
)
SELECT r.dag_id, r.run_id, s.* FROM run r CROSS JOIN LATERAL (
    SELECT min(started_at) AS started_at, count(*) AS steps, bool_or(outcome = 'failed') IS TRUE AS is_red,
        bool_or(ended_at IS NULL) AS is_running,
        extract(epoch FROM max(coalesce(ended_at, now())) - min(started_at))::float8 AS took_s,
        (array_agg(sentence ORDER BY outcome = 'failed' DESC NULLS LAST, id DESC)
            FILTER (WHERE sentence IS NOT NULL))[1] AS sentence
    FROM ({_LAST_TRIES.format(dag_id="r.dag_id", run_id="r.run_id")}) t
) s
ORDER BY r.dag_id
"""

# Ids go up with time, and there is no index by time: where a time begins is found by halving.
_SINCE = """
WITH RECURSIVE search(low, high) AS (
    SELECT min(id), max(id) + 1 FROM step_run
    UNION ALL
    SELECT CASE WHEN p.is_early THEN (low + high) / 2 + 1 ELSE low END,
        CASE WHEN p.is_early THEN high ELSE (low + high) / 2 END
    FROM search CROSS JOIN LATERAL (
        SELECT started_at < %(since)s AS is_early FROM step_run
        WHERE id >= (low + high) / 2 ORDER BY id LIMIT 1
    ) p
    WHERE low < high
)
SELECT low FROM search WHERE low >= high
"""

# By the key, between two ids.
_STEPS = f"""
SELECT {_STEP} FROM step_run s
WHERE s.id >= %(first)s AND (%(before)s::bigint IS NULL OR s.id < %(before)s) AND s.dag_id IS NOT NULL
    AND (%(dag_id)s::text IS NULL OR s.dag_id = %(dag_id)s)
    AND CASE %(outcome)s::text
        WHEN 'failed' THEN s.outcome = 'failed' WHEN 'running' THEN s.ended_at IS NULL ELSE true END
ORDER BY s.id DESC LIMIT %(at_most)s
"""

# By the index step_run_by_people.
_ACTS = f"""
SELECT {_STEP} FROM step_run s
WHERE s.id >= %(first)s AND (%(before)s::bigint IS NULL OR s.id < %(before)s) AND {_BY_PEOPLE}
    AND (%(actor)s::text IS NULL OR s.actor = %(actor)s)
    AND (%(kind)s::text IS NULL OR strpos(lower(s.task_id), lower(%(kind)s)) > 0)
ORDER BY s.id DESC LIMIT %(at_most)s
"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A page of a list that goes back in time."""

    since: datetime
    before: int | None
    """Id of the last row of the page before; None: the first page."""
    limit: int


def cycles(conn: Connection, page: Stretch, which: Which = "all") -> list[dict[str, Any]]:
    """Return cycles with what came of them, the last one first.

    Args:
        which: ``work``: only those that found anything to do; ``trouble``: only those of which a step failed.

    ``took_s`` says for each step how long it took, in its last tries.
    """
    query = _CYCLES.format(page=_PAGE)
    return _rows(conn, query, since=page.since, before=page.before, at_most=page.limit, which=which)


def find_cycle(conn: Connection, cycle_id: int) -> dict[str, Any] | None:
    """Return one cycle as :func:`cycles` does; None if there is none."""
    found = _rows(conn, _CYCLES.format(page="SELECT * FROM cycle WHERE id = %(id)s"), id=cycle_id)
    return found[0] if found else None


def links_of_cycle(conn: Connection, cycle_id: int, *, limit: int = LINKS_SHOWN) -> list[dict[str, Any]]:
    """Return what a cycle saw on each link with waiting files; those that were held back come first."""
    return _rows(conn, _LINKS, cycle_id=cycle_id, at_most=limit)


def steps_of_run(conn: Connection, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return all tries of all steps of a run, in their order."""
    return _rows(conn, _OF_RUN, dag_id=dag_id, run_id=run_id)


def cycles_of_run(conn: Connection, dag_id: str, run_id: str) -> list[int]:
    """Return the ids of the cycles of a run: more than one if backfills ran it again."""
    return [number for (number,) in conn.execute(_CYCLES_OF_RUN, {"dag_id": dag_id, "run_id": run_id})]


def last_runs(conn: Connection) -> list[dict[str, Any]]:
    """Return the last run of each DAG."""
    return _rows(conn, _LAST_RUNS)


def steps(
    conn: Connection, page: Stretch, *, dag_id: str | None = None, outcome: str = "all"
) -> list[dict[str, Any]]:
    """Return steps of DAGs, the last one first.

    Args:
        outcome: ``failed``, ``running`` (nobody has said how they ended), or ``all``.
    """
    return _rows(conn, _STEPS, dag_id=dag_id, outcome=outcome, **_between(conn, page))


def acts(
    conn: Connection, page: Stretch, *, actor: str | None = None, kind: str | None = None
) -> list[dict[str, Any]]:
    """Return what people did to what is there (they killed files, sent some again), the last one first.

    Args:
        kind: part of the name of the act, such as ``kill``.
    """
    return _rows(conn, _ACTS, actor=actor, kind=kind, **_between(conn, page))


def _between(conn: Connection, page: Stretch) -> dict[str, Any]:
    row = conn.execute(_SINCE, {"since": page.since}).fetchone()
    return {"first": row[0] if row else 0, "before": page.before, "at_most": page.limit}


def _rows(conn: Connection, query: str, **values: Any) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()
