"""Deletes rows of the past that nobody needs any more, a batch a statement: each kind with its reason.

What is under way, and what an event that is still there names, is never touched.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple

from psycopg import Connection

from asyncstageout.catalogue.intake_objects import READ_UNTIL
from asyncstageout.catalogue.retention import EVENTS, gone_until, note_gone
from asyncstageout.core.retention import Retention

BATCH = 5_000
PATIENCE_S = 120.0
"""For one kind of rows in one run; the next run goes on."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
STEP_SPAN = timedelta(days=2)
"""A step may have begun so long before the last event that names it."""


class Prune(NamedTuple):
    """One kind of rows, and why they may go."""

    table: str
    why: str
    until: str | None
    """Setting of core.retention; ``events``, ``history``: as old as those that are gone; None: of any age."""
    delete: str
    """Deletes ``%(batch)s`` rows at most, from before ``%(until)s``; up to ``%(after)s`` it was done once."""


PRUNES = (
    Prune(
        "step_run",
        "the events that it made are gone",
        "events",
        """
        DELETE FROM step_run WHERE id IN (
            SELECT id FROM step_run s WHERE started_at < %(until)s AND ended_at IS NOT NULL
                AND NOT EXISTS (SELECT FROM transfer_event_kept e WHERE e.step_run = s.id)
                AND NOT EXISTS (SELECT FROM file_event_kept e WHERE e.step_run = s.id)
            ORDER BY id LIMIT %(batch)s)
        """,
    ),
    Prune(
        "fts_job",
        "its files are gone from the history",
        "history",
        """
        DELETE FROM fts_job WHERE sid IN (
            SELECT sid FROM fts_job j WHERE ended_at < %(until)s AND state IN ('ENDED', 'REFUSED')
                AND NOT EXISTS (SELECT FROM transfer t WHERE t.id = ANY(j.transfer_ids) AND t.fts_job = j.sid)
                AND NOT EXISTS (SELECT FROM transfer_event_kept e WHERE e.fts_job = j.sid)
            ORDER BY ended_at LIMIT %(batch)s)
        """,
    ),
    Prune(
        "cycle_link",
        "what a cycle saw on a link is of interest for some days",
        "cycles_days",
        """
        DELETE FROM cycle_link l USING (
            SELECT l.ctid FROM cycle_link l JOIN cycle c ON c.id = l.cycle_id
            WHERE c.created_at >= %(after)s AND c.created_at < %(until)s LIMIT %(batch)s) old
        WHERE l.ctid = old.ctid
        """,
    ),
    Prune(
        "cycle",
        "it planned no FTS job, or those are gone",
        "cycles_days",
        """
        DELETE FROM cycle WHERE id IN (
            SELECT id FROM cycle c WHERE created_at < %(until)s
                AND (created_at >= %(after)s OR created_at < %(history)s)
                AND NOT EXISTS (SELECT FROM fts_job j WHERE j.cycle_id = c.id)
            LIMIT %(batch)s)
        """,
    ),
    Prune(
        "file_metadata",
        "its file is published, or never came; what failed or waits keeps it",
        "metadata_days",
        """
        DELETE FROM file_metadata WHERE request_id IN (
            SELECT request_id FROM file_metadata m
            WHERE received_at >= %(after)s AND received_at < %(until)s
                AND NOT EXISTS (SELECT FROM transfer t
                    WHERE t.request_id = m.request_id AND t.publication <> 'DONE')
                AND NOT EXISTS (SELECT FROM transfer_history h
                    WHERE h.request_id = m.request_id AND h.publication = 'FAILED')
            LIMIT %(batch)s)
        """,
    ),
    Prune(
        "intake_object",
        "no source offers it any more",
        "intake_days",
        f"""
        DELETE FROM intake_object o USING (
            SELECT ctid FROM intake_object WHERE taken_at < %(until)s AND name <> '{READ_UNTIL}'
            LIMIT %(batch)s) old
        WHERE o.ctid = old.ctid
        """,
    ),
    Prune(
        "statistic_minute",
        "the hours tell as much",
        "minute_statistics_days",
        """
        DELETE FROM statistic_minute WHERE kind = 'total' AND at IN (
            SELECT at FROM statistic_minute WHERE kind = 'total' AND at < %(until)s
            ORDER BY at LIMIT %(batch)s)
        """,
    ),
    Prune(
        "rolled_hour",
        "its statistics are gone",
        "day_statistics_days",
        """
        DELETE FROM rolled_hour WHERE hour IN (
            SELECT hour FROM rolled_hour WHERE hour < %(until)s ORDER BY hour LIMIT %(batch)s)
        """,
    ),
    Prune(
        "fts_report",
        "its FTS job is not open any more, so nothing will be made of it",
        None,
        """
        DELETE FROM fts_report WHERE id IN (
            SELECT id FROM fts_report r
            WHERE NOT EXISTS (SELECT FROM fts_job j WHERE j.sid = r.sid AND j.state = 'SUBMITTED')
            ORDER BY id LIMIT %(batch)s)
        """,
    ),
    Prune(
        "alert",
        "it is over; its messages go with it",
        "events_days",
        """
        WITH old AS (
            SELECT id FROM alert WHERE state = 'over' AND over_at < %(until)s ORDER BY over_at LIMIT %(batch)s
        ), event AS (DELETE FROM alert_event WHERE alert IN (SELECT id FROM old))
        DELETE FROM alert WHERE id IN (SELECT id FROM old)
        """,
    ),
    Prune(
        "airflow_report",
        "nobody asks for it any more",
        None,
        """
        DELETE FROM airflow_report r USING (
            SELECT ctid FROM airflow_report WHERE reported_at < %(now)s - interval '7 days' LIMIT %(batch)s
        ) old
        WHERE r.ctid = old.ctid
        """,
    ),
    Prune(
        "link_window",
        "no breaker looks back so far",
        None,
        """
        DELETE FROM link_window w USING (
            SELECT ctid FROM link_window WHERE minute < %(now)s - interval '1 day' LIMIT %(batch)s) old
        WHERE w.ctid = old.ctid
        """,
    ),
)


def prune(
    conn: Connection, one: Prune, keep: Retention, *, now: datetime, step_run: int, batch: int = BATCH
) -> int:
    """Delete rows of a kind, a batch a transaction, and note up to when they are gone; return how many.

    When it takes too long the rest waits for the next run, which looks at the same times again.
    """
    values = _values(conn, one, keep, now)
    if one.until and values["until"] is None:
        return 0
    deadline = monotonic() + PATIENCE_S
    total, deleted = 0, batch
    while deleted == batch and monotonic() < deadline:
        deleted = conn.execute(one.delete, values | {"batch": batch}).rowcount
        total += deleted
    until = values["until"] if deleted < batch else values["after"]
    if one.until and (total or until > values["after"]):
        note_gone(conn, one.table, until, rows=total, step_run=step_run)
    return total


def _values(conn: Connection, one: Prune, keep: Retention, now: datetime) -> dict[str, Any]:
    history = gone_until(conn, "transfer_history")
    return {
        "now": now,
        "after": gone_until(conn, one.table) or BEGINNING,
        "until": history if one.until == "history" else _until(conn, one, keep, now),
        "history": history,
    }


def _until(conn: Connection, one: Prune, keep: Retention, now: datetime) -> datetime | None:
    if one.until == "events":
        gone = [gone_until(conn, table) for table in EVENTS]
        return min(at for at in gone if at) - STEP_SPAN if all(gone) else None
    return now - timedelta(days=getattr(keep, one.until)) if one.until else None
